"""Files that are whole or absent, text that is read in one way everywhere, and checkpoints that cannot run code."""

from __future__ import annotations

import codecs
import contextlib
import errno
import gzip
import os
import pickle
import re
import shutil
import sys
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from fairseq_ext.training.errors import CheckpointError, DataError, OptionError
from fairseq_ext.training.json_values import json_text, parse_json
from fairseq_ext.training.locks import locked

__all__ = [
    "MAX_LINE", "STDIN", "count_lines", "load_safely", "output_folder", "read_bytes", "read_json",
    "read_json_lines", "read_lines", "replacing", "safe_loads_only", "save_atomically", "staged_folder",
    "write_json", "writing_to",
]  # fmt: skip

MAX_LINE = 2**22
"""Longest line of a text that is read, in characters: a file without line breaks must not fill the memory."""

STDIN = "-"
"""The path that stands for the standard input."""


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path to write to, which is renamed to ``path`` at the end; after an error its file is removed.

    The block may make a folder in place of a file if ``path`` does not exist yet or is an empty folder.
    """
    partial = Path(f"{path}.tmp")
    try:
        yield partial
        descriptor = os.open(partial, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # a power failure would leave the new name without its content
        finally:
            os.close(descriptor)
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise


@contextlib.contextmanager
def writing_to(folder: str | Path, option: str = "--out") -> Iterator[Path]:
    """The folder that ``option`` names, made if it is absent; errors of the file system within become one line.

    Raises:
        OptionError: names the option and the folder, such as one that is a file.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        yield folder
    except BrokenPipeError:  # the reader of the output left
        raise
    except OSError as error:
        raise OptionError(f"{option}: cannot write to {folder}: {error.strerror}") from error


@contextlib.contextmanager
def staged_folder(out: str | Path, option: str = "--out") -> Iterator[Path]:
    """A temporary folder beside ``out`` that becomes ``out`` in one rename, or disappears if anything fails.

    A temporary folder that a kill left behind is emptied. If ``out`` is a symbolic link, the folder that it leads to is
    made.

    Raises:
        OptionError: ``out`` holds anything, cannot be written or replaced, or another process is about to write it.
    """
    out = Path(os.path.realpath(out))
    with writing_to(out.parent, option):
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise OptionError(f"{option}: {out} already exists and is not an empty folder; remove it or name another")
        stage = out.parent / f".{out.name}.tmp"
        stage.mkdir(exist_ok=True)
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(locked(stage, wait=False))
            except BlockingIOError:
                raise OptionError(f"{option}: another process is writing {out}") from None
            try:
                for left in stage.iterdir():
                    shutil.rmtree(left) if left.is_dir() else left.unlink()
                _check_replaceable(out, stage, option)
                yield stage
                os.replace(stage, out)
            finally:
                shutil.rmtree(stage, ignore_errors=True)


def _check_replaceable(out: Path, stage: Path, option: str) -> None:
    """Try on an existing ``out`` the rename that comes at the end, with an empty folder: a mount point refuses it."""
    if not os.path.lexists(out):
        return
    trial = stage / "trial"
    trial.mkdir()
    try:
        os.replace(trial, out)
    except OSError as error:
        instead = f"name a folder in it, such as {out / 'data'}"
        raise OptionError(f"{option}: {out} cannot be replaced ({error.strerror}); {instead}") from error


def output_folder(folder: str | Path, option: str = "--out") -> Path:
    """:func:`writing_to` for a folder that is filled later, so that a bad one is refused before the work."""
    with writing_to(folder, option) as made:
        return made


@contextlib.contextmanager
def _unpacked(path: str | Path) -> Iterator[tuple[BinaryIO, str]]:
    """The bytes of a file and its name for messages; a file that cannot be opened or unpacked is refused in one line.

    gzip is recognised by the content as well as by the name, and without seeking, so that a pipe (``<(...)``) works.
    """
    name = "stdin" if str(path) == STDIN else str(path)
    try:
        with contextlib.ExitStack() as stack:
            file: Any = sys.stdin.buffer if name == "stdin" else stack.enter_context(open(path, "rb"))
            if name.endswith(".gz") or file.peek(2)[:2] == b"\x1f\x8b":
                file = stack.enter_context(gzip.GzipFile(fileobj=file))
            yield file, name
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{name}: damaged gzip file ({error})") from error
    except OSError as error:
        raise DataError(f"{name}: cannot be read: {error.strerror or error}") from error


def _decoded(data: bytes, origin: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        place = f"byte 0x{data[error.start]:02x} at {error.start + 1}"
        raise DataError(f"{origin}: not UTF-8 text ({place}); convert the file with iconv") from error


def read_lines(path: str | Path, keep_blank: bool = False) -> Iterator[tuple[str, str]]:
    """The lines of a UTF-8 text, each with its ``FILE:LINE`` for messages.

    Only a line feed ends a line (a carriage return before it is dropped, and so is a byte order mark), so that two
    files of parallel text cannot shift against each other.

    Args:
        path: plain or gzip; ``"-"`` is the standard input.
        keep_blank: also give the lines that hold nothing but space.

    Raises:
        DataError: the file cannot be read, unpacked or decoded, or has a line of more than ``MAX_LINE`` characters.
    """
    with _unpacked(path) as (file, name):
        number, limit = 0, 4 * MAX_LINE  # a character of UTF-8 has at most 4 bytes
        while data := file.readline(limit + 1):
            number += 1
            origin = f"{name}:{number}"
            data = data.removeprefix(codecs.BOM_UTF8) if number == 1 else data
            line = _decoded(data, origin) if len(data) <= limit else None
            if line is None or len(line) > MAX_LINE:
                raise DataError(f"{origin}: a line has at most {MAX_LINE} characters, this one has more")
            if keep_blank or line.strip():
                yield line.removesuffix("\n").removesuffix("\r"), origin


def count_lines(path: str | Path) -> int:
    """How many line feeds a text has, plain or gzip.

    Raises:
        DataError: where it cannot be read or unpacked.
    """
    with _unpacked(path) as (file, _):
        return sum(block.count(b"\n") for block in iter(lambda: file.read(2**20), b""))


def read_bytes(path: str | Path) -> bytes:
    """The content of a file: plain, gzip, or the one member of a ``.zip``.

    Raises:
        DataError: where it cannot be read or unpacked.
    """
    with _unpacked(path) as (file, name):
        if not name.endswith(".zip"):
            return file.read()
        try:
            with zipfile.ZipFile(file) as archive:
                members = archive.namelist()
                if len(members) == 1:
                    return archive.read(members[0])
        # Damage makes zipfile raise many types, among them NotImplementedError and RuntimeError.
        except Exception as error:
            raise DataError(f"{name}: damaged zip file, or one of a form that cannot be read ({error})") from error
        raise DataError(f"{name}: a zip file must hold one file, this one holds {len(members)}")


def read_json(path: str | Path) -> Any:
    """The value in a UTF-8 JSON file, plain or gzip; see :func:`~fairseq_ext.training.json_values.parse_json`.

    Raises:
        DataError: where the file cannot be read, or holds anything else.
    """
    text = _decoded(read_bytes(path).removeprefix(codecs.BOM_UTF8), str(path))
    return parse_json(text, str(path), "file", file_names=True)


def read_json_lines(path: str | Path) -> Iterator[tuple[Any, str]]:
    """The value in each line of a text, and where it stands; see :func:`read_lines`.

    Raises:
        DataError: a line that is not JSON, or a text that cannot be read.
    """
    for line, origin in read_lines(path):
        yield parse_json(line, origin, "value"), origin


def write_json(path: str | Path, value: Any, levels: int = 0) -> None:
    """Write JSON so that a kill leaves the old file or the new one.

    Args:
        path: the file.
        value: mappings, lists, texts and numbers.
        levels: how many levels of mappings are laid out, which writes large values far faster. Default: 0, all levels.

    Raises:
        DataError: a number that is not finite; the old file stays.
    """
    text = json_text(value, str(path), indent=None if levels else 2, levels=levels)
    with replacing(path) as partial:
        partial.write_text(f"{text}\n", encoding="utf-8")


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
        with file, safe_loads_only():
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's message runs over many lines of advice; the user only needs the one that names the refused object.
        refused = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it holds {refused[1]}, which could run code" if refused else "it is damaged, or no checkpoint"
        raise CheckpointError(f"{path}: refused by torch's safe loader: {reason}") from error
    except Exception as error:  # damaged files make the zip and pickle readers raise many types
        raise CheckpointError(f"{path}: truncated, or no checkpoint ({type(error).__name__})") from error


@contextlib.contextmanager
def safe_loads_only() -> Iterator[None]:
    """A context within which every ``torch.load`` refuses code in a file, whatever the calling library asks for."""
    names = ("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")  # torch refuses both together
    before = {name: os.environ.pop(name) for name in names if name in os.environ}
    os.environ[names[0]] = "1"
    try:
        yield
    finally:
        del os.environ[names[0]]
        os.environ.update(before)


def save_atomically(state: Mapping[str, Any], path: str | Path) -> None:
    """``torch.save`` so that ``path`` holds either the whole new file or what it held before.

    Raises:
        CheckpointError: where the folder is missing or not writable, or the disk is full.
    """
    try:
        if os.path.isdir(path):
            raise IsADirectoryError(0, "is a folder")
        with replacing(path) as partial, open(partial, "wb") as file:
            torch.save(dict(state), file)
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error.strerror}") from error
    except RuntimeError as error:  # torch's file writer raises it for a full disk
        raise CheckpointError(f"cannot write {path}: {str(error).splitlines()[0]}") from error
