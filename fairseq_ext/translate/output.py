"""Where translations go: the standard output, or a file that appears when it is complete and can be resumed."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from fairseq_ext.training.errors import DataError, OptionError
from fairseq_ext.training.files import read_json, write_json, writing_to
from fairseq_ext.training.locks import locked
from fairseq_ext.training.settings import Settings

__all__ = ["Output", "PartialFile", "check_place", "opened"]


class Output:
    """The standard output, as UTF-8 whatever the terminal's encoding is."""

    done = 0
    """Lines of input whose translations were there before."""

    def write(self, text: str, lines: int) -> None:
        """Add the translations of the next ``lines`` of the input."""
        sys.stdout.buffer.write(text.encode())
        sys.stdout.buffer.flush()


class PartialFile(Output):
    """A text file that grows beside ``path``, and takes its place when it is complete.

    ``path.partial`` holds the text; ``path.progress.json`` the settings, and how much of the text is surely written.

    Args:
        path: the file to be written.
        handle: ``path.partial``, open for reading and writing.
        settings: whatever changes the text.
        resume: continue after the text that is there.

    Raises:
        OptionError: with ``resume``, the text was begun with other settings; without it, there is a text already.
        DataError: the files are damaged.
    """

    def __init__(self, path: Path, handle: BinaryIO, settings: Settings, resume: bool) -> None:
        self.handle, self.settings = handle, settings
        self.progress = _beside(path, "progress.json")
        size = 0
        if self.progress.exists():
            self.done, size = self._begun()
            if not resume:
                raise OptionError(
                    f"--out: {self.progress} is of a translation that ended after {self.done:,} lines: --resume "
                    "continues it; delete it to start anew"
                )
        handle.truncate(size)  # a kill may have left half a line
        handle.seek(size)

    def _begun(self) -> tuple[int, int]:
        before = read_json(self.progress)
        try:
            settings, lines, size = before["settings"], int(before["lines"]), int(before["bytes"])
            differing = list(self.settings.differing(settings))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{self.progress}: not the progress of a translation; delete it to start anew") from error
        for name, then, now in differing:
            raise OptionError(
                f"--out: {self.progress} is of {name} {then}, now {name} is {now}; delete it to start anew"
            )
        if os.fstat(self.handle.fileno()).st_size < size:
            raise DataError(f"{self.handle.name}: shorter than {self.progress} says; delete both to start anew")
        return lines, size

    def write(self, text: str, lines: int) -> None:
        """Add the translations of the next ``lines`` of the input; they survive a kill."""
        self.handle.write(text.encode())
        self.handle.flush()
        os.fsync(self.handle.fileno())
        self.done += lines
        write_json(self.progress, {"settings": self.settings, "lines": self.done, "bytes": self.handle.tell()})


def check_place(out: str, file: str) -> None:
    """Refuse an ``--out`` that cannot be written, before anything is loaded.

    Raises:
        OptionError: it is a folder, the text itself, or a place without the right to write.
    """
    if not out:
        return
    with writing_to(Path(out).parent):
        if Path(out).is_dir():
            raise OptionError(f"--out: {out} is a folder, must be a file")
        if Path(out).exists() and Path(file).exists() and Path(out).samefile(file):
            raise OptionError(f"--out: {out} is the text that is translated")


@contextmanager
def opened(out: str, settings: Mapping[str, Any], resume: bool) -> Iterator[Output]:
    """The output that ``--out`` names: the standard output where it is empty.

    Raises:
        OptionError: another process is writing the file, or :class:`PartialFile` refuses.
    """
    if not out:
        yield Output()
        return
    path = Path(out)
    with writing_to(path.parent), ExitStack() as held:
        partial = _beside(path, "partial")
        partial.touch()
        try:
            held.enter_context(locked(partial, wait=False))
        except BlockingIOError:
            raise OptionError(f"--out: another process is writing {path}") from None
        with partial.open("r+b") as handle:
            output = PartialFile(path, handle, Settings(settings), resume)
            try:
                yield output
            except BaseException:
                if not output.done:
                    partial.unlink()
                raise
            os.fsync(handle.fileno())
            os.replace(partial, path)
            output.progress.unlink(missing_ok=True)


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(f"{path.name}.{suffix}")
