"""The id of the image that a file belongs to, and the names that messages show."""

from __future__ import annotations

import re
from collections.abc import Iterable

from fairseq_ext.training.images import ENDINGS

__all__ = ["few", "image_key", "least"]

NUMBERED = re.compile(r"(?:(?:COCO_(?:train|val|test)\d{4}|flickr30k)_)?(\d+)", re.IGNORECASE)

FILE = re.compile(f"({'|'.join(map(re.escape, (*ENDINGS, '.npz', '.npy')))})+$", re.IGNORECASE)


def image_key(name: str | int) -> str:
    """``"391895"`` of 391895, ``COCO_val2014_000000391895.jpg`` and ``flickr30k_000000391895.npz``.

    Any other name, such as Flickr8k's ``1001773457_577c3a7d70.jpg``, is its own key, without the folder and the ending.
    """
    stem = str(name).replace("\\", "/").rpartition("/")[2]
    stem = FILE.sub("", stem)
    number = NUMBERED.fullmatch(stem)
    return str(int(number[1])) if number else stem


def few(names: Iterable[str], most: int = 12) -> str:
    """The first of the names, in their order."""
    names = sorted(map(str, names))
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def least(names: Iterable[str]) -> str:
    """A name to compare with one that is missing."""
    first = min(names, default=None)
    return "there is none" if first is None else f"{first!r} is"
