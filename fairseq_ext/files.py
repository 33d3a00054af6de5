"""Files that are whole or absent, and checkpoints that cannot run code."""

from __future__ import annotations

import contextlib
import errno
import gzip
import json
import os
import pickle
import re
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from .errors import CheckpointError, DataError, OptionError

__all__ = [
    "MAX_LINE",
    "load_safely",
    "output_folder",
    "read_json",
    "read_lines",
    "replacing",
    "save_atomically",
    "write_json",
    "writing_to",
]

MAX_LINE = 2**22
"""Longest line of a text that is read, in characters: a file without line breaks must not fill the memory."""


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path to write to; it takes the place of ``path`` at the end, and is removed after an error."""
    partial = Path(f"{path}.tmp")
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise


@contextlib.contextmanager
def writing_to(folder: str | Path, option: str = "--out") -> Iterator[Path]:
    """The folder that ``option`` names, made where it is absent; what the file system refuses within is one line.

    Raises:
        OptionError: names the option and the folder, such as one that is a file.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        yield folder
    except OSError as error:
        raise OptionError(f"{option}: cannot write to {folder}: {error.strerror}") from error


def output_folder(folder: str | Path, option: str = "--out") -> Path:
    """:func:`writing_to` for a folder that is filled later: it is refused before the work."""
    with writing_to(folder, option) as made:
        return made


def read_lines(path: str | Path) -> Iterator[tuple[str, str]]:
    """The lines of a UTF-8 text, plain or ``.gz``, that are not blank, each with its ``FILE:LINE`` for messages.

    Raises:
        DataError: where the file cannot be read, or holds a line of more than ``MAX_LINE`` characters.
    """
    path = Path(path)
    opener: Any = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8-sig", newline="\n") as file:
            number = 0
            while line := file.readline(MAX_LINE + 1):
                number += 1
                if len(line) > MAX_LINE:
                    raise DataError(f"{path}:{number}: a line has at most {MAX_LINE} characters, this one has more")
                if line.strip():
                    yield line.rstrip("\r\n"), f"{path}:{number}"
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text: {error}") from error


def read_json(path: str | Path) -> Any:
    """The value in a UTF-8 JSON file."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON so that a kill leaves the old file or the new one."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def load_safely(path: str | Path) -> Any:
    """``torch.load(path, map_location="cpu", weights_only=True)`` with errors of one line.

    Raises:
        CheckpointError: where the file is missing, truncated, or holds anything that could run code.
    """
    try:
        file = open(path, "rb")
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from error
    try:
        with file:
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's message runs over many lines of advice; the one that names the refused object is what the user needs.
        refused = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it holds {refused[1]}, which could run code" if refused else "it is damaged, or no checkpoint"
        raise CheckpointError(f"{path}: refused by torch's safe loader: {reason}") from error
    except Exception as error:  # damaged files make the zip and pickle readers raise many types
        raise CheckpointError(f"{path}: truncated, or no checkpoint ({type(error).__name__})") from error


def save_atomically(state: Mapping[str, Any], path: str | Path) -> None:
    """``torch.save`` so that ``path`` holds either the whole new file or what it held before.

    Raises:
        CheckpointError: where the folder is missing or not writable, or the disk is full.
    """
    try:
        if os.path.isdir(path):
            raise IsADirectoryError(0, "is a directory")
        with replacing(path) as partial, open(partial, "wb") as file:
            torch.save(dict(state), file)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error.strerror}") from error
    except RuntimeError as error:  # what torch's file writer makes of a full disk
        raise CheckpointError(f"cannot write {path}: {str(error).splitlines()[0]}") from error
