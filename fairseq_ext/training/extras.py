"""Names the extra to install where one of its packages is missing."""

from __future__ import annotations

import functools
import sys
from types import TracebackType

from fairseq_ext.training.errors import OptionError

__all__ = ["missing_package", "name_missing_packages"]

OURS = {"fairseq_ext", "graph", "vision_language"}


def missing_package(error: BaseException, extra: str) -> OptionError | None:
    """The error to raise where ``error`` says that a third-party package is not installed, else None."""
    name = error.name.partition(".")[0] if isinstance(error, ModuleNotFoundError) and error.name else ""
    if not name or name in OURS:
        return None
    return OptionError(f"the package {name} is not installed: pip install 'fairseq-ext[{extra}]'")


def name_missing_packages(extra: str) -> None:
    """Make ``python -m PACKAGE`` end in one line, code 2, where packages of ``extra`` are missing; called before them.

    An import of the package still raises the ``ModuleNotFoundError`` itself.
    """
    if sys.argv[:1] == ["-m"]:  # what Python has there while it looks for the module to run
        sys.excepthook = functools.partial(_end_in_one_line, extra)


def _end_in_one_line(
    extra: str, kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    message = missing_package(error, extra)
    if message is not None:
        raise message from None
    sys.__excepthook__(kind, error, traceback)
