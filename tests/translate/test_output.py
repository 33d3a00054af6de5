"""The file of ``--out``: one process at a time writes it, and on any file system."""

from __future__ import annotations

import errno
import fcntl
import os

import pytest

from fairseq_ext.training.errors import OptionError
from fairseq_ext.translate.output import opened


def test_another_process_that_writes_the_file_is_left_alone(tmp_path):
    out = tmp_path / "out"
    with opened(str(out), {}, resume=False) as first:
        first.write("one\n", 1)
        refused = f"^--out: another process is writing {out}$"
        with pytest.raises(OptionError, match=refused), opened(str(out), {}, resume=True):
            pass
        first.write("two\n", 1)
    assert out.read_text() == "one\ntwo\n" and os.listdir(tmp_path) == ["out"]


def test_a_file_system_without_locks_goes_without(tmp_path, monkeypatch):
    def flock(descriptor, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with opened(str(tmp_path / "out"), {}, resume=False) as output:
        output.write("one\n", 1)
    assert (tmp_path / "out").read_text() == "one\n"
