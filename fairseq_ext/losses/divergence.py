"""Divergences between distributions: soft targets, distillation, and pairs of row-stochastic matrices.

Half precision is computed, and returned, in float32.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from fairseq_ext.losses.common import check_shape, check_temperature, reduce_weighted, require
from fairseq_ext.precision import compute_dtype, widen

__all__ = ["distillation_kl", "matrix_kl", "soft_target_cross_entropy", "soft_target_kl"]


def _log_softmax(input: Tensor, temperature: float) -> Tensor:
    check_temperature(temperature)
    return F.log_softmax(input.to(compute_dtype(input)) / temperature, dim=-1)


def _check_distributions(input: Tensor, target: Tensor, name: str = "target") -> None:
    check_shape(name, target, input.shape, "one number for each logit of input")


def _expected(target: Tensor, log_p: Tensor) -> Tensor:
    """The mean of ``log_p`` under ``target``, with 0 log 0 = 0: a masked class may have a logit of -inf."""
    return (target * log_p.masked_fill(target == 0, 0.0)).sum(-1)


def soft_target_cross_entropy(
    input: Tensor,
    target: Tensor,
    temperature: float = 1.0,
    weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Cross-entropy with a distribution as target.

    .. math:: \ell_i = -\sum_l q_{il} \log p_{il}, \qquad p_i = \mathrm{softmax}(z_i / T)

    Args:
        input: logits :math:`z`, ``(*, C)``.
        target: probabilities :math:`q`, ``(*, C)``.
        temperature: :math:`T`.
        weight: of each example, ``(*)``; the mean is over examples, not over their weights.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Raises:
        ValueError: an option out of its range, or an argument of another shape.
    """
    _check_distributions(input, target)
    return reduce_weighted(-_expected(target, _log_softmax(input, temperature)), weight, reduction)


def soft_target_kl(
    input: Tensor,
    target: Tensor,
    temperature: float = 1.0,
    weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Kullback-Leibler divergence of a softmax from a target distribution.

    .. math:: \ell_i = \sum_l q_{il} (\log q_{il} - \log p_{il}), \qquad p_i = \mathrm{softmax}(z_i / T)

    with :math:`0 \log 0 = 0`; :func:`soft_target_cross_entropy` less the entropy of the target, so the gradient with
    respect to :math:`z` is the same. Not multiplied by :math:`T^2`.

    Args:
        input: logits :math:`z`, ``(*, C)``.
        target: probabilities :math:`q`, ``(*, C)``; zeros are allowed.
        temperature: :math:`T`.
        weight: of each example, ``(*)``; the mean is over examples, not over their weights.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Raises:
        ValueError: an option out of its range, or an argument of another shape.
    """
    _check_distributions(input, target)
    target = target.to(compute_dtype(target))
    entropy = -torch.xlogy(target, target).sum(-1)
    return reduce_weighted(-entropy - _expected(target, _log_softmax(input, temperature)), weight, reduction)


def distillation_kl(input: Tensor, teacher: Tensor, temperature: float = 1.0, reduction: str = "mean") -> Tensor:
    r"""Knowledge distillation: :math:`T^2\, \mathrm{KL}(\mathrm{softmax}(t/T)\,\|\,\mathrm{softmax}(z/T))`.

    Distilling the Knowledge in a Neural Network (https://arxiv.org/abs/1503.02531). :math:`T^2` keeps the size of the
    gradient independent of the temperature.

    Args:
        input: logits :math:`z` of the student, ``(*, C)``.
        teacher: logits :math:`t` of the teacher, ``(*, C)``; no gradient flows into them.
        temperature: :math:`T`.
        reduction: ``"mean"`` over examples, ``"sum"`` or ``"none"``.

    Raises:
        ValueError: an option out of its range, or logits of different shapes.
    """
    _check_distributions(input, teacher, "teacher")
    target = _log_softmax(teacher.detach(), temperature).exp()
    return temperature**2 * soft_target_kl(input, target, temperature, reduction=reduction)


def matrix_kl(p: Tensor, q: Tensor, rows: Tensor | None = None, eps: float = 0.0, tiny: float = 1e-12) -> Tensor:
    r"""Symmetric divergence of two row-stochastic matrices, the released one of IAIS (https://arxiv.org/abs/2105.13868).

    .. math:: \frac1n \sum_{ij} \big[ p_{ij} (\log p_{ij} - \log(q_{ij} + \epsilon))
              + q_{ij} (\log q_{ij} - \log(p_{ij} + \epsilon)) \big]

    Gradients flow into both.

    Args:
        p: ``(*, N, M)``; padding is 0 in both and adds nothing.
        q: ``(*, N, M)``.
        rows: number :math:`n` of real rows of each matrix, ``(*)``. Default: all N.
        eps: :math:`\epsilon`, added where the other side is the target (0, or 1e-6 for distributed alignment).
        tiny: smallest argument of a logarithm, so that a probability of exactly 0 gives finite values and gradients.

    Returns:
        ``(*)``, one value per matrix; 0 for one without rows.

    Raises:
        ValueError: an option out of its range, or an argument of another shape.
    """
    check_shape("q", q, p.shape, "one number for each of p")
    if rows is not None:
        check_shape("rows", rows, p.shape[:-2], "one number for each matrix of p")
    require("eps", eps, 0 <= eps < math.inf, "at least 0")
    require("tiny", tiny, 0 < tiny < math.inf, "above 0")
    p, q = widen(p), widen(q)  # `tiny` is 0 in half precision

    def log(value: Tensor) -> Tensor:
        return value.clamp_min(tiny).log()

    total = (p * (log(p) - log(q + eps)) + q * (log(q) - log(p + eps))).sum((-2, -1))
    return total / (p.size(-2) if rows is None else rows.clamp_min(1))
