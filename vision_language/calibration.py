"""Calibration: how often a classifier is right, depending on how sure it is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

__all__ = ["Reliability", "reliability"]


@dataclass(frozen=True)
class Reliability:
    """Bins of equal width between ``edges``: each has its number of examples, mean confidence and accuracy.

    The two means are NaN in an empty bin.
    """

    edges: np.ndarray
    examples: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray

    @property
    def calibration_error(self) -> float:
        """Expected calibration error: mean distance of accuracy and confidence, bins weighted by their examples."""
        filled = self.examples > 0
        gap = np.abs(self.accuracy[filled] - self.confidence[filled])
        return float(np.average(gap, weights=self.examples[filled]))


def reliability(confidence: Tensor, right: Tensor, bins: int = 10) -> Reliability:
    """Accuracy by confidence (reliability diagram; Guo et al., arXiv:1706.04599).

    Args:
        confidence: of each prediction, in [0, 1], ``(B)``.
        right: whether each prediction was right, ``(B)``.
        bins: number of bins of equal width over [0, 1]; the upper edge belongs to a bin. Default 10, our choice.

    Raises:
        ValueError: no example, or a confidence outside [0, 1].
    """
    value, hit = confidence.detach().cpu().double().numpy(), right.detach().cpu().double().numpy()
    if not value.size or not (value > -1e-6).all() or not (value < 1 + 1e-6).all():
        raise ValueError("confidence must be one or more values from 0 to 1")
    edges = np.linspace(0, 1, bins + 1)
    place = np.digitize(value.clip(0, 1), edges[1:-1], right=True)
    examples = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        confidences = np.bincount(place, value, bins) / examples
        accuracy = np.bincount(place, hit, bins) / examples
    return Reliability(edges, examples, confidences, accuracy)
