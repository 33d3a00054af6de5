"""Captions as COCO, Flickr30k and tables have them.

Images are matched across files by :func:`~fairseq_ext.regions.names.image_key`, the number that COCO and UNITER pad
and prefix, else their name.
"""

from __future__ import annotations

import csv
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from fairseq_ext.regions.json_files import read_annotations
from fairseq_ext.regions.names import image_key
from fairseq_ext.training.errors import DataError
from fairseq_ext.training.files import read_lines
from fairseq_ext.training.progress import warn

__all__ = ["read_captions"]

COLUMNS = (("image", "image_name", "filename"), ("caption", "comment"))
MAX_BROKEN = 10
BROKEN = "broken lines of captions"


def read_captions(path: str | Path, left_out: Counter[str] | None = None) -> dict[str, list[str]]:
    """The captions of each image, in their order, from any of

    - COCO's ``captions_*.json``;
    - lines ``IMAGE.jpg#0 TAB caption`` (Flickr30k's ``results_20130124.token``);
    - a csv whose header names an image column (``image``, ``image_name`` or ``filename``) and a caption column
      (``caption`` or ``comment``), separated by commas, tabs or ``|``.

    Up to ten lines of another form are skipped, each with a warning: Kaggle's Flickr30k has one.

    Args:
        path: the file.
        left_out: counts the lines that are skipped. Default: they are not counted.

    Raises:
        DataError: none of these, or more broken lines.
    """
    path = Path(path)
    if path.suffix == ".json":
        return read_annotations(path)
    captions: dict[str, list[str]] = defaultdict(list)
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
        warn(f"skipped: {error}")
    if broken and left_out is not None:
        left_out[BROKEN] += len(broken)
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
