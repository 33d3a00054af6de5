"""Multi-label metrics and the decision threshold."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import ArrayLike

__all__ = ["METRICS", "multilabel_metrics", "tune_threshold"]

METRICS = ("one_error", "hamming_loss", "macro_f1", "micro_f1")
"""The first two are better when lower."""


def _checked(scores: ArrayLike, gold: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    # Double precision, so that a threshold between two neighbouring single-precision scores is none of them.
    scores, gold = np.asarray(scores, dtype=np.float64), np.asarray(gold).astype(bool)
    if scores.ndim != 2 or scores.shape != gold.shape or not scores.size:
        raise ValueError(f"scores and gold must both be (samples, labels), got {scores.shape} and {gold.shape}")
    return scores, gold


def multilabel_metrics(scores: ArrayLike, gold: ArrayLike, threshold: float = 0.2) -> dict[str, float]:
    """One-error, Hamming loss, macro-F1 and micro-F1, all as fractions.

    One-error is the share of samples whose best label is not gold (the first wins a tie); Hamming loss the share of
    wrong decisions. A label without gold or predicted samples has an F1 of 0, and counts in the macro average.

    Args:
        scores: ``(samples, labels)``, arrays or tensors.
        gold: 0 or 1, of the same shape.
        threshold: a label is predicted where its score is greater. Default 0.2, as the paper's code. A sample may get
            no label.
    """
    from sklearn.metrics import f1_score, hamming_loss

    scores, gold = _checked(scores, gold)
    predicted = scores > threshold
    best = gold[np.arange(len(gold)), scores.argmax(1)]
    # Of a single column scikit-learn would count its absence as a second class.
    f1 = functools.partial(f1_score, gold, predicted, labels=[1] if gold.shape[1] == 1 else None, zero_division=0)
    return {
        "one_error": float(1 - best.mean()),
        "hamming_loss": float(hamming_loss(gold, predicted)),
        "macro_f1": float(f1(average="macro")),
        "micro_f1": float(f1(average="micro")),
    }


def tune_threshold(scores: ArrayLike, gold: ArrayLike) -> float:
    """The threshold with the best micro-F1, exactly: every place between two different scores is tried."""
    scores, gold = _checked(scores, gold)
    order = np.argsort(-scores, axis=None, kind="stable")
    ranked, hits = scores.ravel()[order], gold.ravel()[order].cumsum()
    f1 = 2 * hits / (np.arange(1, len(hits) + 1) + hits[-1])
    below = np.append(ranked[1:], ranked[-1] - 1.0)
    # Equal scores cannot be told apart by a threshold.
    f1[ranked == below] = -1.0
    cut = f1.argmax()
    return float((ranked[cut] + below[cut]) / 2)
