"""One process at a time, as long as it lives."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import re
import time

import pytest

from fairseq_ext.training.locks import locked
from tests.helpers import ROOT


def _hold(folder, ready):
    with locked(folder):
        ready.set()
        time.sleep(60)


def test_a_folder_is_locked_within_and_by_a_process_until_its_kill(tmp_path):
    with locked(tmp_path), pytest.raises(BlockingIOError), locked(tmp_path, wait=False):
        pass
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=_hold, args=(tmp_path, ready))
    process.start()
    assert ready.wait(60)
    with pytest.raises(BlockingIOError), locked(tmp_path, wait=False):
        pass
    process.kill()
    with locked(tmp_path):
        assert not os.listdir(tmp_path)
    process.join()


@pytest.mark.parametrize("wait", [True, False])
def test_a_file_system_without_locks_goes_without(tmp_path, monkeypatch, wait):
    def flock(descriptor, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with locked(tmp_path, wait), locked(tmp_path, wait):
        pass


def test_a_file_is_locked(tmp_path):
    file = tmp_path / "file"
    file.write_text("text")
    with locked(file), locked(tmp_path, wait=False), pytest.raises(BlockingIOError), locked(file, wait=False):
        pass
    assert file.read_text() == "text"


def test_nothing_else_locks():
    """A lock of its own would not go without where there are none."""
    tops = ("fairseq_ext", "graph", "vision_language", "examples", "benchmarks")
    files = [file for top in tops for file in (ROOT / top).rglob("*.py")]
    locking = [file for file in files if re.search(r"\b(fcntl|flock|lockf)\b", file.read_text(encoding="utf-8"))]
    assert locking == [ROOT / "fairseq_ext/training/locks.py"]
