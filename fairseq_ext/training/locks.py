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
    """Within, no other process is within for the same folder; a kill ends it, too.

    A file system without locks, such as some over a network, goes without.

    Args:
        folder: one that is there.
        wait: for a process that is within. Default: True.

    Raises:
        BlockingIOError: another process is within, and ``wait`` is off.
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
