"""How much of the data a training reads, so that nothing is cut or left out in silence."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from graph.label_graph.data import Sample, unknown_labels
from graph.label_graph.options import Options

__all__ = ["coverage", "notes"]

MOST = 0.95
"""The share of the reviews that are read whole with the ``--max-words`` that :func:`notes` proposes."""


def coverage(
    samples: Sequence[Sample], reviews: Sequence[Sequence[Sequence[str]]], labels: Sequence[str], options: Options
) -> dict[str, Any]:
    """How much of a split is read.

    Args:
        samples: the samples of the split.
        reviews: the words of their reviews.
        labels: the labels of training.
        options: say how much is read.

    Returns:
        - ``samples``, ``without_labels`` and ``without_words``: numbers of samples
        - ``reviews_read``: the share of the reviews that are read
        - ``words_read`` and ``reviews_cut``: shares of the words of these reviews, and of these reviews
        - ``max_words_of_most``: the ``max_words`` that would leave 95 % of these reviews whole
        - ``unknown_labels``: labels that training does not have, each with its number of samples
    """
    read = [review for sample in reviews for review in sample[: options.max_reviews]]
    lengths = sorted(map(len, read))
    words = sum(lengths)
    return {
        "samples": len(samples),
        "without_labels": sum(not sample.labels for sample in samples),
        "without_words": sum(not sample for sample in reviews),
        "reviews_read": len(read) / max(sum(map(len, reviews)), 1),
        "words_read": sum(min(length, options.max_words) for length in lengths) / max(words, 1),
        "reviews_cut": sum(length > options.max_words for length in lengths) / max(len(read), 1),
        "max_words_of_most": lengths[math.ceil(MOST * len(lengths)) - 1] if lengths else 0,
        "unknown_labels": unknown_labels(samples, labels),
    }


def notes(coverage_of: Mapping[str, Mapping[str, Any]], options: Options) -> Iterator[str]:
    """Lines that tell how the training texts are cut, and what is left out of each split."""
    train = coverage_of["train"]
    if train["reviews_read"] < 1:
        yield f"train: --max-reviews {options.max_reviews} reads {train['reviews_read']:.1%} of the reviews"
    if train["reviews_cut"]:
        yield (
            f"train: --max-words {options.max_words} cuts {train['reviews_cut']:.1%} of the reviews and reads "
            f"{train['words_read']:.1%} of their words; {train['max_words_of_most']} would leave {MOST:.0%} whole"
        )
    for split, part in coverage_of.items():
        for what in ("labels", "words"):
            if count := part[f"without_{what}"]:
                yield f"{split}: {count} of {part['samples']} samples have no {what}"
        if part["unknown_labels"]:
            counts = ", ".join(f"{label} ({count})" for label, count in part["unknown_labels"].items())
            yield f"{split}: labels that training does not have are not scored: {counts}"
