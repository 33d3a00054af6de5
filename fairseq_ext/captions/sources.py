"""The input of ``prepare``: the captions of each image, its split, and where its regions are read from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fairseq_ext.regions.boxes import Regions
from fairseq_ext.regions.caption_files import read_captions
from fairseq_ext.regions.feature_files import FeatureSet, Images, open_features
from fairseq_ext.regions.json_files import read_instances, read_karpathy, read_sizes
from fairseq_ext.regions.names import few, image_key
from fairseq_ext.regions.region_files import FeatureFiles, Record, category_names, read_records, split_file
from fairseq_ext.training.arrays import read_array
from fairseq_ext.training.errors import DataError, OptionError
from fairseq_ext.training.files import read_json, read_json_lines
from fairseq_ext.training.options import SPLITS

__all__ = ["Source", "published_source", "region_source"]

GRIDS = "grid_features.npz"


@dataclass
class Source:
    """Images with captions.

    Attributes:
        captions: captions of each image, by its key.
        split_of: split of each image; empty if the splits are drawn.
        files: regions of the images, by the same keys.
        categories: class names, if boxes have classes.
        image_ids: identifiers of the images, if they are not the keys.
        left_out: counts of the input that cannot be used.
    """

    captions: Mapping[str, Sequence[str]]
    split_of: Mapping[str, str]
    files: Sequence[FeatureSet]
    categories: list[str] | None = None
    image_ids: Mapping[str, str] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)


def region_source(
    path: Path, features: Sequence[str] = (), kind: str = "", grid: tuple[int, ...] = (), language: str = ""
) -> Source:
    """Images of the region format: a folder of splits, or one file.

    Args:
        path: the folder or the file.
        features: files and folders that :func:`~fairseq_ext.regions.feature_files.open_features` reads. Default: the
            features beside the file, ``grid_features.npz`` or the vectors of the region format.
        kind: which of the two is taken, if both are there.
        grid: rows and columns.
        language: language of the captions.

    Raises:
        DataError: a bad or missing file, or an image that is in two splits.
    """
    folder = path if path.is_dir() else path.parent
    paths = {split: split_file(path, split) for split in SPLITS} if path.is_dir() else {"": path}
    places = [Path(place) for place in features] or _grid_places(folder, kind, grid)
    names = None if places else category_names(folder)
    records: dict[str, Record] = {}
    split_of: dict[str, str] = {}
    for split, file in paths.items():
        labels = None if names is None else len(names)
        for record in read_records(file, labels, False, need_boxes=not places, language=language):
            before = records.setdefault(str(record.image_id), record)
            if before is not record:
                raise DataError(f"{record.origin}: image_id {record.image_id} is also at {before.origin}")
            if split:
                split_of[str(record.image_id)] = split
    if language and not any(record.captions for record in records.values()):
        image, origin = next(read_json_lines(next(iter(paths.values()))))
        raise DataError(f"{path}: no caption in {language!r}; {origin} has {few(image.get('captions', ()))}")
    if places:
        return _with_files(records, split_of, places, grid)
    vectors = FeatureFiles(folder) if kind != "classes" else None
    captions = {key: record.captions for key, record in records.items()}
    files = FeatureSet(str(path), list(records), lambda wanted: _stored(records, vectors, wanted))
    return Source(captions, split_of, [files], names)


def _grid_places(folder: Path, kind: str, grid: tuple[int, ...]) -> list[Path]:
    archive, vectors = folder / GRIDS, folder / "features"
    if kind in ("regions", "classes"):
        return []
    if archive.is_file():
        if vectors.is_dir() and not kind:
            raise OptionError(f"--kind: {folder} has both {GRIDS} and {vectors.name}; is it grid or regions?")
        return [archive]
    return [vectors] if vectors.is_dir() and (kind == "grid" or grid) else []


def _stored(
    records: Mapping[str, Record], vectors: FeatureFiles | None, wanted: Callable[[str], bool]
) -> Iterator[Regions]:
    for key, record in records.items():
        if wanted(key):
            place = vectors.find(record) if vectors else None
            features = read_array(place) if isinstance(place, Path) else place
            size = record.width, record.height
            yield Regions(key, *size, record.boxes, record.origin, record.labels, record.confidence, features)


def _with_files(
    records: Mapping[str, Record], split_of: Mapping[str, str], places: Sequence[Path], grid: tuple[int, ...]
) -> Source:
    """Images whose regions are in files that name each image by its file or by its id."""
    sizes: dict[str, tuple[float, float]] = {}
    files = [open_features(place, Images(sizes, grid)) for place in places]
    present = {key for file in files for key in file.keys or ()}
    keys = {image_id: image_key(record.file or image_id) for image_id, record in records.items()}
    if not present & set(keys.values()):
        keys = {image_id: image_key(image_id) for image_id in records}
    captions: dict[str, Sequence[str]] = {}
    ids: dict[str, str] = {}
    for image_id, record in records.items():
        key = keys[image_id]
        if key in ids:
            raise DataError(f"{record.origin}: its file {key} is also that of {records[ids[key]].origin}")
        captions[key], ids[key] = record.captions, image_id
        if (record.width, record.height) != (1, 1):
            sizes[key] = (record.width, record.height)
    return Source(captions, {keys[image]: split for image, split in split_of.items()}, files, image_ids=ids)


def published_source(
    paths: Sequence[Path],
    splits: str = "",
    features: Sequence[str] = (),
    instances: Sequence[str] = (),
    grid: tuple[int, ...] = (),
) -> Source:
    """Captions of COCO, Flickr30k or Karpathy, with human boxes or files of features.

    Args:
        paths: files of captions, which are put together; Karpathy's file has splits of its own.
        splits: Karpathy's file, for the splits of other captions; images that it does not name are left out.
        features, instances, grid: as in :class:`~fairseq_ext.captions.prepare.PrepareOptions`.

    Raises:
        DataError: a bad or missing file.
    """
    split_of: Mapping[str, str] = {}
    captions: dict[str, list[str]] = {}
    left_out: Counter[str] = Counter()
    if len(paths) == 1 and _is_karpathys(paths[0]):
        if splits:
            raise OptionError(f"--split-file {splits}: has no effect: {paths[0]} has splits")
        split_of, captions = read_karpathy(paths[0])
    else:
        for path in paths:
            for key, texts in read_captions(path, left_out).items():
                captions.setdefault(key, []).extend(texts)
        if splits:
            split_of = read_karpathy(splits)[0]
            captions = {key: captions.get(key, []) for key in split_of}
    if features:
        images = Images(read_sizes(paths), grid)
        return Source(captions, split_of, [open_features(path, images) for path in features], left_out=left_out)
    files, names = [], None
    for place in instances:
        categories, regions = read_instances(place)
        if names not in (None, categories):
            raise DataError(f"{place}: its categories are not those of {instances[0]}")
        names = categories
        files.append(FeatureSet(place, list(regions), _chosen(regions)))
    return Source(captions, split_of, files, names, left_out=left_out)


def _is_karpathys(path: Path) -> bool:
    value = read_json(path) if path.suffix == ".json" else None
    return isinstance(value, dict) and "images" in value and "annotations" not in value


def _chosen(regions: Mapping[str, Regions]) -> Callable[[Callable[[str], bool]], Iterator[Regions]]:
    return lambda wanted: (image for key, image in regions.items() if wanted(key))
