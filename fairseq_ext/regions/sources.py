"""What others publish: captions and splits of COCO, Flickr30k and Karpathy; boxes and features of COCO, UNITER, LXMERT.

Images are matched across files by :func:`image_key`, the number that COCO and UNITER pad and prefix, else their name.
"""

from __future__ import annotations

import base64
import binascii
import csv
import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fairseq_ext.regions.arrays import load_npz
from fairseq_ext.regions.names import image_key
from fairseq_ext.training.errors import DataError
from fairseq_ext.training.files import read_json, read_lines

__all__ = ["Regions", "read_captions", "read_feature_tsv", "read_instances", "read_karpathy", "read_npz"]

logger = logging.getLogger(__name__)

SPLIT_NAMES = {"train": "train", "restval": "train", "val": "valid", "test": "test"}
"""Karpathy's splits; ``restval`` is the part of COCO's validation images that is trained on."""
COLUMNS = (("image", "image_name", "filename"), ("caption", "comment"))
MAX_BROKEN = 10


def _read_lists(path: Path, *keys: str) -> dict[str, Any]:
    """A JSON file that holds a list under each of ``keys``."""
    value = read_json(path)
    for key in keys:
        if not isinstance(value, dict) or not isinstance(value.get(key), list):
            raise DataError(f"{path}: no list {key!r} in it")
    return value


def _field(path: Path, place: str, value: Any, key: str, kind: type | tuple[type, ...]) -> Any:
    """``value[key]``, checked to be of ``kind``; ``place`` says where in the file it stands."""
    if not isinstance(value, dict) or not isinstance(value.get(key), kind):
        raise DataError(f"{path}: {place}: no {key!r}, or not of the expected form")
    return value[key]


def read_captions(path: str | Path) -> dict[str, list[str]]:
    """The captions of each image, in their order, from any of

    - COCO's ``captions_*.json``;
    - lines ``IMAGE.jpg#0 TAB caption`` (Flickr30k's ``results_20130124.token``);
    - a csv whose header names an image column (``image``, ``image_name`` or ``filename``) and a caption column
      (``caption`` or ``comment``), separated by commas, tabs or ``|``.

    Up to ten lines of another form are skipped and named in the log: Kaggle's Flickr30k has one.

    Raises:
        DataError: none of these, or more broken lines.
    """
    path = Path(path)
    captions: dict[str, list[str]] = defaultdict(list)
    if path.suffix == ".json":
        for number, annotation in enumerate(_read_lists(path, "annotations")["annotations"]):
            place = f"annotation {number}"
            name = _field(path, place, annotation, "image_id", (int, str))
            captions[image_key(name)].append(_field(path, place, annotation, "caption", str).strip())
        return captions
    lines = read_lines(path, keep_blank=True)  # a quoted caption may have blank lines
    first, start = next((line for line in lines if line[0].strip()), ("", str(path)))
    separator = next((sign for sign in "|\t," if sign in first), ",")
    if re.match(r"[^\t]*#\d+\t", first):
        rows = _token_rows([(first, start), *lines])
    else:
        columns = [name.strip().strip('"') for name in first.split(separator)]
        places = [next((columns.index(name) for name in names if name in columns), None) for names in COLUMNS]
        if None in places:
            raise DataError(
                f"{start}: neither IMAGE.jpg#0 TAB caption nor a csv header with image and caption: {first[:200]!r}"
            )
        rows = _csv_rows(lines, separator, len(columns), places)
    read, broken = 0, []
    for row in rows:
        if isinstance(row, DataError):
            broken.append(row)
            continue
        read += 1
        captions[image_key(row[0].strip())].append(" ".join(row[1].split()))
    if broken and (len(broken) > MAX_BROKEN or len(broken) >= read):
        raise DataError(f"{broken[0]}; {len(broken)} lines are broken")
    for error in broken:
        logger.warning("skipped: %s", error)
    return captions


def _token_rows(lines: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str] | DataError]:
    for line, origin in lines:
        name, tab, caption = line.partition("\t")
        if not line.strip():
            continue
        if not tab or not re.search(r"#\d+$", name):
            yield DataError(f"{origin}: a line is IMAGE.jpg#NUMBER TAB caption")
        else:
            yield name.rpartition("#")[0], caption


def _csv_rows(
    lines: Iterable[tuple[str, str]], separator: str, width: int, places: Sequence[Any]
) -> Iterator[tuple[str, str] | DataError]:
    """Image and caption of each row; for a broken row an error for each of its lines."""
    origins: list[str] = []

    def noted() -> Iterator[str]:
        for line, origin in lines:
            origins.append(origin)
            yield f"{line}\n"

    rows = csv.reader(noted(), delimiter=separator, strict=True)
    while True:
        origins.clear()
        try:
            row = next(rows)
            reason = "" if len(row) in (0, width) else f"{len(row)} columns, the header has {width}"
        except StopIteration:
            return
        except csv.Error as error:
            reason = str(error)
        if reason:
            yield from (DataError(f"{origin}: {reason}") for origin in list(origins))
        elif row:
            yield row[places[0]], row[places[1]]


def read_karpathy(path: str | Path) -> tuple[dict[str, str], dict[str, list[str]]]:
    """The split (train, valid or test) and the captions of each image in a ``dataset_{flickr30k,coco}.json``."""
    path = Path(path)
    splits, captions = {}, {}
    for number, image in enumerate(_read_lists(path, "images")["images"]):
        place = f"image {number}"
        split = _field(path, place, image, "split", str)
        if split not in SPLIT_NAMES:
            raise DataError(f"{path}: {place}: split {split!r} is not one of {', '.join(SPLIT_NAMES)}")
        key = image_key(image["cocoid"] if "cocoid" in image else _field(path, place, image, "filename", str))
        splits[key] = SPLIT_NAMES[split]
        sentences = _field(path, place, image, "sentences", list)
        captions[key] = [_field(path, f"{place}: sentence", sentence, "raw", str).strip() for sentence in sentences]
    return splits, captions


TSV_COLUMNS = {
    6: ("image_id", "width", "height", "num_boxes", "boxes", "features"),
    10: ("image_id", "height", "width", "", "confidence", "", "", "num_boxes", "boxes", "features"),
}
"""Bottom-up attention writes six columns, LXMERT ten."""


@dataclass(frozen=True)
class Regions:
    """The regions of an image: boxes ``(V, 4)`` in pixels, and what else describes them.

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
    value = _read_lists(path, "images", "annotations", "categories")
    categories = {
        _field(path, "category", category, "id", int): _field(path, "category", category, "name", str)
        for category in value["categories"]
    }
    places = {category: place for place, category in enumerate(sorted(categories))}
    boxes: dict[Any, list[list[float]]] = defaultdict(list)
    for number, annotation in enumerate(value["annotations"]):
        place = f"annotation {number}"
        image = _field(path, place, annotation, "image_id", (int, str))
        box = _field(path, place, annotation, "bbox", list)
        category = _field(path, place, annotation, "category_id", int)
        if category not in places or len(box) != 4 or not all(isinstance(side, (int, float)) for side in box):
            raise DataError(f"{path}: {place}: bbox must be four numbers and category_id one of the categories")
        if not annotation.get("iscrowd"):
            boxes[image].append([*box, places[category]])
    images = {}
    for number, image in enumerate(value["images"]):
        name, width, height = (_field(path, f"image {number}", image, key, int) for key in ("id", "width", "height"))
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
