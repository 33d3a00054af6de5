"""Reads where a model looked for each word of a caption, as ``fairseq-ext captions generate`` writes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fairseq_ext.captions.generated import joined
from fairseq_ext.captions.store import Split
from fairseq_ext.captions.tokenizer import tokenize
from fairseq_ext.training.errors import DataError
from fairseq_ext.training.files import read_json_lines

__all__ = ["Attention", "read_attention"]


@dataclass(frozen=True)
class Attention:
    """Where the model looked for each word of one caption.

    Attributes:
        tokens: T words or pieces.
        weights: ``(T, R)``.
    """

    tokens: list[str]
    weights: np.ndarray


def read_attention(path: str | Path, split: Split, captions: Sequence[str]) -> dict[int, Attention]:
    """The attention of each image that the file has.

    Args:
        path: JSON lines, ``{"image_id": ..., "tokens": [...], "attention": [...]}``, with one list of
            weights per token, one weight per region.
        split: split of the images.
        captions: one per image; the tokens must be those of the captions.

    Returns:
        The attention of each image, by its place in the split.

    Raises:
        DataError: another format, other images, another number of regions, or the words of other captions.
    """
    places = {image_id: place for place, image_id in enumerate(split.image_ids.tolist())}
    attention = {}
    for value, origin in read_json_lines(path):
        image_id, entry = _entry(value, origin)
        if image_id not in places:
            raise DataError(f"{origin}: image {image_id} is not in {split.name}, which has {split.image_ids[0]!s}")
        place = places[image_id]
        if place in attention:
            raise DataError(f"{origin}: image {image_id} a second time")
        rows = split.rows(place)
        shape = (len(entry.tokens), rows.stop - rows.start)
        if entry.tokens and entry.weights.shape != shape:
            raise DataError(f"{origin}: attention {entry.weights.shape}, but {shape} tokens and regions")
        if tokenize(joined(entry.tokens)) != tokenize(captions[place]):
            raise DataError(
                f"{origin}: {joined(entry.tokens)!r}, but the caption of image {image_id} is {captions[place]!r}"
            )
        attention[place] = entry
    return attention


def _entry(value: Any, origin: str) -> tuple[str, Attention]:
    try:
        tokens, weights = value["tokens"], np.array(value["attention"], dtype=np.float64)
        if all(isinstance(token, str) for token in tokens) and np.isfinite(weights).all() and (weights >= 0).all():
            return str(value["image_id"]), Attention(list(tokens), weights)
    except (ValueError, KeyError, TypeError):
        pass
    raise DataError(
        f'{origin}: expected {{"image_id": ..., "tokens": [...], "attention": [...]}}, with "attention": one list of '
        "weights per token, one weight per region"
    )
