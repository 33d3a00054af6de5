"""The two binary forms of small images: idx files and CIFAR batches."""

from __future__ import annotations

import io
import math
import pickle
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fairseq_ext.training.errors import DataError, first_line
from fairseq_ext.training.files import read_bytes
from vision_language.image_classification.image_set import ImageSet

__all__ = ["Splits", "cifar_splits", "idx_splits", "numbered"]

Splits = dict[str, Callable[[], ImageSet] | None]
"""The function that reads each split of a folder; None for a split that is not there."""

MAX_CLASSES = 1_000_000
"""The most classes that data without class names may have; ImageNet has 21,841."""
ARRAYS = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}
"""The only names that a pickle may import: those that NumPy's arrays need."""
BATCHES = {f"data_batch_{number}" for number in range(1, 6)}
"""The files with the training images of CIFAR-10."""


def numbered(labels: np.ndarray, origin: str) -> tuple[str, ...]:
    """The classes' numbers as their names, for data without class names.

    Args:
        labels: class number of each image.
        origin: where the labels are from, for messages.

    Raises:
        DataError: a number of ``MAX_CLASSES`` or more.
    """
    count = int(labels.max(initial=0)) + 1
    if count > MAX_CLASSES:
        raise DataError(f"{origin}: class number {count - 1}; they count from 0 to {MAX_CLASSES - 1} at most")
    return tuple(map(str, range(count)))


def _only(splits_of: Callable[[Path], Splits], folder: Path, *below: str) -> Splits:
    """The splits of the one place, a folder or one below it, that holds such files: two places are never mixed.

    Raises:
        DataError: two places hold such files.
    """
    candidates = [folder, *sorted(place for pattern in below for place in folder.glob(pattern))]
    places = {place: splits for place in candidates if (splits := splits_of(place))}
    if len(places) > 1:
        first, second, *_ = places
        raise DataError(f"{folder}: both {first} and {second} hold images: name one of them")
    return next(iter(places.values()), {})


def idx_splits(folder: Path) -> Splits:
    return _only(_idx_splits, folder, "raw", "*/raw")


def _idx_splits(place: Path) -> Splits:
    splits: Splits = {}
    for split, stem in {"train": "train", "valid": "valid", "test": "t10k"}.items():
        images = _either(place / f"{stem}-images-idx3-ubyte")
        labels = _either(place / f"{stem}-labels-idx1-ubyte")
        if images and not labels:
            raise DataError(f"{images}: its labels, {stem}-labels-idx1-ubyte, are not beside it")
        if images and labels:
            splits[split] = partial(_from_idx, images, labels)
    return splits


def _either(path: Path) -> Path | None:
    return next((file for file in (path, path.with_name(f"{path.name}.gz")) if file.is_file()), None)


def _from_idx(images: Path, labels: Path) -> ImageSet:
    pixels, classes = _read_idx(images, 3), _read_idx(labels, 1)
    if len(pixels) != len(classes):
        raise DataError(f"{labels}: {len(classes)} labels for the {len(pixels)} images of {images.name}")
    return ImageSet(pixels, classes.astype(np.int64), numbered(classes, str(labels)), str(images))


def _read_idx(path: Path, dimensions: int) -> np.ndarray:
    data, header = read_bytes(path), 4 + 4 * dimensions
    if len(data) < header or data[:4] != bytes((0, 0, 8, dimensions)):
        raise DataError(
            f"{path}: not an idx file of bytes with {dimensions} dimensions (it begins {data[:4].hex(' ')})"
        )
    shape = struct.unpack(f">{dimensions}I", data[4:header])
    if len(data) - header != math.prod(shape):
        raise DataError(f"{path}: {len(data) - header} bytes for {' x '.join(map(str, shape))}: truncated or damaged")
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape).copy()


class _ArraysOnly(pickle.Unpickler):
    """Reads pickles of NumPy arrays in plain containers; every other name in them is refused."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ARRAYS:
            raise pickle.UnpicklingError(f"it holds {module}.{name}, which could run code")
        return super().find_class(module, name)


def cifar_splits(folder: Path) -> Splits:
    return _only(_cifar_splits, folder, "cifar-*-python", "cifar-*-batches-py")


def _cifar_splits(place: Path) -> Splits:
    batches = sorted(place.glob("data_batch_[0-9]"))
    files = {"train": batches or [place / "train"], "test": [place / ("test_batch" if batches else "test")]}
    meta = place / ("batches.meta" if batches else "meta")
    if not (meta.is_file() and all(file.is_file() for part in files.values() for file in part)):
        return {}
    if missing := BATCHES - {file.name for file in batches} if batches else ():
        raise DataError(f"{place}: has no {min(missing)}")
    return {split: partial(_from_cifar, part, meta) for split, part in files.items()}


def _from_cifar(files: list[Path], meta: Path) -> ImageSet:
    names = _unpickled(meta)
    key = "fine_label_names" if "fine_label_names" in names else "label_names"
    if key not in names:
        raise DataError(f"{meta}: has no {key}")
    parts = [_unpickled(file) for file in files]
    for file, part in zip(files, parts, strict=True):
        labels = part.get("fine_labels", part.get("labels"))
        data = part.get("data")
        if labels is None or not isinstance(data, np.ndarray) or data.shape != (len(labels), 3072):
            raise DataError(f"{file}: not a CIFAR batch of rows of 3072 bytes with labels")
    pixels = np.concatenate([part["data"] for part in parts]).astype(np.uint8, copy=False)
    gold = np.concatenate([np.asarray(part.get("fine_labels", part.get("labels"))) for part in parts])
    images = np.ascontiguousarray(pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    return ImageSet(images, gold.astype(np.int64), tuple(map(str, names[key])), str(files[0].parent))


def _unpickled(path: Path) -> dict[str, Any]:
    try:
        content = _ArraysOnly(io.BytesIO(path.read_bytes()), encoding="latin1").load()
    except pickle.UnpicklingError as error:
        raise DataError(f"{path}: refused: {first_line(error)}") from error
    except Exception as error:  # damage makes pickle raise many types
        raise DataError(f"{path}: damaged, or no CIFAR batch ({type(error).__name__})") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: not a CIFAR batch")
    return content
