"""How well a score tells images of the training set's kind from others. Equal scores count as one group."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

__all__ = ["detection_metrics", "false_positive_rate"]


def detection_metrics(id_scores: ArrayLike, ood_scores: ArrayLike) -> dict[str, float]:
    r"""The usual measures of out-of-distribution detection, in-distribution images being the positive class.

    Args:
        id_scores: scores of in-distribution images; higher means more in-distribution.
        ood_scores: scores of the other images.

    Returns:
        - ``auroc``: :math:`P(s_{id} > s_{ood}) + \frac12 P(s_{id} = s_{ood})`
        - ``fpr95``: :func:`false_positive_rate` where 95 % of the in-distribution images are kept
        - ``aupr_in``: average precision; ``aupr_out``: the same with the other set as the positive class
        - ``detection_accuracy``: :math:`\max_t \frac12 (\mathrm{TPR}_t + 1 - \mathrm{FPR}_t)`

    Raises:
        ValueError: no score on one side, or one that is not finite.
    """
    inside, outside = _checked(id_scores, "id_scores"), _checked(ood_scores, "ood_scores")
    labels, scores = np.r_[np.ones(len(inside)), np.zeros(len(outside))], np.r_[inside, outside]
    fpr, tpr, _ = roc_curve(labels, scores)
    metrics: dict[str, Callable[[], float]] = {
        "auroc": lambda: roc_auc_score(labels, scores),
        "fpr95": lambda: false_positive_rate(inside, outside)[0],
        "aupr_in": lambda: average_precision_score(labels, scores),
        "aupr_out": lambda: average_precision_score(1 - labels, -scores),
        "detection_accuracy": lambda: (tpr + 1 - fpr).max() / 2,
    }
    return {name: float(metric()) for name, metric in metrics.items()}


def false_positive_rate(
    id_scores: ArrayLike, ood_scores: ArrayLike, true_positive_rate: float = 0.95
) -> tuple[float, float]:
    """The share of other images that pass a threshold which keeps a given share of the in-distribution images.

    Args:
        id_scores: scores of in-distribution images; higher means more in-distribution.
        ood_scores: scores of the other images.
        true_positive_rate: the least share of in-distribution images to keep. Default 0.95.

    Returns:
        The share of other images, and the threshold: the largest score that keeps that many in-distribution images.

    Raises:
        ValueError: as :func:`detection_metrics`, or a rate outside (0, 1].
    """
    if not 0 < true_positive_rate <= 1:
        raise ValueError(f"true_positive_rate must be in (0, 1], got {true_positive_rate}")
    inside, outside = _checked(id_scores, "id_scores"), _checked(ood_scores, "ood_scores")
    values, counts = np.unique(inside, return_counts=True)
    kept = counts[::-1].cumsum() / len(inside)
    threshold = values[::-1][np.argmax(kept >= true_positive_rate)]
    return float((outside >= threshold).mean()), float(threshold)


def _checked(scores: ArrayLike, name: str) -> np.ndarray:
    values = np.asarray(scores, dtype=np.float64).ravel()
    if not len(values):
        raise ValueError(f"{name}: there is no score")
    if not np.isfinite(values).all():
        raise ValueError(f"{name}: score {int((~np.isfinite(values)).argmax())} is not finite")
    return values
