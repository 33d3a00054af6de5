"""What others publish captions in: COCO, Flickr30k, Karpathy's splits.

Images are matched across files by :func:`image_key`, the number that COCO and UNITER pad and prefix, else their name.
"""

from __future__ import annotations

import csv
import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from fairseq_ext.training.errors import DataError
from fairseq_ext.training.files import read_json, read_lines

__all__ = ["field", "image_key", "read_captions", "read_karpathy", "read_lists"]

logger = logging.getLogger(__name__)

SPLIT_NAMES = {"train": "train", "restval": "train", "val": "valid", "test": "test"}
"""Karpathy's splits; ``restval`` is the part of COCO's validation images that is trained on."""
COLUMNS = (("image", "image_name", "filename"), ("caption", "comment"))
MAX_BROKEN = 10
NUMBERED = re.compile(r"(?:(?:COCO_(?:train|val|test)\d{4}|flickr30k)_)?(\d+)", re.IGNORECASE)


def image_key(name: str | int) -> str:
    """``"391895"`` of 391895, ``COCO_val2014_000000391895.jpg`` and ``flickr30k_000000391895.npz``.

    Any other name, such as Flickr8k's ``1001773457_577c3a7d70.jpg``, is its own key, without the folder and the ending.
    """
    stem = str(name).replace("\\", "/").rpartition("/")[2]
    stem = re.sub(r"(\.(jpe?g|png|npz))+$", "", stem, flags=re.IGNORECASE)
    number = NUMBERED.fullmatch(stem)
    return str(int(number[1])) if number else stem


def read_lists(path: Path, *keys: str) -> dict[str, Any]:
    """A JSON file that holds a list under each of ``keys``.

    Raises:
        DataError: it does not.
    """
    value = read_json(path)
    for key in keys:
        if not isinstance(value, dict) or not isinstance(value.get(key), list):
            raise DataError(f"{path}: no list {key!r} in it")
    return value


def field(path: Path, place: str, value: Any, key: str, kind: type | tuple[type, ...]) -> Any:
    """``value[key]``, checked to be of ``kind``; ``place`` says where in the file it stands.

    Raises:
        DataError: it is not.
    """
    if not isinstance(value, dict) or not isinstance(value.get(key), kind):
        raise DataError(f"{path}: {place}: no {key!r}, or not of the expected form")
    return value[key]


def read_captions(path: str | Path) -> dict[str, list[str]]:
    """The captions of each image, in their order, from any of

    - COCO's ``captions_*.json``;
    - lines ``IMAGE.jpg#0 TAB caption`` (Flickr30k's ``results_20130124.token``);
    - a csv whose header names an image column (``image``, ``image_name`` or ``filename``) and a caption column
      (``caption`` or ``comment``), separated by commas, tabs or ``|``.

    Up to ten lines of another form are skipped and told in the log: Kaggle's Flickr30k has one.

    Raises:
        DataError: none of these, or more broken lines.
    """
    path = Path(path)
    captions: dict[str, list[str]] = defaultdict(list)
    if path.suffix == ".json":
        for number, found in enumerate(read_lists(path, "annotations")["annotations"]):
            place = f"annotation {number}"
            name = field(path, place, found, "image_id", (int, str))
            captions[image_key(name)].append(field(path, place, found, "caption", str).strip())
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
    for found in rows:
        if isinstance(found, DataError):
            broken.append(found)
            continue
        read += 1
        captions[image_key(found[0].strip())].append(" ".join(found[1].split()))
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
    for number, image in enumerate(read_lists(path, "images")["images"]):
        place = f"image {number}"
        split = field(path, place, image, "split", str)
        if split not in SPLIT_NAMES:
            raise DataError(f"{path}: {place}: split {split!r} is not one of {', '.join(SPLIT_NAMES)}")
        key = image_key(image["cocoid"] if "cocoid" in image else field(path, place, image, "filename", str))
        splits[key] = SPLIT_NAMES[split]
        sentences = field(path, place, image, "sentences", list)
        captions[key] = [field(path, f"{place}: sentence", sentence, "raw", str).strip() for sentence in sentences]
    return splits, captions
