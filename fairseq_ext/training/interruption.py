"""How a command ends when the reader of its output leaves, as ``head`` does, or when a user stops it."""

from __future__ import annotations

import contextlib
import io
import os
import select
import sys
from collections.abc import Callable
from typing import TextIO

__all__ = ["run_command"]

STOPPED = 130
"""What a shell says of a program that Ctrl-C has ended."""


def run_command(command: Callable[[], int | None]) -> int:
    """Run ``command``; if the reader of its output leaves, or on Ctrl-C, it ends without a traceback.

    Both are exceptions within the command, so that temporary files are removed. The output is UTF-8, whatever the
    terminal's encoding: a letter that another encoding lacks would end the work.

    Args:
        command: returns the exit code, or None for 0.

    Returns:
        The exit code: 0 also if the reader left, 130 after Ctrl-C.

    Example:
        >>> if __name__ == "__main__":
        ...     sys.exit(run_command(main))
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
    try:
        return command() or 0
    except BrokenPipeError:
        if not any(map(_is_left, (sys.stdout, sys.stderr))):  # a worker process or a server may end as well
            raise
        return 0
    except KeyboardInterrupt:
        return STOPPED
    finally:
        for stream in (sys.stdout, sys.stderr):
            _drop_unread(stream)


def _is_left(stream: TextIO) -> bool:
    """Whether nobody reads the pipe that ``stream`` writes to."""
    try:
        poll = select.poll()
        poll.register(stream.fileno(), select.POLLOUT)
        return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    except (OSError, ValueError):  # a stream that is no file
        return False


def _drop_unread(stream: TextIO) -> None:
    """Drop the unwritten rest: Python would try to write it at its end, fail aloud, and end with code 120."""
    with contextlib.suppress(OSError, ValueError):  # a full disk, or a closed stream: Python reports them itself
        stream.flush()
    if _is_left(stream):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
