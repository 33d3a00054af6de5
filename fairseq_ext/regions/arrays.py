"""Arrays in npy and npz files, read without running what is in them."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fairseq_ext.training.errors import DataError

__all__ = ["load_npz", "read_array", "stream_npz"]

POINTER = b"version https://git-lfs"


def read_array(path: Path, header_only: bool = False) -> np.ndarray:
    """What an npy holds, or the array ``features`` of an npz; ``header_only`` does not read the numbers of an npy.

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
    """Arrays of an npz by name; with ``names`` those of them that it has, and no other is looked at.

    Raises:
        DataError: no npz, a damaged one, or an array of objects, whose reader would run code.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files if not names or name in names}
    except Exception as error:  # as above
        raise DataError(f"{path}: not an npz of number arrays: {_reason(path, error)}") from error


def stream_npz(path: Path, name: str) -> tuple[tuple[int, ...], Iterator[np.ndarray]]:
    """The shape of an array in an npz, and its entries along the first axis, of which one is in the memory at a time.

    Raises:
        DataError: as :func:`load_npz`; or no such array, or not one of floating-point numbers in C order.
    """
    rows = _stream(path, name)
    return next(rows), rows


def _stream(path: Path, name: str) -> Iterator[Any]:
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as file:
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
