"""Folders and files that one process at a time may write to."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["locked"]


@contextlib.contextmanager
def locked(path: str | Path, wait: bool = True) -> Iterator[None]:
    """A context that only one process at a time can be in for the same path; a kill leaves it, too.

    On a file system without locks, such as some over a network, nothing is locked.

    Args:
        path: a folder or a file that exists.
        wait: whether to wait for another process to leave. Default: True.

    Raises:
        BlockingIOError: another process has the lock, and ``wait`` is off.
    """
    # over NFS a file must be open for writing; a folder never is
    descriptor = os.open(path, os.O_RDONLY if os.path.isdir(path) else os.O_RDWR)
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
