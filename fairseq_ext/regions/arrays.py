"""Arrays in npy and npz files, read without running what is in them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fairseq_ext.training.errors import DataError

__all__ = ["load_npz", "read_array"]

POINTER = b"version https://git-lfs"


def read_array(path: Path, name: str = "features", header_only: bool = False) -> np.ndarray:
    """What an npy holds, or the array ``name`` of an npz; ``header_only`` does not read the numbers of an npy.

    Raises:
        DataError: no such file, a damaged one, or an array of objects, whose reader would run code.
    """
    if path.suffix == ".npz":
        arrays = load_npz(path, name)
        if name not in arrays:
            raise DataError(f"{path}: no array {name!r} in it")
        return arrays[name]
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


def _reason(path: Path, error: Exception) -> str:
    try:
        with open(path, "rb") as file:
            if file.read(len(POINTER)) == POINTER:
                return "it is the pointer that Git LFS leaves in place of a file; `git lfs pull` fetches the file"
    except OSError:
        pass
    return " ".join(str(error).split()) or type(error).__name__
