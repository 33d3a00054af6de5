"""Multi-label metrics and the decision threshold."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

__all__ = ["METRICS", "f1_by_label", "multilabel_metrics", "tune_threshold"]

METRICS = ("one_error", "hamming_loss", "macro_f1", "micro_f1")
"""The first two are better when lower."""


def _checked(scores: ArrayLike, gold: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    # Double precision, so that a threshold between two neighbouring single-precision scores equals neither.
    scores, gold = (
        values.detach().cpu().double().numpy() if isinstance(values, Tensor) else np.asarray(values, dtype=np.float64)
        for values in (scores, gold)
    )
    if scores.ndim != 2 or scores.shape != gold.shape or not scores.size:
        raise ValueError(f"scores and gold must both be (samples, labels), got {scores.shape} and {gold.shape}")
    if np.isnan(scores).any():
        raise ValueError(f"scores must be numbers, {np.isnan(scores).sum()} are NaN")
    if not np.isin(gold, (0, 1)).all():
        raise ValueError(f"gold must be 0 or 1, got {gold[~np.isin(gold, (0, 1))][0]}")
    return scores, gold.astype(bool)


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
    from sklearn.metrics import hamming_loss

    scores, gold = _checked(scores, gold)
    predicted = scores > threshold
    best = gold[np.arange(len(gold)), scores.argmax(1)]
    return {
        "one_error": float(1 - best.mean()),
        "hamming_loss": float(hamming_loss(gold, predicted)),
        "macro_f1": float(_f1(gold, predicted, "macro")),
        "micro_f1": float(_f1(gold, predicted, "micro")),
    }


def f1_by_label(scores: ArrayLike, gold: ArrayLike, threshold: float = 0.2) -> list[float]:
    """F1 of every label; their mean is the macro-F1. The arguments are those of :func:`multilabel_metrics`."""
    scores, gold = _checked(scores, gold)
    return _f1(gold, scores > threshold, None).tolist()


def _f1(gold: np.ndarray, predicted: np.ndarray, average: str | None) -> Any:
    from sklearn.metrics import f1_score

    # With a single column, scikit-learn would count the absence of the label as a second class.
    labels = [1] if gold.shape[1] == 1 else None
    return f1_score(gold, predicted, labels=labels, average=average, zero_division=0)


def tune_threshold(scores: ArrayLike, gold: ArrayLike) -> float:
    """The threshold with the best micro-F1, found exactly: every place between two different scores is tried.

    Args:
        scores: probabilities, or other scores that rank the labels, ``(samples, labels)``.
        gold: 0 or 1, ``(samples, labels)``.

    Raises:
        ValueError: shapes that differ, scores that are no numbers, or ``gold`` with other values.
    """
    scores, gold = _checked(scores, gold)
    order = np.argsort(-scores, axis=None, kind="stable")
    ranked, hits = scores.ravel()[order], gold.ravel()[order].cumsum()
    f1 = 2 * hits / (np.arange(1, len(hits) + 1) + hits[-1])
    below = np.append(ranked[1:], ranked[-1] - 1.0)
    # Equal scores cannot be told apart by a threshold.
    f1[ranked == below] = -1.0
    cut = f1.argmax()
    return float((ranked[cut] + below[cut]) / 2)
