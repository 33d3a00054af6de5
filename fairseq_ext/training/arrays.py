"""Arrays in npy and npz files: written whole or not at all, and read without running code in them."""

from __future__ import annotations

import contextlib
import math
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fairseq_ext.training.errors import DataError
from fairseq_ext.training.files import replacing

__all__ = ["array_names", "load_npz", "read_array", "stream_npz", "write_npy", "write_npz"]

POINTER = b"version https://git-lfs"


def read_array(path: Path, header_only: bool = False) -> np.ndarray:
    """The array of an npy, or ``features`` of an npz; ``header_only`` does not read the numbers of an npy.

    Raises:
        DataError: no such file, a damaged one, or an array of objects, whose reader would run code.
    """
    if path.suffix == ".npz":
        arrays = load_npz(path, "features")
        if "features" not in arrays:
            raise DataError(f"{path}: no array 'features' in it")
        return arrays["features"]
    try:
        array = np.load(path, allow_pickle=False, mmap_mode="r" if header_only else None)
        if not isinstance(array, np.ndarray):
            raise ValueError("it is an npz")
        return array
    except Exception as error:  # damaged files make numpy, and the zip reader below it, raise many types
        raise DataError(f"{path}: not an npy of numbers: {_reason(path, error)}") from error


def load_npz(path: Path, *names: str) -> dict[str, np.ndarray]:
    """Arrays of an npz by name: all, or those among ``names``; no other array is looked at.

    Raises:
        DataError: no npz, a damaged one, or an array of objects, whose reader would run code.
    """
    with _npz(path), np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files if not names or name in names}


def array_names(path: Path) -> list[str]:
    """The names of the arrays in an npz; no array is read.

    Raises:
        DataError: no npz, or a damaged one.
    """
    with _npz(path), np.load(path, allow_pickle=False) as archive:
        return list(archive.files)


def write_npz(path: Path, arrays: Mapping[str, Any], compress: bool = False) -> None:
    """Write an npz that :func:`load_npz` reads, so that a kill leaves the old file or the new one.

    Args:
        path: its name is used as it is.
        arrays: arrays of numbers or texts, by name; ``file`` and ``allow_pickle`` cannot be names.
        compress: smaller, and slower to write. Default: False.

    Raises:
        ValueError: an array of objects.
    """
    with replacing(path) as partial, open(partial, "wb") as file:
        (np.savez_compressed if compress else np.savez)(file, allow_pickle=False, **arrays)


def write_npy(path: Path, array: np.ndarray) -> None:
    """Write an npy of one array in the same way as :func:`write_npz`."""
    with replacing(path) as partial, open(partial, "wb") as file:
        np.save(file, array, allow_pickle=False)


def stream_npz(path: Path, name: str) -> tuple[tuple[int, ...], Iterator[np.ndarray]]:
    """The shape of an array in an npz, and its entries along the first axis, read into memory one at a time.

    Raises:
        DataError: as for :func:`load_npz`; or there is no such array, or it is not one of floating-point numbers in C
            order.
    """
    rows = _stream(path, name)
    return next(rows), rows


def _stream(path: Path, name: str) -> Iterator[Any]:
    with _npz(path), zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as file:
        version = np.lib.format.read_magic(file)
        header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, by_columns, dtype = header[version](file)
        if dtype.kind != "f" or by_columns or len(shape) < 2:
            raise ValueError(f"{name} is {dtype} {shape}")
        yield shape
        length = dtype.itemsize * math.prod(shape[1:])
        for _ in range(shape[0]):
            data = file.read(length)
            if len(data) < length:
                raise ValueError(f"{name} is cut short")
            yield np.frombuffer(data, dtype).reshape(shape[1:])


@contextlib.contextmanager
def _npz(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # as above
        raise DataError(f"{path}: not an npz of number arrays: {_reason(path, error)}") from error


def _reason(path: Path, error: Exception) -> str:
    try:
        with open(path, "rb") as file:
            if file.read(len(POINTER)) == POINTER:
                return "it is the pointer that Git LFS leaves in place of a file; `git lfs pull` fetches the file"
    except OSError:
        pass
    return " ".join(str(error).split()) or type(error).__name__
