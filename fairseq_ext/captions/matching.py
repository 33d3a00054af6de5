"""Matches captions with regions. Images that lack either are named and counted, and refused or left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import replace

from fairseq_ext.captions.sources import Source
from fairseq_ext.regions.boxes import Regions
from fairseq_ext.regions.names import few
from fairseq_ext.text import clean
from fairseq_ext.training.errors import DataError

__all__ = ["match", "read_regions"]

SILENT, UNSEEN = "images without captions", "captions without image"


def match(source: Source, skip: bool, left_out: Counter[str]) -> Source:
    """The source with clean captions, without images that lack captions or regions.

    Args:
        source: the source as it was read.
        skip: leave out captions without regions and regions without captions.
        left_out: counts what is left out.

    Raises:
        DataError: captions or regions lack the other and ``skip`` is off, an image is in two files, or a caption has no
            word.
    """
    captions = {key: [clean(caption) for caption in texts] for key, texts in source.captions.items() if texts}
    for key, texts in captions.items():
        for caption in texts:
            if not any(map(str.isalnum, caption)):
                raise DataError(f"image {key}: a caption without words: {caption!r}")
    silent = source.captions.keys() - captions.keys()
    if all(file.keys is not None for file in source.files):
        origins: dict[str, str] = {}
        for file in source.files:
            for key in file.keys or ():
                if key in origins:
                    raise DataError(f"{file.origin}: image {key} is in {origins[key]} too")
                origins[key] = file.origin
        _refuse_strangers(source, captions, origins)
        silent |= origins.keys() - captions.keys()
        unseen = captions.keys() - origins.keys()
        _refuse(UNSEEN, unseen, skip, left_out)
        captions = {key: texts for key, texts in captions.items() if key not in unseen}
    _refuse(SILENT, silent, skip, left_out)
    return replace(source, captions=captions)


def read_regions(source: Source, skip: bool, left_out: Counter[str]) -> Iterator[Regions]:
    """The regions of the images of a matched source, one image after the other.

    Raises:
        DataError: as for :func:`match`, for files that must be read to know whose regions they hold.
    """
    seen, silent = set(), set()
    for file in source.files:
        for regions in file.read(source.captions if file.keys is not None else None):
            if regions.key in seen or regions.key in silent:
                raise DataError(f"{regions.origin}: image {regions.key} was there before")
            if regions.key in source.captions:
                seen.add(regions.key)
                yield regions
            else:
                silent.add(regions.key)
    _refuse_strangers(source, source.captions, seen | silent)
    _refuse(SILENT, silent, skip, left_out)
    _refuse(UNSEEN, source.captions.keys() - seen, skip, left_out)


def _refuse_strangers(source: Source, captions: Collection[str], images: Collection[str]) -> None:
    """Refuse captions and regions without a name in common: they are of other images, or name them differently."""
    if captions and images and not any(key in captions for key in images):
        raise DataError(
            f"captions and regions are not of the same images: captions of {min(captions)!r}, regions of "
            f"{min(images)!r} ({', '.join(file.origin for file in source.files)})"
        )


def _refuse(what: str, keys: Collection[str], skip: bool, left_out: Counter[str]) -> None:
    if keys and not skip:
        raise DataError(f"{len(keys)} {what}: {few(keys, 5)}; --skip-missing leaves them out")
    left_out[what] += len(keys)
