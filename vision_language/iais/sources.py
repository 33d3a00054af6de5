"""What others publish captions, boxes and region features in: COCO, Flickr30k, Karpathy's splits, bottom-up attention.

Images are matched across files by :func:`image_key`, the number that COCO and UNITER pad and prefix, else their name.
"""

from __future__ import annotations

import base64
import binascii
import csv
import json
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fairseq_ext.errors import DataError
from fairseq_ext.files import read_lines
from vision_language.iais.region_files import load_npz

__all__ = ["Regions", "image_key", "read_captions", "read_feature_tsv", "read_instances", "read_karpathy", "read_npz"]

SPLIT_NAMES = {"train": "train", "restval": "train", "val": "valid", "test": "test"}
"""Karpathy's splits; ``restval`` is the part of COCO's validation images that is trained on."""
NUMBERED = re.compile(r"(?:(?:COCO_(?:train|val|test)\d{4}|flickr30k)_)?(\d+)", re.IGNORECASE)
TSV_COLUMNS = {
    6: ("image_id", "width", "height", "num_boxes", "boxes", "features"),
    10: ("image_id", "height", "width", "", "confidence", "", "", "num_boxes", "boxes", "features"),
}
"""Bottom-up attention writes six columns, LXMERT ten."""


@dataclass(frozen=True)
class Regions:
    """The regions of an image: boxes ``(V, 4)`` in pixels, and what is known of them."""

    key: str
    width: float
    height: float
    boxes: np.ndarray
    labels: np.ndarray | None = None
    confidence: np.ndarray | None = None
    features: np.ndarray | None = None


def image_key(name: str | int) -> str:
    """``"391895"`` of 391895, ``COCO_val2014_000000391895.jpg`` and ``flickr30k_000000391895.npz``.

    Any other name, such as Flickr8k's ``1001773457_577c3a7d70.jpg``, is its own key, without the folder and the ending.
    """
    stem = str(name).replace("\\", "/").rpartition("/")[2]
    stem = re.sub(r"\.(jpe?g|png|npz)$", "", stem, flags=re.IGNORECASE)
    number = NUMBERED.fullmatch(stem)
    return str(int(number[1])) if number else stem


def _json(path: Path, *keys: str) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not a JSON file in UTF-8: {error}") from error
    for key in keys:
        if not isinstance(value, dict) or not isinstance(value.get(key), list):
            raise DataError(f"{path}: no list {key!r} in it")
    return value


def _field(path: Path, place: str, value: Any, key: str, kind: type | tuple[type, ...]) -> Any:
    if not isinstance(value, dict) or not isinstance(value.get(key), kind):
        raise DataError(f"{path}: {place}: no {key!r}, or not of the expected form")
    return value[key]


def read_captions(path: str | Path) -> dict[str, list[str]]:
    """The captions of each image, in their order, from any of

    - COCO's ``captions_*.json``;
    - lines ``IMAGE.jpg#0 TAB caption`` (Flickr30k's ``results_20130124.token``);
    - a csv whose header names an image column (``image``, ``image_name`` or ``filename``) and a caption column
      (``caption`` or ``comment``), separated by commas or ``|``.
    """
    path = Path(path)
    captions: dict[str, list[str]] = defaultdict(list)
    if path.suffix == ".json":
        for number, found in enumerate(_json(path, "annotations")["annotations"]):
            place = f"annotation {number}"
            name = _field(path, place, found, "image_id", (int, str))
            captions[image_key(name)].append(_field(path, place, found, "caption", str).strip())
        return captions
    lines = read_lines(path)
    first, start = next(lines, ("", str(path)))
    if "\t" in first:
        for line, origin in ((first, start), *lines):
            name, tab, caption = line.partition("\t")
            if not tab or not re.search(r"#\d+$", name):
                raise DataError(f"{origin}: a line is IMAGE.jpg#NUMBER TAB caption")
            captions[image_key(name.rpartition("#")[0])].append(caption.strip())
        return captions
    separator = "|" if "|" in first else ","
    columns = [name.strip() for name in first.split(separator)]
    image = next((columns.index(name) for name in ("image", "image_name", "filename") if name in columns), None)
    caption_column = next((columns.index(name) for name in ("caption", "comment") if name in columns), None)
    if image is None or caption_column is None:
        raise DataError(f"{start}: neither IMAGE.jpg#0 TAB caption nor a csv header with image and caption: {first!r}")
    for line, origin in lines:
        row = next(csv.reader([line], delimiter=separator))
        if len(row) != len(columns):
            raise DataError(f"{origin}: {len(row)} columns, the header has {len(columns)}")
        captions[image_key(row[image].strip())].append(row[caption_column].strip())
    return captions


def read_karpathy(path: str | Path) -> tuple[dict[str, str], dict[str, list[str]]]:
    """The split (train, valid or test) and the captions of each image in a ``dataset_{flickr30k,coco}.json``."""
    path = Path(path)
    splits, captions = {}, {}
    for number, image in enumerate(_json(path, "images")["images"]):
        place = f"image {number}"
        split = _field(path, place, image, "split", str)
        if split not in SPLIT_NAMES:
            raise DataError(f"{path}: {place}: split {split!r} is not one of {', '.join(SPLIT_NAMES)}")
        key = image_key(image["cocoid"] if "cocoid" in image else _field(path, place, image, "filename", str))
        splits[key] = SPLIT_NAMES[split]
        sentences = _field(path, place, image, "sentences", list)
        captions[key] = [_field(path, f"{place}: sentence", sentence, "raw", str).strip() for sentence in sentences]
    return splits, captions


def read_instances(path: str | Path) -> tuple[list[str], dict[str, Regions]]:
    """Class names by COCO's category ids, and the human boxes of each image, from ``instances_*.json``.

    Boxes around crowds are left out: they cover many things at once.
    """
    path = Path(path)
    value = _json(path, "images", "annotations", "categories")
    categories = {
        _field(path, "category", category, "id", int): _field(path, "category", category, "name", str)
        for category in value["categories"]
    }
    places = {category: place for place, category in enumerate(sorted(categories))}
    boxes: dict[Any, list[list[float]]] = defaultdict(list)
    for number, found in enumerate(value["annotations"]):
        place = f"annotation {number}"
        image, box = _field(path, place, found, "image_id", (int, str)), _field(path, place, found, "bbox", list)
        category = _field(path, place, found, "category_id", int)
        if category not in places or len(box) != 4 or not all(isinstance(side, (int, float)) for side in box):
            raise DataError(f"{path}: {place}: bbox must be four numbers and category_id one of the categories")
        if not found.get("iscrowd"):
            boxes[image].append([*box, places[category]])
    images = {}
    for number, image in enumerate(value["images"]):
        name, width, height = (_field(path, f"image {number}", image, key, int) for key in ("id", "width", "height"))
        table = np.array(boxes[name], dtype=np.float64).reshape(-1, 5)
        corners = np.concatenate([table[:, :2], table[:, :2] + table[:, 2:4]], 1)
        images[image_key(name)] = Regions(image_key(name), width, height, corners, table[:, 4].astype(np.int64))
    return [categories[category] for category in sorted(categories)], images


def read_feature_tsv(path: str | Path) -> Iterator[Regions]:
    """Images of a bottom-up-attention tsv: boxes and features as base64 of float32, six columns or LXMERT's ten."""
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
        yield Regions(image_key(row["image_id"]), width, height, boxes, None, confidence, features)


def _decoded(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text, validate=True), dtype="<f4")


def read_npz(path: str | Path) -> Regions:
    """An image of UNITER's feature archives: ``features``, ``norm_bb`` (fractions) and, where there is one, ``conf``.

    They hold no image size, so boxes stay fractions of an image of 1 x 1.
    """
    path = Path(path)
    arrays = load_npz(path)
    for name in ("features", "norm_bb"):
        if name not in arrays or arrays[name].ndim != 2 or len(arrays[name]) != len(arrays["features"]):
            raise DataError(f"{path}: no array {name!r} with a row for each region")
    confidence = arrays["conf"].reshape(-1).astype(np.float64) if "conf" in arrays else None
    boxes = arrays["norm_bb"][:, :4].astype(np.float64)
    if boxes.shape[1] != 4 or (confidence is not None and len(confidence) != len(boxes)):
        raise DataError(f"{path}: norm_bb must have four columns or more, conf a number for each region")
    return Regions(image_key(path.name), 1, 1, boxes, None, confidence, arrays["features"])
