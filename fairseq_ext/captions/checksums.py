"""Checksums of a prepared folder, which show whether its files are still those that were written together."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from fairseq_ext.training.errors import DataError
from fairseq_ext.training.files import read_json, write_json
from fairseq_ext.training.options import SPLITS
from fairseq_ext.training.settings import digest, file_digest

__all__ = ["FILE", "check_files", "split_checksums", "write_checksums"]

FILE = "checksums.json"
EDGE = 1 << 20
"""Bytes at both ends of a file that are checked: features are too large to read them all before each command."""


def write_checksums(folder: Path) -> None:
    """Write ``checksums.json``: of each other file in a folder its size, and digests of its ends and its content."""
    files = sorted(path for path in folder.iterdir() if path.name != FILE)
    write_json(folder / FILE, {path.name: f"{_of_ends(path)} {file_digest(path)}" for path in files})


def check_files(folder: Path, split: str = "") -> None:
    """Compare files with ``checksums.json``: by their size, and by their first and last bytes.

    Args:
        folder: folder of prepared data.
        split: the split whose files are compared. Default: the files that all splits share.

    Raises:
        DataError: names the first file that is missing, damaged, or of another preparation.
    """
    checksums = read_json(folder / FILE)
    if not isinstance(checksums, dict):
        raise DataError(f"{folder / FILE}: not what `fairseq-ext captions prepare` writes")
    for name, expected in checksums.items():
        part = name.split(".")[0]
        if part != split if split else part in SPLITS:
            continue
        path = folder / name
        try:
            ends = _of_ends(path)
        except OSError as error:
            raise DataError(f"{path}: {error.strerror}; prepare the data again") from error
        if str(expected).rpartition(" ")[0] != ends:
            raise DataError(f"{path}: damaged, or of another preparation than {FILE}; prepare the data again")


def split_checksums(folder: Path) -> dict[str, str]:
    """A checksum of the images and captions of each split, the same whenever and wherever they were prepared.

    Args:
        folder: folder of prepared data.
    """
    files = sorted(read_json(folder / FILE).items())
    return {split: digest([item for item in files if item[0].split(".")[0] == split]) for split in SPLITS}


def _of_ends(path: Path) -> str:
    content = hashlib.sha256()
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        for start in (0, max(0, size - EDGE)):
            file.seek(start)
            content.update(file.read(EDGE))
    return f"{size} {content.hexdigest()}"
