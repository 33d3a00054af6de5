"""Multi-label metrics and the decision threshold."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

__all__ = ["METRICS", "f1_by_label", "multilabel_metrics", "tune_threshold"]

METRICS = ("one_error", "hamming_loss", "macro_f1", "micro_f1")
"""The first two are better when lower."""

ENTRIES = 2**20
"""Scores that are compared with the threshold at once."""


def _checked(scores: ArrayLike, gold: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """The scores in the precision they have, at least single, and gold as bool; not copied where they are such."""
    scores, gold = _array(scores), _array(gold)
    if scores.dtype != np.float32:
        scores = scores.astype(np.float64, copy=False)
    if scores.ndim != 2 or scores.shape != gold.shape or not scores.size:
        raise ValueError(f"scores and gold must both be (samples, labels), got {scores.shape} and {gold.shape}")
    if np.isnan(scores.min()):
        raise ValueError(f"scores must be numbers, {np.isnan(scores).sum()} are NaN")
    if gold.dtype == bool:
        return scores, gold
    is_gold = gold == 1
    if not (neither := ~is_gold & (gold != 0)).any():
        return scores, is_gold
    raise ValueError(f"gold must be 0 or 1, got {float(gold[neither][0])}")


def _array(values: ArrayLike) -> np.ndarray:
    if not isinstance(values, Tensor):
        return np.asarray(values)
    values = values.detach().cpu()
    # NumPy has no bfloat16.
    return (values.float() if values.dtype in (torch.float16, torch.bfloat16) else values).numpy()


class _Counts(NamedTuple):
    """Numbers of samples: with each label gold and predicted, gold, and predicted; and whose best label is gold."""

    hits: np.ndarray
    gold: np.ndarray
    predicted: np.ndarray
    best_is_gold: int

    @property
    def f1(self) -> np.ndarray:
        """F1 of every label, 0 where it is neither gold nor predicted."""
        return 2 * self.hits / np.maximum(self.gold + self.predicted, 1)


def _count(scores: np.ndarray, gold: np.ndarray, threshold: float) -> _Counts:
    samples, labels = scores.shape
    hits, of_gold, of_predicted = np.zeros((3, labels), dtype=np.int64)
    best_is_gold, size = 0, max(ENTRIES // labels, 1)
    for start in range(0, samples, size):
        # Double precision, so that a threshold between two neighbouring single-precision scores equals neither.
        part, is_gold = scores[start : start + size].astype(np.float64), gold[start : start + size]
        predicted = part > threshold
        hits += (predicted & is_gold).sum(0)
        of_gold += is_gold.sum(0)
        of_predicted += predicted.sum(0)
        best_is_gold += int(is_gold[np.arange(len(part)), part.argmax(1)].sum())
    return _Counts(hits, of_gold, of_predicted, best_is_gold)


def multilabel_metrics(scores: ArrayLike, gold: ArrayLike, threshold: float = 0.2) -> dict[str, float]:
    """One-error, Hamming loss, macro-F1 and micro-F1, all as fractions.

    One-error is the share of samples whose label with the highest score (the first of several) is not gold; a sample
    without gold labels therefore always counts. Hamming loss is the share of wrong decisions. A label without gold and
    predicted samples has an F1 of 0, and counts in the macro average.

    Args:
        scores: ``(samples, labels)``; arrays, lists or tensors.
        gold: 0 or 1, of the same shape.
        threshold: a label is predicted where its score is greater; a sample may get no label. Default 0.2, as in the
            paper's code.
    """
    scores, gold = _checked(scores, gold)
    counts = _count(scores, gold, threshold)
    hits, decided = counts.hits.sum(), (counts.gold + counts.predicted).sum()
    return {
        "one_error": float(1 - counts.best_is_gold / len(gold)),
        "hamming_loss": float((decided - 2 * hits) / gold.size),
        "macro_f1": float(counts.f1.mean()),
        "micro_f1": float(2 * hits / max(decided, 1)),
    }


def f1_by_label(scores: ArrayLike, gold: ArrayLike, threshold: float = 0.2) -> list[float]:
    """F1 of every label; their mean is the macro-F1. The arguments are those of :func:`multilabel_metrics`."""
    scores, gold = _checked(scores, gold)
    return _count(scores, gold, threshold).f1.tolist()


def tune_threshold(scores: ArrayLike, gold: ArrayLike) -> float:
    """The threshold with the best micro-F1, found exactly: every place between two different scores is tried.

    Args:
        scores: probabilities, or other scores that rank the labels, ``(samples, labels)``.
        gold: 0 or 1, ``(samples, labels)``.

    Raises:
        ValueError: shapes that differ, scores that are no numbers, or ``gold`` with other values.
    """
    scores, gold = _checked(scores, gold)
    ranked = np.sort(scores, axis=None)
    # F1 falls where a threshold passes scores that are not gold. Equal scores cannot be told apart by a threshold.
    tried, hits = np.unique(scores[gold], return_counts=True)
    hits = hits[::-1].cumsum()[::-1]
    predicted = ranked.size - np.searchsorted(ranked, tried)
    f1 = 2 * hits / (predicted + gold.sum())
    lowest = float(ranked[0])
    if lowest - 1 == lowest:  # no threshold is below it
        f1[tried == lowest] = 0
    # Of several that are best the highest; without any, that of the highest score.
    best = tried[f1 == f1.max(initial=0)]
    cut = best[-1] if f1.any() else ranked[-1]
    lower = np.searchsorted(ranked, cut)
    below = float(ranked[lower - 1]) if lower else lowest - 1
    return (float(cut) + below) / 2
