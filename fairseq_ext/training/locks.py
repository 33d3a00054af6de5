"""Folders that one process at a time may write to."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["locked"]


@contextlib.contextmanager
def locked(folder: str | Path, wait: bool = True) -> Iterator[None]:
    """A context that only one process at a time can be in for the same folder; a kill leaves it, too.

    On a file system without locks, such as some over a network, nothing is locked.

    Args:
        folder: a folder that exists.
        wait: whether to wait for another process to leave. Default: True.

    Raises:
        BlockingIOError: another process has the lock, and ``wait`` is off.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise
        except OSError:
            pass
        yield
    finally:
        os.close(descriptor)
