"""Captions that a model wrote: what fairseq-generate prints, and COCO's results files."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from fairseq_ext.captions.store import Split
from fairseq_ext.training.errors import DataError
from fairseq_ext.training.files import read_json, read_lines, write_json

__all__ = ["joined", "read_generated", "write_results"]

HYPOTHESIS = re.compile(r"D-(\d+)\t\S+\t(.*)")
SUBSET = re.compile(r"Generate (\S+) with beam=")
SPACE_OF_PIECES = "\u2581"


def read_generated(path: str | Path, split: Split) -> list[str]:
    """The caption of each image of a split.

    Args:
        path: the output of ``fairseq-generate``, whose ``D-`` lines count the images from 0 (``-``: the standard
            input); or, with the suffix ``.json``, a COCO results file, ``[{"image_id": ..., "caption": ...}]``. Pieces
            are joined where the data was prepared with SentencePiece.
        split: that was generated.

    Raises:
        DataError: not exactly one caption for each image; captions of another split or of other data; another format.
    """
    is_results = str(path).endswith((".json", ".json.gz"))
    captions: dict[int, str] = {}
    for image, caption, origin in (_results if is_results else _hypotheses)(path, split):
        if image in captions:
            hint = "" if is_results else ": generate with --nbest 1, once"
            raise DataError(f"{origin}: a second caption of image {split.image_ids[image]}{hint}")
        captions[image] = caption
    if not captions:
        hint = "image_id" if is_results else "D- line of fairseq-generate (a COCO results file must end in .json)"
        raise DataError(f"{path}: no {hint} in it")
    missing = [split.image_ids[image] for image in range(len(split)) if image not in captions]
    if missing:
        raise DataError(
            f"{path}: no caption of {len(missing)} of the {len(split)} images of {split.name}, such as {missing[0]}"
        )
    return _words([captions[image] for image in range(len(split))], path, split)


def _hypotheses(path: str | Path, split: Split) -> Iterator[tuple[int, str, str]]:
    for line, origin in read_lines(path):
        if (subset := SUBSET.match(line)) and subset[1] != split.name:
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


def _results(path: str | Path, split: Split) -> Iterator[tuple[int, str, str]]:
    value = read_json(path)
    entries = value if isinstance(value, list) else [value]
    places = {image_id: place for place, image_id in enumerate(split.image_ids.tolist())}
    types = set()
    for number, entry in enumerate(entries, 1):
        origin = f"{path}: entry {number}"
        if not isinstance(entry, dict) or not isinstance(entry.get("caption"), str) or "image_id" not in entry:
            raise DataError(f'{origin}: not {{"image_id": ..., "caption": "..."}} in a list')
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
        tokens: of a caption.
    """
    text = " ".join(tokens)
    return text.replace(" ", "").replace(SPACE_OF_PIECES, " ").strip() if SPACE_OF_PIECES in text else text


def write_results(path: str | Path, split: Split, captions: Sequence[str]) -> None:
    """Write a COCO results file; identifiers that are whole numbers become numbers, as COCO's server demands.

    Args:
        path: to write.
        split: of the captions.
        captions: one an image.
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
