"""What is prepared: the captions of each split by image, and the regions of the images one after the other."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fairseq_ext.regions.arrays import load_npz, read_array
from fairseq_ext.regions.names import image_key
from fairseq_ext.regions.region_files import FeatureFiles, Record, category_names, read_records
from fairseq_ext.regions.sources import Regions
from fairseq_ext.training.errors import DataError

__all__ = ["SPLITS", "Source", "read_source"]

SPLITS = ("train", "valid", "test")
GRIDS = "grid_features.npz"


@dataclass
class Source:
    """Images with captions.

    Attributes:
        captions: of each image by its key, by split.
        regions: of all images.
        categories: class names, where boxes have classes.
        grid: rows and columns, where the vectors are of a grid.
    """

    captions: dict[str, dict[str, tuple[str, ...]]]
    regions: Iterator[Regions]
    categories: list[str] | None = None
    grid: tuple[int, ...] = ()


def read_source(folder: Path, grid: tuple[int, ...] = (), language: str = "") -> Source:
    """A folder of the region format, or with vectors of grids in ``grid_features.npz``."""
    archive = folder / GRIDS
    names = None if archive.is_file() else category_names(folder)
    records: dict[str, list[Record]] = {}
    for split in SPLITS:
        path = next((p for p in (folder / f"{split}.jsonl", folder / f"{split}.jsonl.gz") if p.is_file()), None)
        if path is None:
            raise DataError(f"{folder}: neither {split}.jsonl nor {split}.jsonl.gz in it")
        labels = None if names is None else len(names)
        records[split] = list(read_records(path, labels, True, need_boxes=not archive.is_file(), language=language))
    captions = {split: {str(r.image_id): r.captions for r in lines} for split, lines in records.items()}
    everything = [record for lines in records.values() for record in lines]
    if archive.is_file():
        features = _grids(archive)
        grid = grid or _square(next(iter(features.values())))
        return Source(captions, (_grid_regions(record, features, grid) for record in everything), grid=grid)
    files = FeatureFiles(folder)
    return Source(captions, (_regions(record, files) for record in everything), names)


def _grids(path: Path) -> dict[str, np.ndarray]:
    arrays = load_npz(path, "features", "names")
    return {image_key(name): array for name, array in zip(arrays["names"].tolist(), arrays["features"], strict=True)}


def _square(array: np.ndarray) -> tuple[int, int]:
    side = math.isqrt(len(array))
    if side**2 != len(array):
        raise DataError(f"{len(array)} cells are no square: --grid ROWS COLUMNS")
    return side, side


def _grid_regions(record: Record, features: dict[str, np.ndarray], grid: tuple[int, ...]) -> Regions:
    array = features[image_key(record.file)]
    rows, columns = grid
    top, left = np.divmod(np.arange(rows * columns), columns)
    corners = np.stack([left / columns, top / rows, (left + 1) / columns, (top + 1) / rows], 1)
    boxes = corners * [record.width, record.height, record.width, record.height]
    return Regions(str(record.image_id), record.width, record.height, boxes, record.origin, features=array)


def _regions(record: Record, files: FeatureFiles) -> Regions:
    found = files.find(record)
    features = read_array(found) if isinstance(found, Path) else found
    regions = Regions(str(record.image_id), record.width, record.height, record.boxes, record.origin)
    return replace(regions, labels=record.labels, confidence=record.confidence, features=features)
