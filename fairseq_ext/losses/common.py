"""Checks, conversions and reductions that the losses share."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from fairseq_ext.precision import compute_dtype

__all__ = [
    "REDUCTIONS",
    "as_class_weight",
    "as_indices",
    "check_shape",
    "check_temperature",
    "is_finite",
    "log_complement",
    "one_hot",
    "reduce_weighted",
    "require",
    "sigmoid_power",
]

REDUCTIONS = ("none", "mean", "sum")


def require(name: str, value: object, ok: bool, allowed: str) -> None:
    """Refuse the ``value`` of an option. Write ``ok`` so that NaN fails it."""
    if not ok:
        raise ValueError(f"{name} must be {allowed}, got {value!r}")


def is_finite(value: float) -> bool:
    """``math.isfinite``, in a form that also takes the symbolic numbers of a compiler with dynamic shapes."""
    return -math.inf < value < math.inf


def check_temperature(temperature: float, name: str = "temperature", or_zero: bool = False) -> None:
    """Refuse what logits cannot be divided by: a softmax of it is NaN, or has its classes in the wrong order.

    Args:
        temperature: the number.
        name: of the option.
        or_zero: whether 0 is allowed, as where it means that there is no softmax.
    """
    if or_zero:
        require(name, temperature, 0 <= temperature < math.inf, "at least 0 and finite")
    else:
        require(name, temperature, 0 < temperature < math.inf, "above 0 and finite")


def check_shape(name: str, value: Tensor, shape: tuple[int, ...], holds: str) -> None:
    """Refuse an argument that would be broadcast, or read in part. Only shapes are looked at, so that it compiles.

    Args:
        name: name of the argument.
        value: the argument.
        shape: the only right shape.
        holds: what the argument holds, for the message.
    """
    if tuple(value.shape) != tuple(shape):
        raise ValueError(f"{name} must hold {holds}, shape {tuple(shape)}, got {tuple(value.shape)}")


def as_class_weight(weight: Tensor, classes: int, name: str = "weight") -> Tensor:
    """Weights of the classes in float32 or wider, as the mean divides by their sum over the batch.

    Raises:
        ValueError: the weights are not one number per class.
    """
    check_shape(name, weight, (classes,), f"one weight for each of {classes} classes")
    return weight.to(compute_dtype(weight))


def as_indices(target: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Class indices of any integer dtype in one that torch indexes with; it would take uint8 for a mask.

    Args:
        target: class indices.
        shape: shape of the logits without the dimension of classes.

    Raises:
        ValueError: the indices are no whole numbers, or not one per row.
    """
    whole = not (target.is_floating_point() or target.is_complex() or target.dtype == torch.bool)
    require("target", target.dtype, whole, "class indices, a dtype of whole numbers")
    check_shape("target", target, shape, "one class index for each row of input")
    return target.long()


def one_hot(target: Tensor, like: Tensor) -> Tensor:
    """1 at the class indices ``target``, 0 elsewhere, shaped like the logits; unlike ``F.one_hot`` it can be mapped."""
    return torch.zeros_like(like).scatter(-1, target.unsqueeze(-1), 1.0)


def log_complement(log_p: Tensor, p: Tensor) -> Tensor:
    r""":math:`\log(1 - p)` of every class, in full precision and with a finite gradient.

    Args:
        log_p: log-probabilities ``(*, C)``, of two classes or more.
        p: the probabilities.
    """
    # Only the most probable class can have p > 1/2, where log1p(-p) would lose its digits.
    is_top = one_hot(p.argmax(-1), p).bool()
    others = log_p.masked_fill(is_top, torch.finfo(log_p.dtype).min)
    return torch.where(is_top, others.logsumexp(-1, keepdim=True), torch.log1p(-p.masked_fill(is_top, 0.0)))


def sigmoid_power(input: Tensor, exponent: float) -> Tensor:
    r""":math:`\sigma(z)^\gamma`, whose gradient stays finite for exponents below 1 and infinite logits."""
    return (exponent * F.logsigmoid(input).clamp_min(torch.finfo(input.dtype).min)).exp()


def reduce_weighted(
    loss: Tensor, sample_weight: Tensor | None = None, reduction: str = "mean", total: Tensor | None = None
) -> Tensor:
    """``loss`` times a weight for each example, reduced; half precision in float32, as sums leave the range of float16.

    Args:
        loss: of each example, of any shape.
        sample_weight: of that shape, a constant. Default: ones.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        total: divisor of ``"mean"``. Default: the number of examples, whatever they weigh.

    Raises:
        ValueError: ``sample_weight`` of another shape than ``loss``, or an unknown reduction.
    """
    require("reduction", reduction, reduction in REDUCTIONS, f"one of {REDUCTIONS}")
    loss = loss.to(compute_dtype(loss))
    if sample_weight is not None:
        check_shape("sample_weight", sample_weight, loss.shape, "one weight for each example")
        loss = loss * sample_weight
    if reduction == "mean":
        return loss.mean() if total is None else loss.sum() / total
    return loss.sum() if reduction == "sum" else loss
