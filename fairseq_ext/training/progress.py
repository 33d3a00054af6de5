"""The progress of a command on standard error: bars with an estimate of the time left, and lines beside them.

On a terminal a bar is tqdm's; in a log it is a line after ten seconds and then every minute. ``--quiet`` hides both.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Self, TypeVar

from tqdm import tqdm

from fairseq_ext.training.errors import OptionError
from fairseq_ext.training.options import OptionSet, option

__all__ = ["Parts", "Reporting", "is_first_process", "progress", "refuse_processes", "reporting", "say", "warn"]

FIRST, EVERY = 10.0, 60.0
"""Seconds before the first line of a bar in a log, and between the others."""

LINE = "{desc}{percentage:.0f}% {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"

Item = TypeVar("Item")

_quiet = ContextVar("quiet", default=False)
_whole: ContextVar[Parts | None] = ContextVar("whole", default=None)


@dataclass(frozen=True, kw_only=True)
class Reporting(OptionSet):
    """What is shown while it runs."""

    quiet: bool = option(False, "show no progress; warnings, errors and the result stay")


@contextlib.contextmanager
def reporting(quiet: bool) -> Iterator[None]:
    """A context in which :func:`progress` and :func:`say` show nothing if ``quiet`` is set, in it or around it."""
    token = _quiet.set(quiet or _quiet.get())
    try:
        yield
    finally:
        _quiet.reset(token)


def is_first_process() -> bool:
    """Whether this is the one of several processes that prints."""
    from torch import distributed  # an import of seconds, which a command line does without

    return not distributed.is_initialized() or distributed.get_rank() == 0


def refuse_processes(what: str) -> None:
    """Refuse several processes of a launcher where ``what`` does not share its work: each would do all of it.

    Raises:
        OptionError: there are several.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes > 1:
        raise OptionError(f"{what} has one process, got {processes} (WORLD_SIZE): start it without launcher")


def say(message: str) -> None:
    """Print a line on stderr for someone who watches, such as what begins; ``--quiet`` hides it."""
    if not _quiet.get():
        _write(f"| {message}")


def warn(message: str) -> None:
    """Print a line on stderr that ``--quiet`` does not hide."""
    _write(f"warning: {message}")


def _write(line: str) -> None:
    if is_first_process():
        tqdm.write(line, file=sys.stderr)
        sys.stderr.flush()


def progress(iterable: Iterable[Item] | None = None, desc: str | None = None, **options: Any) -> tqdm[Item]:
    """A tqdm bar of the first process, with the options of tqdm.

    ``initial`` is the work that was done before: it counts as done, but not in the speed that the estimate uses.

    Example:
        >>> for image in progress(images, "features", unit=" images"): ...
        >>> with progress(total=len(texts), unit=" texts") as bar:
        ...     bar.update(32)
    """
    shown = not _quiet.get() and is_first_process()
    kind = tqdm if sys.stderr.isatty() else _Lines
    delay = 1.0 if options.get("leave") is False else 0.0  # a bar that does not stay need not flash up
    return kind(iterable, desc, **{"disable": not shown, "delay": delay, **options})


class _Lines(tqdm):
    """A bar in a log: a line of its own now and then."""

    def __init__(self, iterable: Iterable[Any] | None, desc: str | None, **options: Any) -> None:
        if options.get("total") is not None or hasattr(iterable, "__len__"):
            options = {"bar_format": LINE, **options}
        seldom = {"delay": FIRST, "mininterval": FIRST, "miniters": 0, "leave": False}
        super().__init__(iterable, desc and f"{desc}: ", file=sys.stderr, **{**options, **seldom})

    def __iter__(self) -> Iterator[Any]:
        with self:
            for item in self.iterable:  # tqdm's own loop would not see that the interval grows
                yield item
                self.update()

    def update(self, n: float | None = 1) -> bool | None:
        due = super().update(n)
        if due:
            self._print()
            self.mininterval = EVERY
        return due

    def close(self) -> None:
        if not self.disable and self.mininterval == EVERY and self.n != self.last_print_n:
            self._print()
        super().close()

    def _print(self) -> None:
        print(self, file=self.fp, flush=True)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Shows nothing: a later line cannot overwrite it in a log."""

    def clear(self, nolock: bool = False) -> None:
        """Does nothing: a log has nothing to wipe out."""


class Parts:
    """The bar over work of several parts, such as the runs of an experiment.

    The bar moves with the steps within a part, and moves the bar of the work around it in turn: the time left for 15
    runs can be estimated during the first one. Finished and resumed work does not count for the speed.

    Args:
        total: number of parts; the bar over a single part is not shown.
        finished: number of parts that are finished already. Default: 0.
        what: the name of a part. Default: ``"run"``.

    Example:
        >>> with Parts(len(runs), len(finished)) as parts:
        ...     for run in parts.each(unfinished): ...
    """

    def __init__(self, total: int, finished: int = 0, what: str = "run") -> None:
        self.total, self.finished, self.what = total, finished, what
        self._outer = _whole.get()
        if self._outer and total:
            self._outer.resume(finished / total)
        form = "{desc}: {percentage:.0f}%" + ("|{bar}| " if sys.stderr.isatty() else " ") + "[{elapsed}<{remaining}]"
        hidden: dict[str, Any] = {"disable": True} if total < 2 or finished == total else {}
        # Estimated by the average speed: the last minute's speed is that of one part only.
        self._bar = progress(total=total, initial=finished, smoothing=0, miniters=0, bar_format=form, **hidden)

    def __enter__(self) -> Self:
        self._token = _whole.set(self)
        return self

    def __exit__(self, *error: object) -> None:
        _whole.reset(self._token)
        self._bar.close()

    def each(self, parts: Iterable[Item]) -> Iterator[Item]:
        """The parts that are not finished; each counts as finished when the next one is asked for."""
        for part in parts:
            self._bar.set_description_str(f"{self.what} {self.finished + 1} of {self.total}", refresh=False)
            yield part
            self.finished += 1
            self.move(0.0)

    def resume(self, share: float) -> None:
        """Let the part under way go on after this share of it."""
        if not self._bar.disable:
            self._bar.initial += share
            self._bar.n += share
        if self._outer:
            self._outer.resume(share / self.total)

    def move(self, share: float) -> None:
        """Move the bar to this share of the part under way."""
        self._bar.update(self.finished + share - self._bar.n)
        if self._outer:
            self._outer.move((self.finished + share) / self.total)

    @staticmethod
    def around() -> Parts | None:
        """The innermost :class:`Parts` that this is called within; None outside of any."""
        return _whole.get()
