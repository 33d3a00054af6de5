"""How much a loss still pulls at an image, by how well the image is classified."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vision_language.image_classification.classifiers import CosineLinear
from vision_language.image_classification.objective import Objective
from vision_language.image_classification.scores import log_odds

__all__ = ["LOG_ODDS_EDGES", "binned_gradients", "gradient_norms", "mean_gradients"]

LOG_ODDS_EDGES = (-12.0, -8.0, -6.0, -4.0, -2.0, -1.0, 0.0, 1.0, 2.0, *map(float, range(4, 42, 2)))
"""Between the bins of :func:`binned_gradients`; the first and the last one are open. In bins of probabilities nearly
all images would be in the last."""


def gradient_norms(objective: Objective, logits: Tensor, labels: Tensor, epoch: int, layer: Any) -> dict[str, Tensor]:
    r"""Norms of the gradient of each image's share of the loss.

    .. math::
        \left\| \frac{\partial L}{\partial z} \right\|_2 \quad\text{and}\quad
        \left\| \frac{\partial L}{\partial h} \right\|_2 = \left\| W^T \frac{\partial L}{\partial z} \right\|_2

    with h the features before the last layer W. For the cross-entropy the first is :math:`\|p - e_y\|_2`, which
    vanishes as :math:`p_y \to 1`; for the encouraging loss with the whole logarithm it stays between 1 and the root
    of 2, up to where the bonus is clamped.

    Args:
        objective: L.
        logits: z of all images, ``(N, C)``, without gradient.
        labels: ``(N)``.
        epoch: of the training, counted from 1.
        layer: the last one, with its ``weight`` ``(C, features)``.

    Returns:
        ``"logits"``, ``(N)``, and ``"features"``, unless the last layer is one of cosines, which is not linear in them.
    """
    with torch.enable_grad():
        scores = logits.detach().float().requires_grad_()
        (gradient,) = torch.autograd.grad(len(labels) * objective(scores, labels, epoch), scores)
    norms = {"logits": gradient.norm(dim=1)}
    if not isinstance(layer, CosineLinear):
        norms["features"] = (gradient @ layer.weight.detach().to(gradient)).norm(dim=1)
    return norms


def mean_gradients(norms: dict[str, Tensor]) -> dict[str, float]:
    """``logits_gradient`` and ``features_gradient``: the means of :func:`gradient_norms`."""
    return {f"{name}_gradient": float(values.double().mean()) for name, values in norms.items()}


def binned_gradients(norms: dict[str, Tensor], logits: Tensor, labels: Tensor) -> dict[str, Any]:
    """The means by the log-odds of the label.

    Returns:
        ``images`` of each bin between ``LOG_ODDS_EDGES``, ``log_odds``, their mean, and the means of
        :func:`gradient_norms`; None where a bin is empty.
    """
    odds = log_odds(logits.double(), labels)
    bins = torch.bucketize(odds, torch.tensor(LOG_ODDS_EDGES, dtype=odds.dtype))
    images = torch.bincount(bins, minlength=len(LOG_ODDS_EDGES) + 1)

    def means(values: Tensor) -> list[float | None]:
        sums = torch.zeros(len(images), dtype=torch.double).index_add_(0, bins, values.double())
        pairs = zip(sums.tolist(), images.tolist(), strict=True)
        return [total / count if count else None for total, count in pairs]

    return {"images": images.tolist(), "log_odds": means(odds), **{name: means(each) for name, each in norms.items()}}
