"""Reads captions that a model wrote: fairseq-generate's or ``fairseq-ext captions generate``'s, or COCO's results."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from fairseq_ext.captions.store import Split, split_sizes
from fairseq_ext.training.errors import DataError
from fairseq_ext.training.files import read_json, read_json_lines, read_lines, write_json

__all__ = ["joined", "read_generated", "write_results"]

HYPOTHESIS = re.compile(r"D-(\d+)\t\S+\t(.*)")
SUBSET = re.compile(r"Generate (\S+) with beam=")
SPACE_OF_PIECES = "\u2581"


def read_generated(path: str | Path, split: Split, certain: bool = True) -> list[str]:
    """The caption of each image of a split.

    Args:
        path: the output of ``fairseq-generate``, whose ``D-`` lines count the images from 0 (``-``: the standard
            input); with the suffix ``.json`` a COCO results file, ``[{"image_id": ..., "caption": ...}]``; with
            ``.jsonl`` one such mapping per line, as ``fairseq-ext captions generate --json`` writes it. Pieces are
            joined where the data was prepared with SentencePiece.
        split: the split that the captions are for.
        certain: whether that is certain; if not, ``D-`` lines alone are refused if another split has as many images.

    Raises:
        DataError: not exactly one caption for each image; captions of another split or of other data; another format.
    """
    name = str(path).removesuffix(".gz")
    if name.endswith((".json", ".jsonl")):
        entries = _results(read_json_lines(path) if name.endswith(".jsonl") else _json_list(path), split)
    else:
        entries = _hypotheses(path, split, certain)
    captions: dict[int, str] = {}
    for image, caption, origin in entries:
        if image in captions:
            raise DataError(f"{origin}: a second caption of image {split.image_ids[image]}: generate once, --nbest 1")
        captions[image] = caption
    if not captions:
        raise DataError(f"{path}: no caption: neither a D- line of fairseq-generate, nor .json or .jsonl with some")
    missing = [split.image_ids[image] for image in range(len(split)) if image not in captions]
    if missing:
        raise DataError(
            f"{path}: no caption of {len(missing)} of the {len(split)} images of {split.name}, such as {missing[0]}"
        )
    return _words([captions[image] for image in range(len(split))], path, split)


def _hypotheses(path: str | Path, split: Split, certain: bool) -> Iterator[tuple[int, str, str]]:
    for line, origin in read_lines(path):
        if subset := SUBSET.match(line):
            certain = True
            if subset[1] != split.name:
                raise DataError(f"{origin}: the captions of {subset[1]}, not of {split.name}: --split {subset[1]}")
        if not line.startswith("D-"):
            continue
        hypothesis = HYPOTHESIS.fullmatch(line)
        if not hypothesis:
            raise DataError(f"{origin}: not D-NUMBER, score and caption between tabs: {line[:60]!r}")
        image = int(hypothesis[1])
        if image >= len(split):
            raise DataError(f"{origin}: image number {image}, but {split.name} has {len(split)} images, from 0")
        yield image, hypothesis[2], origin
    others = [] if certain else [name for name, size in split_sizes(split.folder).items() if size == len(split)]
    if len(others) > 1:
        raise DataError(
            f"{path}: its D- lines do not say of which split they are, and {' and '.join(others)} have {len(split)} "
            "images each: give --split, or all that fairseq-generate printed"
        )


def _json_list(path: str | Path) -> Iterator[tuple[Any, str]]:
    value = read_json(path)
    for number, entry in enumerate(value if isinstance(value, list) else [value], 1):
        yield entry, f"{path}: entry {number}"


def _results(entries: Iterable[tuple[Any, str]], split: Split) -> Iterator[tuple[int, str, str]]:
    places = {image_id: place for place, image_id in enumerate(split.image_ids.tolist())}
    types = set()
    for entry, origin in entries:
        if not isinstance(entry, dict) or not isinstance(entry.get("caption"), str) or "image_id" not in entry:
            raise DataError(f'{origin}: not {{"image_id": ..., "caption": "..."}}')
        image_id = entry["image_id"]
        types.add(type(image_id))
        if not types <= {int, str} or len(types) > 1:
            raise DataError(f"{origin}: image_id {image_id!r}: all must be whole numbers, or all texts")
        if str(image_id) not in places:
            raise DataError(f"{origin}: image_id {image_id!r} is not in {split.name}, which has {split.image_ids[0]!s}")
        yield places[str(image_id)], entry["caption"], origin


def _words(captions: list[str], path: str | Path, split: Split) -> list[str]:
    """The captions in words, where they are in pieces."""
    pieces = [caption for caption in captions if SPACE_OF_PIECES in caption]
    if not pieces:
        return captions
    if split.preparation.tokenizer != "sentencepiece":
        raise DataError(f"{path}: {pieces[0]!r} is in pieces, but {split.folder} was prepared in words: of other data")
    return [joined(caption.split()) for caption in captions]


def joined(tokens: Sequence[str]) -> str:
    """The text of words, or of pieces.

    Args:
        tokens: tokens of a caption.
    """
    text = " ".join(tokens)
    return text.replace(" ", "").replace(SPACE_OF_PIECES, " ").strip() if SPACE_OF_PIECES in text else text


def write_results(path: str | Path, split: Split, captions: Sequence[str]) -> None:
    """Write a COCO results file; identifiers that are whole numbers become numbers, as COCO's server demands.

    Args:
        path: file to write.
        split: split of the captions.
        captions: one per image.
    """
    ids = split.image_ids.tolist()
    numbers = all(image_id.isascii() and image_id.isdigit() and str(int(image_id)) == image_id for image_id in ids)
    write_json(
        path,
        [
            {"image_id": int(image_id) if numbers else image_id, "caption": caption}
            for image_id, caption in zip(ids, captions, strict=True)
        ],
    )
