"""The region format: one JSON line per image, checked in full; and where the feature vectors of the regions lie.

::

    {"image_id": 139, "width": 640, "height": 426, "captions": ["A room", ...],
     "boxes": [[236, 142, 261, 212, 58], ...], "confidence": [0.98, ...]}

``boxes`` are ``[x1, y1, x2, y2]`` in pixels, or ``[x1, y1, x2, y2, label]`` with the number of a line of
``categories.txt`` beside the file, counted from 0. ``confidence``, optional, is a detector's number for each box.
Feature vectors, optional, lie beside the file, a row for each box: ``features/IMAGE_ID.npy``,
``features/IMAGE_ID.npz`` (its array ``features``) or, for small sets, one ``features.npz`` with an array for each image
id. Other keys are ignored.

Captions may also be a mapping from languages to a caption, or to a list of them. Where vectors are of a grid, an image
needs no boxes and no size, and may be named by ``image`` or ``file`` alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fairseq_ext.regions.boxes import check_boxes
from fairseq_ext.regions.names import few, image_key, least
from fairseq_ext.training.arrays import load_npz, read_array
from fairseq_ext.training.errors import DataError
from fairseq_ext.training.files import read_json_lines, read_lines
from fairseq_ext.training.json_values import is_finite
from fairseq_ext.training.options import find_split

__all__ = ["FeatureFiles", "Record", "category_names", "read_records", "split_file", "split_name"]


@dataclass(frozen=True)
class Record:
    """One line of the region format."""

    image_id: int | str
    width: float
    height: float
    boxes: np.ndarray
    """(V, 4) float64, pixels; V is 0 where there need be none."""
    labels: np.ndarray | None
    """(V,) int64."""
    confidence: np.ndarray | None
    """(V,) float64."""
    captions: tuple[str, ...]
    file: str
    """Of the image, as ``image`` or ``file`` has it; else empty."""
    origin: str
    """File and line, for messages."""


def split_file(folder: Path, split: str) -> Path:
    """``SPLIT.jsonl`` or ``SPLIT.jsonl.gz``, by any name of the split.

    Raises:
        DataError: there is none, or more than one.
    """
    name = split_name(folder, split)
    if name is None:
        raise DataError(f"{folder}: there is no {split}.jsonl or {split}.jsonl.gz in it")
    return folder / name


def split_name(folder: Path, split: str) -> str | None:
    """The name of :func:`split_file`; None where there is no such file."""
    return find_split(
        folder, split, lambda name: [f for f in (f"{name}.jsonl", f"{name}.jsonl.gz") if (folder / f).is_file()]
    )


def category_names(folder: Path) -> list[str] | None:
    """The class names in ``categories.txt``, or None where there is no such file."""
    path = folder / "categories.txt"
    if not path.is_file():
        return None
    names: list[str] = []
    for line, origin in read_lines(path):
        if origin != f"{path}:{len(names) + 1}":
            raise DataError(f"{path}:{len(names) + 1}: a blank line; the class numbers count the lines, from 0")
        names.append(line.strip())
    if not names or len(set(names)) != len(names):
        raise DataError(f"{path}: expected different class names, one a line")
    return names


def read_records(
    path: Path, num_labels: int | None, need_captions: bool, *, need_boxes: bool = True, language: str | None = ""
) -> Iterator[Record]:
    """The checked images of one file.

    Args:
        path: ``.jsonl`` or ``.jsonl.gz``.
        num_labels: number of region classes, where boxes must have a label.
        need_captions: refuse images without captions.
        need_boxes: refuse images without boxes; else boxes and labels are not looked at.
        language: of the captions, where they are in several; None: captions are not read.

    Raises:
        DataError: names the file and the line.
    """
    seen: dict[str, str] = {}
    for image, origin in read_json_lines(path):
        value = _mapping(image, origin, need_boxes)
        boxes, labels = _boxes(value, origin, num_labels) if need_boxes else (np.zeros((0, 4)), None)
        record = Record(
            value["image_id"],
            value["width"],
            value["height"],
            boxes,
            labels,
            _confidence(value, origin) if need_boxes else None,
            _captions(value, origin, need_captions, language),
            value.get("image") or value.get("file") or "",
            origin,
        )
        before = seen.setdefault(str(record.image_id), origin)
        if before != origin:
            raise DataError(f"{origin}: image_id {record.image_id} is also at {before}")
        yield record


def _mapping(value: Any, origin: str, need_boxes: bool) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"{origin}: an image is a mapping, got {type(value).__name__}")
    for key in ("image", "file"):
        if not isinstance(value.get(key, ""), str):
            raise DataError(f"{origin}: {key} must be the name of a file, got {value[key]!r}")
    if not need_boxes:
        value = {"width": 1, "height": 1} | value
        if name := value.get("image") or value.get("file"):
            value = {"image_id": image_key(name)} | value
    for key in ("image_id", "width", "height", *(["boxes"] if need_boxes else [])):
        if key not in value:
            raise DataError(f"{origin}: no {key!r}")
    name = value["image_id"]
    if isinstance(name, bool) or not isinstance(name, (int, str)) or name == "":
        raise DataError(f"{origin}: image_id must be a whole number or a string, got {name!r}")
    for key in ("width", "height"):
        if not is_finite(value[key]) or value[key] <= 0:
            raise DataError(f"{origin}: {key} must be a number above 0, got {value[key]!r}")
    return value


def _boxes(value: Mapping[str, Any], origin: str, num_labels: int | None) -> tuple[np.ndarray, np.ndarray | None]:
    rows = value["boxes"]
    if not isinstance(rows, list) or not rows:
        raise DataError(f"{origin}: an image without regions; boxes must be a list with at least one box")
    for box in rows:
        if not isinstance(box, list) or len(box) not in (4, 5) or not all(map(is_finite, box)):
            raise DataError(f"{origin}: a box is [x1, y1, x2, y2] or [x1, y1, x2, y2, label], got {box!r}")
        if num_labels is None and len(box) == 5:
            raise DataError(f"{origin}: box {box!r} has a label, but there is no categories.txt beside the file")
        if num_labels is not None and len(box) == 4:
            raise DataError(f"{origin}: box {box!r} has no label, but there is a categories.txt beside the file")
        if num_labels is not None and box[4] not in range(num_labels):
            raise DataError(f"{origin}: label {box[4]!r} is not one of the {num_labels} in categories.txt, from 0")
    table = np.array(rows, dtype=np.float64)
    boxes = check_boxes(table[:, :4], value["width"], value["height"], origin)
    return boxes, None if num_labels is None else table[:, 4].astype(np.int64)


def _captions(value: Mapping[str, Any], origin: str, needed: bool, language: str | None) -> tuple[str, ...]:
    captions = value.get("captions", []) if language is not None else []
    if isinstance(captions, dict):
        if not language and captions:
            raise DataError(f"{origin}: captions in {len(captions)} languages; --language chooses one: {few(captions)}")
        captions = captions.get(language, [])
        captions = [captions] if isinstance(captions, str) else captions
    elif language:
        raise DataError(f"{origin}: captions in no named language, but {language!r} is chosen")
    if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
        raise DataError(f"{origin}: captions must be a list of strings")
    if needed and not captions:
        raise DataError(f"{origin}: image {value['image_id']} has no captions{f' in {language!r}' * bool(language)}")
    for caption in captions:
        if not any(map(str.isalnum, caption)):
            raise DataError(f"{origin}: a caption without words: {caption!r}")
    return tuple(captions)


def _confidence(value: Mapping[str, Any], origin: str) -> np.ndarray | None:
    confidence = value.get("confidence")
    if confidence is None:
        return None
    if not isinstance(confidence, list) or len(confidence) != len(value["boxes"]):
        raise DataError(f"{origin}: confidence must be a list with a number for each of {len(value['boxes'])} boxes")
    if not all(is_finite(number) and 0 <= number <= 1 for number in confidence):
        raise DataError(f"{origin}: a confidence is a number from 0 to 1")
    return np.array(confidence, dtype=np.float64)


class FeatureFiles:
    """Where the feature vectors of the images in ``folder`` lie; of an image at a time, or all in ``features.npz``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "features"
        self.archive = folder / "features.npz"
        self.one_by_one = self.folder.exists()
        if self.one_by_one and self.archive.exists():
            raise DataError(f"{folder}: both {self.folder.name} and {self.archive.name} in it; which is meant?")
        self.arrays = load_npz(self.archive) if self.archive.exists() else None
        self.size = 0

    def find(self, record: Record) -> Path | np.ndarray | None:
        """The features of an image, or their file, after a check of their form; None in a folder without features.

        Raises:
            DataError: missing, not a row of finite size for each box, or not of the size of the images before.
        """
        features = self._find(record)
        if features is None:
            return None
        array = read_array(features, header_only=True) if isinstance(features, Path) else features
        rows = len(record.boxes)
        if array.dtype.kind != "f" or array.ndim != 2 or array.shape[0] != rows or array.shape[1] == 0:
            wanted = f"{rows} rows of floating-point numbers, one for each box"
            raise DataError(
                f"{record.origin}: features of image {record.image_id} are {array.dtype} {array.shape}, not {wanted}"
            )
        if self.size and array.shape[1] != self.size:
            raise DataError(
                f"{record.origin}: features of image {record.image_id} have {array.shape[1]} numbers, "
                f"those before have {self.size}"
            )
        self.size = array.shape[1]
        return features

    def _find(self, record: Record) -> Path | np.ndarray | None:
        name = str(record.image_id)
        if self.arrays is not None:
            if name not in self.arrays:
                raise DataError(f"{record.origin}: {self.archive} has no array {name!r}; {least(self.arrays)} in it")
            return self.arrays[name]
        if not self.one_by_one:
            return None
        if Path(name).name != name:
            raise DataError(f"{record.origin}: image_id {name!r} cannot name a feature file")
        for ending in (".npy", ".npz"):
            if (path := self.folder / f"{name}{ending}").is_file():
                return path
        there = least(path.name for path in self.folder.glob("*"))
        raise DataError(f"{record.origin}: missing feature file {self.folder / name}.npy or .npz; {there} in there")
