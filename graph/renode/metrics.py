"""F1 of predicted classes."""

from __future__ import annotations

from numpy.typing import ArrayLike
from sklearn.metrics import f1_score

__all__ = ["f1", "f1_scores"]


def f1(truth: ArrayLike, predicted: ArrayLike, average: str = "weighted") -> float:
    """F1 as a mean over the classes, weighted by their sizes (``weighted``) or not (``macro``)."""
    return float(f1_score(truth, predicted, average=average, zero_division=0))


def f1_scores(truth: ArrayLike, predicted: ArrayLike, prefix: str = "") -> dict[str, float]:
    """``weighted_f1`` and ``macro_f1``, with ``prefix`` before the names."""
    return {f"{prefix}{average}_f1": f1(truth, predicted, average) for average in ("weighted", "macro")}
