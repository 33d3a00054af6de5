"""What the losses share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

REDUCTIONS = ("none", "mean", "sum")


def require(name: str, value: object, ok: bool, allowed: str) -> None:
    """Refuse the ``value`` of an option. Write ``ok`` so that NaN fails it."""
    if not ok:
        raise ValueError(f"{name} must be {allowed}, got {value!r}")


def one_hot(target: Tensor, like: Tensor) -> Tensor:
    """1 at the class indices ``target``, 0 elsewhere, shaped like the logits; unlike ``F.one_hot`` it can be mapped."""
    return torch.zeros_like(like).scatter(-1, target.unsqueeze(-1), 1.0)


def sigmoid_power(input: Tensor, exponent: float) -> Tensor:
    r""":math:`\sigma(z)^\gamma`, whose gradient stays finite for exponents below 1 and infinite logits."""
    return (exponent * F.logsigmoid(input).clamp_min(torch.finfo(input.dtype).min)).exp()


def reduce_weighted(
    loss: Tensor, sample_weight: Tensor | None = None, reduction: str = "mean", total: Tensor | None = None
) -> Tensor:
    """``loss`` times a weight for each example, reduced.

    Args:
        loss: of each example, of any shape.
        sample_weight: of that shape, a constant. Default: ones.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        total: what ``"mean"`` divides by. Default: the number of examples, whatever they weigh.

    Raises:
        ValueError: ``sample_weight`` of another shape than ``loss``, or an unknown reduction.
    """
    require("reduction", reduction, reduction in REDUCTIONS, f"one of {REDUCTIONS}")
    if sample_weight is not None:
        if sample_weight.shape != loss.shape:
            shapes = f"{tuple(loss.shape)}, got {tuple(sample_weight.shape)}"
            raise ValueError(f"sample_weight must hold one weight for each example, shape {shapes}")
        loss = loss * sample_weight
    if reduction == "mean":
        return loss.mean() if total is None else loss.sum() / total
    return loss.sum() if reduction == "sum" else loss
