"""JSON of COCO and of Karpathy: splits, captions, sizes of images, human boxes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from fairseq_ext.regions.boxes import Regions
from fairseq_ext.regions.names import image_key
from fairseq_ext.training.errors import DataError
from fairseq_ext.training.files import read_json

__all__ = ["read_annotations", "read_instances", "read_karpathy", "read_sizes"]

KARPATHYS_SPLITS = {"train": "train", "restval": "train", "val": "valid", "test": "test"}
"""Karpathy's splits; ``restval`` is the part of COCO's validation images that is trained on."""


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


def read_annotations(path: str | Path) -> dict[str, list[str]]:
    """The captions of each image in COCO's ``captions_*.json``."""
    path = Path(path)
    captions: dict[str, list[str]] = defaultdict(list)
    for number, annotation in enumerate(_read_lists(path, "annotations")["annotations"]):
        place = f"annotation {number}"
        name = _field(path, place, annotation, "image_id", (int, str))
        captions[image_key(name)].append(_field(path, place, annotation, "caption", str).strip())
    return captions


def read_karpathy(path: str | Path) -> tuple[dict[str, str], dict[str, list[str]]]:
    """The split (train, valid or test) and the captions of each image in a ``dataset_{flickr30k,coco}.json``."""
    path = Path(path)
    splits: dict[str, str] = {}
    captions: dict[str, list[str]] = {}
    for number, image in enumerate(_read_lists(path, "images")["images"]):
        place = f"image {number}"
        split = _field(path, place, image, "split", str)
        if split not in KARPATHYS_SPLITS:
            raise DataError(f"{path}: {place}: split {split!r} is not one of {', '.join(KARPATHYS_SPLITS)}")
        key = image_key(image["cocoid"] if "cocoid" in image else _field(path, place, image, "filename", str))
        if key in splits:
            raise DataError(f"{path}: {place}: {key} is there before, as {splits[key]}")
        splits[key] = KARPATHYS_SPLITS[split]
        sentences = _field(path, place, image, "sentences", list)
        captions[key] = [_field(path, f"{place}: sentence", sentence, "raw", str).strip() for sentence in sentences]
    return splits, captions


def read_sizes(paths: Iterable[str | Path]) -> dict[str, tuple[float, float]]:
    """Width and height of the images in COCO's ``captions_*.json``; of other files nothing."""
    sizes = {}
    for path in paths:
        value = read_json(path) if Path(path).suffix == ".json" else None
        images = value.get("images") if isinstance(value, dict) else None
        for image in images if isinstance(images, list) else []:
            width, height = (image.get(key) if isinstance(image, dict) else None for key in ("width", "height"))
            if isinstance(width, (int, float)) and isinstance(height, (int, float)) and "id" in image:
                sizes[image_key(image["id"])] = (width, height)
    return sizes


def read_instances(path: str | Path) -> tuple[list[str], dict[str, Regions]]:
    """Class names by COCO's category ids, and the human boxes of each image, from ``instances_*.json``.

    Boxes around crowds are left out, as they cover many things at once, and boxes without size (COCO has two).
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
        if not annotation.get("iscrowd") and min(box[2:]) > 0:
            boxes[image].append([*box, places[category]])
    images = {}
    for number, image in enumerate(value["images"]):
        name, width, height = (_field(path, f"image {number}", image, key, int) for key in ("id", "width", "height"))
        table = np.array(boxes[name], dtype=np.float64).reshape(-1, 5)
        corners = np.concatenate([table[:, :2], table[:, :2] + table[:, 2:4]], 1)
        labels, origin = table[:, 4].astype(np.int64), f"{path}: image {number}"
        images[image_key(name)] = Regions(image_key(name), width, height, corners, origin, labels)
    return [categories[category] for category in sorted(categories)], images
