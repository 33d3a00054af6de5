"""How large a gradient a loss still has for an image, depending on how well the image is classified."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vision_language.image_classification.classifiers import CosineLinear
from vision_language.image_classification.objective import Objective
from vision_language.image_classification.scores import log_odds

__all__ = ["LOG_ODDS_EDGES", "binned_gradients", "gradient_norms", "mean_gradients"]

LOG_ODDS_EDGES = (-12.0, -8.0, -6.0, -4.0, -2.0, -1.0, 0.0, 1.0, 2.0, *map(float, range(4, 42, 2)))
"""Edges between the bins of :func:`binned_gradients`; the first and the last bin have no outer edge. Bins of
probabilities would not do: nearly all images would be in the last one."""


def gradient_norms(objective: Objective, logits: Tensor, labels: Tensor, epoch: int, layer: Any) -> dict[str, Tensor]:
    r"""Norms of the gradient of each image's share of the loss.

    .. math::
        \left\| \frac{\partial L}{\partial z} \right\|_2 \quad\text{and}\quad
        \left\| \frac{\partial L}{\partial h} \right\|_2 = \left\| W^T \frac{\partial L}{\partial z} \right\|_2

    with h the features before the last layer W. For the cross-entropy the first norm is :math:`\|p - e_y\|_2`, which
    vanishes as :math:`p_y \to 1`; for the encouraging loss with the whole logarithm it stays between 1 and the root
    of 2, up to the point where the bonus is clamped.

    Args:
        objective: the loss, L.
        logits: logits of all images, z, ``(N, C)``; no gradient flows back through them.
        labels: ``(N)``.
        epoch: epoch of the training, counted from 1.
        layer: the last layer, whose ``weight`` is ``(C, features)``.

    Returns:
        Norms ``(N)`` of the gradient in the ``"logits"`` and in the ``"features"``. The latter are missing where the
        last layer gives cosines, which are not linear in the features.
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
    """The means of :func:`gradient_norms` in bins of the log-odds of the label.

    Returns:
        For each bin of ``LOG_ODDS_EDGES``: ``images``, the number of images in it; ``log_odds``, their mean; and the
        mean of each norm. A mean is None where the bin is empty.
    """
    odds = log_odds(logits.double(), labels)
    bins = torch.bucketize(odds, torch.tensor(LOG_ODDS_EDGES, dtype=odds.dtype))
    images = torch.bincount(bins, minlength=len(LOG_ODDS_EDGES) + 1)

    def means(values: Tensor) -> list[float | None]:
        sums = torch.zeros(len(images), dtype=torch.double).index_add_(0, bins, values.double())
        pairs = zip(sums.tolist(), images.tolist(), strict=True)
        return [total / count if count else None for total, count in pairs]

    return {"images": images.tolist(), "log_odds": means(odds), **{name: means(each) for name, each in norms.items()}}
