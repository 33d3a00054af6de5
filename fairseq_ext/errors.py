"""How a refused option ends a program."""

from __future__ import annotations

__all__ = ["OptionError"]


class OptionError(SystemExit, ValueError):
    """A refused option. Ends a command line with one line and exit code 1; in a program it is a ``ValueError``."""
