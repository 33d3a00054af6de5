"""What others publish boxes and region features in: COCO's instances, bottom-up attention as tsv or npz."""

from __future__ import annotations

import base64
import binascii
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fairseq_ext.training.errors import DataError
from fairseq_ext.training.files import read_lines
from vision_language.iais.region_files import load_npz
from vision_language.iais.sources import field, image_key, read_lists

__all__ = ["Regions", "read_feature_tsv", "read_instances", "read_npz"]

TSV_COLUMNS = {
    6: ("image_id", "width", "height", "num_boxes", "boxes", "features"),
    10: ("image_id", "height", "width", "", "confidence", "", "", "num_boxes", "boxes", "features"),
}
"""Bottom-up attention writes six columns, LXMERT ten."""


@dataclass(frozen=True)
class Regions:
    """The regions of an image: boxes ``(V, 4)`` in pixels, and what is known of them.

    Raises:
        DataError: a number that is not finite, or an image without size.
    """

    key: str
    width: float
    height: float
    boxes: np.ndarray
    origin: str
    """The file, and the place in it, for messages."""
    labels: np.ndarray | None = None
    confidence: np.ndarray | None = None
    features: np.ndarray | None = None

    def __post_init__(self) -> None:
        if not (0 < self.width < np.inf and 0 < self.height < np.inf):
            raise DataError(f"{self.origin}: an image of {self.width} x {self.height}")
        for name in ("boxes", "confidence", "features"):
            array = getattr(self, name)
            if array is not None and not np.isfinite(array).all():
                raise DataError(f"{self.origin}: {name} of image {self.key} are not all finite numbers")


def read_instances(path: str | Path) -> tuple[list[str], dict[str, Regions]]:
    """Class names by COCO's category ids, and the human boxes of each image, from ``instances_*.json``.

    Boxes around crowds are left out: they cover many things at once.
    """
    path = Path(path)
    value = read_lists(path, "images", "annotations", "categories")
    categories = {
        field(path, "category", category, "id", int): field(path, "category", category, "name", str)
        for category in value["categories"]
    }
    places = {category: place for place, category in enumerate(sorted(categories))}
    boxes: dict[Any, list[list[float]]] = defaultdict(list)
    for number, found in enumerate(value["annotations"]):
        place = f"annotation {number}"
        image, box = field(path, place, found, "image_id", (int, str)), field(path, place, found, "bbox", list)
        category = field(path, place, found, "category_id", int)
        if category not in places or len(box) != 4 or not all(isinstance(side, (int, float)) for side in box):
            raise DataError(f"{path}: {place}: bbox must be four numbers and category_id one of the categories")
        if not found.get("iscrowd"):
            boxes[image].append([*box, places[category]])
    images = {}
    for number, image in enumerate(value["images"]):
        name, width, height = (field(path, f"image {number}", image, key, int) for key in ("id", "width", "height"))
        table = np.array(boxes[name], dtype=np.float64).reshape(-1, 5)
        corners = np.concatenate([table[:, :2], table[:, :2] + table[:, 2:4]], 1)
        labels, origin = table[:, 4].astype(np.int64), f"{path}: image {number}"
        images[image_key(name)] = Regions(image_key(name), width, height, corners, origin, labels)
    return [categories[category] for category in sorted(categories)], images


def read_feature_tsv(path: str | Path) -> Iterator[Regions]:
    """Images of a bottom-up-attention tsv: boxes and features as base64 of float32, six columns or LXMERT's ten."""
    origin = ""
    for line, origin in read_lines(path):
        values = line.split("\t")
        if len(values) not in TSV_COLUMNS:
            raise DataError(f"{origin}: {len(values)} columns; bottom-up attention has 6, LXMERT 10")
        row = dict(zip(TSV_COLUMNS[len(values)], values, strict=True))
        try:
            width, height, count = float(row["width"]), float(row["height"]), int(row["num_boxes"])
            boxes = _decoded(row["boxes"]).reshape(count, 4)
            features = _decoded(row["features"]).reshape(count, -1)
            confidence = _decoded(row["confidence"]).reshape(count) if "confidence" in row else None
        except (ValueError, binascii.Error) as error:
            raise DataError(f"{origin}: cannot be decoded: {error}") from error
        yield Regions(image_key(row["image_id"]), width, height, boxes, origin, None, confidence, features)
    if not origin:
        raise DataError(f"{path}: no image in it")


def _decoded(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text, validate=True), dtype="<f4")


def read_npz(path: str | Path) -> Regions:
    """An image of a feature archive, of one of two forms. Arrays with other names are not looked at.

    - UNITER's: ``features``, ``norm_bb`` (fractions) and, where there is one, ``conf``. They hold no image size, so
      boxes stay fractions of an image of 1 x 1.
    - bottom-up-attention.pytorch's: ``x``, ``bbox`` (pixels), ``image_w``, ``image_h``; a transposed ``x``, as in older
      ones, is turned. Their confidence lies in a pickled ``info``, which could run code.
    """
    path = Path(path)
    arrays = load_npz(path, "features", "norm_bb", "conf", "x", "bbox", "image_w", "image_h")
    if "x" in arrays:
        return _detectron(path, arrays)
    for name in ("features", "norm_bb"):
        if name not in arrays or arrays[name].ndim != 2 or len(arrays[name]) != len(arrays["features"]):
            raise DataError(f"{path}: no array {name!r} with a row for each region")
    confidence = _numbers(path, "conf", arrays["conf"]).reshape(-1).astype(np.float64) if "conf" in arrays else None
    boxes = _numbers(path, "norm_bb", arrays["norm_bb"])[:, :4].astype(np.float64)
    if boxes.shape[1] != 4 or (confidence is not None and len(confidence) != len(boxes)):
        raise DataError(f"{path}: norm_bb must have four columns or more, conf a number for each region")
    features = _numbers(path, "features", arrays["features"])
    return Regions(image_key(path.name), 1, 1, boxes, str(path), None, confidence, features)


def _detectron(path: Path, arrays: dict[str, np.ndarray]) -> Regions:
    for name, dimensions in (("x", 2), ("bbox", 2), ("image_w", 0), ("image_h", 0)):
        if name not in arrays or arrays[name].squeeze().ndim > dimensions or arrays[name].ndim < dimensions:
            raise DataError(f"{path}: no array {name!r} of {dimensions} dimensions")
        _numbers(path, name, arrays[name])
    features, boxes = arrays["x"], arrays["bbox"]
    if len(features) != len(boxes):
        features = features.T
    if boxes.shape[1] != 4 or len(features) != len(boxes):
        raise DataError(f"{path}: x {arrays['x'].shape} and bbox {boxes.shape} must have a row for each region")
    width, height = (float(arrays[name].item()) for name in ("image_w", "image_h"))
    features = np.ascontiguousarray(features, dtype=np.float32)
    return Regions(image_key(path.name), width, height, boxes.astype(np.float64), str(path), features=features)


def _numbers(path: Path, name: str, array: np.ndarray) -> np.ndarray:
    if array.dtype.kind not in "fiu" or (name in ("x", "features") and array.dtype.kind != "f"):
        raise DataError(f"{path}: array {name!r} is of {array.dtype}, not of numbers")
    return array
