"""What tells two preparations apart, and a damaged file from a whole one."""

from __future__ import annotations

import json

import pytest

from fairseq_ext.captions import checksums
from fairseq_ext.captions.checksums import FILE, check_files, split_checksums, write_checksums
from fairseq_ext.training.errors import DataError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(checksums, "EDGE", 4)
    (tmp_path / "train.features.npy").write_bytes(b"head middle tail")
    (tmp_path / "dict.txt").write_bytes(b"words")
    write_checksums(tmp_path)
    return tmp_path


def test_every_byte_of_a_split_counts_in_what_it_is(folder):
    before = split_checksums(folder)
    (folder / "train.features.npy").write_bytes(b"head MIDDLE tail")
    write_checksums(folder)
    after = split_checksums(folder)
    assert before["train"] != after["train"] and before["valid"] == after["valid"]


def test_ends_and_size_are_checked_at_each_command(folder):
    check_files(folder)
    check_files(folder, "train")
    for damaged in (b"Head middle tail", b"head middle taiL", b"head middl tail"):
        (folder / "train.features.npy").write_bytes(damaged)
        check_files(folder)
        with pytest.raises(DataError, match=r"train\.features\.npy: damaged, or of another preparation"):
            check_files(folder, "train")


def test_checksums_without_the_digest_of_the_content_are_refused(folder):
    """They would pass for those of other images."""
    ends = {name: " ".join(words.split()[:2]) for name, words in json.loads((folder / FILE).read_text()).items()}
    (folder / FILE).write_text(json.dumps(ends))
    for split in ("", "train"):
        with pytest.raises(DataError, match="prepare the data again"):
            check_files(folder, split)
