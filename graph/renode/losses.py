"""Training losses by name; each node's loss is multiplied by the node's weight."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fairseq_ext.losses import (
    class_balanced_softmax_loss,
    encouraging_loss,
    focal_loss,
    logit_adjusted_cross_entropy,
    reduce_weighted,
    reweighted_cross_entropy,
)
from fairseq_ext.training.errors import OptionError, choose
from fairseq_ext.training.options import OptionSet, option
from graph.inputs import as_labels, as_tensor

__all__ = ["LOSSES", "Loss", "LossOptions", "make_loss"]

Loss = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""A function of logits, classes and weights that gives the mean of weight times loss."""

LOSSES = ("ce", "re-weight", "focal", "cb-softmax", "logit-adjusted", "encouraging")


def _others(name: str) -> dict[str, tuple[str, ...]]:
    return {"loss": tuple(loss for loss in LOSSES if loss != name)}


@dataclass(frozen=True, kw_only=True)
class LossOptions(OptionSet):
    """Which loss."""

    loss: str = option("ce", "training loss (released: ce)", LOSSES)
    gamma: float = option(2.0, "focusing exponent of --loss focal (released: 2)", least=0, idle=_others("focal"))
    beta: float = option(
        0.9999, "beta of --loss cb-softmax (released: 0.9999)", least=0, below=1, idle=_others("cb-softmax")
    )
    log_end: float = option(
        0.75,
        "end of the logarithm of --loss encouraging (its paper: 0.75)",
        least=0,
        most=1,
        idle=_others("encouraging"),
    )

    def make_loss(self, class_counts: Any) -> Loss:
        """The loss of these options, by :func:`make_loss`."""
        return make_loss(self.loss, class_counts, gamma=self.gamma, beta=self.beta, log_end=self.log_end)

    def refuse_weights_of_classes(self) -> None:
        """Refuse the options that weight classes by their labelled nodes, where all classes have equally many."""
        self.refuse_idle("with as many labelled nodes of each class", "beta")


def make_loss(name: str, class_counts: Any, *, gamma: float = 2.0, beta: float = 0.9999, log_end: float = 0.75) -> Loss:
    """A function of logits, classes and weights that gives the mean of the nodes' losses, each times its weight.

    Args:
        name: one of ``LOSSES``.
        class_counts: number of labelled nodes of each class (a tensor, an array or a list), for ``re-weight``,
            ``focal``, ``cb-softmax`` and ``logit-adjusted``.
        gamma: focusing exponent of ``focal``. Default 2.
        beta: beta of ``cb-softmax``. Default 0.9999.
        log_end: end of the logarithm of ``encouraging``. Default 0.75.

    Raises:
        OptionError: an unknown loss, or an option out of its range.
    """

    class_counts = as_tensor(class_counts, "class_counts")

    def plain(loss: Callable[..., Tensor], **options: float) -> Loss:
        return lambda logits, y, weight: reduce_weighted(
            loss(logits, as_labels(y, len(logits), "target"), reduction="none", **options), weight
        )

    def balanced(loss: Callable[..., Tensor], **options: float) -> Loss:
        return lambda logits, y, weight: loss(
            logits, as_labels(y, len(logits), "target"), class_counts.to(logits.device), weight, **options
        )

    losses = {
        "ce": plain(F.cross_entropy),
        "re-weight": balanced(reweighted_cross_entropy),
        "focal": balanced(focal_loss, gamma=gamma),
        "cb-softmax": balanced(class_balanced_softmax_loss, beta=beta),
        "logit-adjusted": balanced(logit_adjusted_cross_entropy),
        "encouraging": plain(encouraging_loss, log_end=log_end),
    }
    loss = losses[choose("--loss", name, LOSSES)]
    try:  # so that a wrong option is an error here, and not only at the first step
        device = class_counts.device
        loss(torch.zeros(1, len(class_counts), device=device), torch.zeros(1, dtype=torch.long, device=device), None)
    except ValueError as error:
        raise OptionError(f"--loss {name}: {error}") from error
    return loss
