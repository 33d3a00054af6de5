"""Training losses by name, each times the weight of its node."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fairseq_ext.errors import OptionError, choose
from fairseq_ext.losses import (
    class_balanced_softmax_loss,
    encouraging_loss,
    focal_loss,
    reduce_weighted,
    reweighted_cross_entropy,
)

__all__ = ["LOSSES", "make_loss"]

LOSSES = ("ce", "re-weight", "focal", "cb-softmax", "encouraging")


def make_loss(
    name: str, class_counts: Tensor, *, gamma: float = 2.0, beta: float = 0.9999, log_end: float = 0.75
) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """A loss ``(logits, target, sample_weight) -> mean of w l``.

    Args:
        name: one of ``LOSSES``.
        class_counts: labelled nodes of each class, for ``re-weight``, ``focal`` and ``cb-softmax``.
        gamma: of ``focal``.
        beta: of ``cb-softmax``.
        log_end: of ``encouraging``.

    Raises:
        OptionError: an unknown loss, or an option out of its range.
    """

    def plain(loss: Callable[..., Tensor], **options: float) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
        return lambda logits, y, weight: reduce_weighted(loss(logits, y, reduction="none", **options), weight)

    def balanced(loss: Callable[..., Tensor], **options: float) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
        return lambda logits, y, weight: loss(logits, y, class_counts, weight, **options)

    losses = {
        "ce": plain(F.cross_entropy),
        "re-weight": balanced(reweighted_cross_entropy),
        "focal": balanced(focal_loss, gamma=gamma),
        "cb-softmax": balanced(class_balanced_softmax_loss, beta=beta),
        "encouraging": plain(encouraging_loss, log_end=log_end),
    }
    loss = losses[choose("--loss", name, LOSSES)]
    try:  # a wrong option is an error here, not at the first step
        device = class_counts.device
        loss(torch.zeros(1, len(class_counts), device=device), torch.zeros(1, dtype=torch.long, device=device), None)
    except ValueError as error:
        raise OptionError(f"--loss {name}: {error}") from error
    return loss
