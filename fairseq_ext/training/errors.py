"""How bad input ends a program: one line that names the option or file, what was found and what is allowed."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable

__all__ = [
    "CheckpointError",
    "DataError",
    "InputError",
    "OptionError",
    "choose",
    "first_few",
    "first_line",
    "one_line",
]


class InputError(SystemExit, ValueError):
    """Bad input. Ends a command line with one line and exit code 2; in a program it is a ``ValueError``."""

    @property
    def code(self) -> int:  # type: ignore[override]
        """2, as in argparse. Python reads this at the end of a program; as it is a number, Python prints nothing."""
        print(self, file=sys.stderr)
        return 2


class OptionError(InputError):
    """An option that is refused."""


class DataError(InputError):
    """A data file or data set that cannot be used."""


class CheckpointError(InputError):
    """A checkpoint that cannot be read, used or written."""


def choose(option: str, value: str, allowed: Iterable[str]) -> str:
    """``value``, where it is one of ``allowed``.

    Raises:
        OptionError: otherwise; the message names the nearest of the allowed values.
    """
    allowed = list(allowed)
    if value in allowed:
        return value
    near = difflib.get_close_matches(str(value), allowed, n=1, cutoff=0.3)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise OptionError(f"{option}: {value!r} is not one of {', '.join(filter(None, allowed))}{hint}")


def first_few(names: Iterable[str], most: int = 3, between: str = ", ") -> str:
    """The first ``most`` of ``names``, and how many more there are: ``a, b, c and 2 more``, or ``a; b; and 2 more``.

    Args:
        most: how many are named. Default: 3.
        between: the text between two names. Default: a comma.
    """
    names = list(names)
    more = f"{between.strip(', ')} and {len(names) - most} more" if len(names) > most else ""
    return between.join(names[:most]) + more


def first_line(error: BaseException) -> str:
    """An error of a library, for a message: the first line of its text, or its kind if it has no text."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def one_line(error: BaseException) -> str:
    """The text of :func:`first_line` with the kind of the error before it."""
    kind, reason = type(error).__name__, first_line(error)
    return kind if reason == kind else f"{kind}: {reason}"
