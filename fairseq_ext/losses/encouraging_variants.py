"""Relatives of the encouraging loss: binary problems, squared and absolute errors, halted focal losses.

All from Zhao et al., "Well-classified Examples are Underestimated in Classification with Deep Neural Networks",
arXiv:2110.06537, and its released code.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from fairseq_ext.losses.bonus import Bonus
from fairseq_ext.losses.common import (
    as_indices,
    check_shape,
    is_finite,
    one_hot,
    reduce_weighted,
    require,
    sigmoid_power,
)
from fairseq_ext.losses.log_bonus import top_bonus
from fairseq_ext.precision import compute_dtype

__all__ = ["binary_encouraging_loss", "halted_focal_loss", "mirror_bonus_loss", "softmax_focal_loss"]


def binary_encouraging_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    reduction: str = "mean",
    log_end: float = 0.75,
    *,
    bonus_weight: float = 1.0,
    bonus_alpha: float | None = None,
    bonus_gamma: float = 0.0,
    bonus_clamp: float = 1e-5,
) -> Tensor:
    r"""Encouraging loss with the interface of :func:`torch.nn.functional.binary_cross_entropy_with_logits`.

    .. math::
        L = -\log p_t + \lambda\, a_t\, (1 - p_t)^\gamma B(p_t), \qquad
        p_t = \sigma(z) \text{ for } t = 1, \quad \sigma(-z) \text{ for } t = 0

    with B the bonus of :func:`~fairseq_ext.losses.encouraging_loss`. At the defaults it is that loss on the two logits
    (0, z). The released code has it for a detector, with :math:`a_1 = \alpha`, :math:`a_0 = 1 - \alpha`; the paper
    reports no run. **Our choice**: :math:`a_t = 1` by default; a target between 0 and 1 mixes the losses of 1 and 0.

    Args:
        input: logits of any shape, each a binary problem of its own. Half precision is computed in float32.
        target: 0, 1 or between, of the same shape.
        weight: of each element, of a shape that broadcasts; the mean is over elements, not over their weights.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        log_end: where the logarithm of the bonus ends, in [0, 1]. Default 0.75, as in the multi-class loss.
        bonus_weight: :math:`\lambda`; 0 is the binary cross-entropy.
        bonus_alpha: :math:`\alpha`, the share of the positives in the bonus. Default: none, both count in full.
        bonus_gamma: :math:`\gamma`; fades the bonus of well-classified elements. Default 0: not at all.
        bonus_clamp: least value of ``1 - p`` inside the logarithm of ``log_end=1``. 0 is exact.

    Raises:
        ValueError: an option out of its range, or ``target`` or ``weight`` of another shape.

    Example:
        >>> binary_encouraging_loss(torch.tensor([2.0, -1.0]), torch.tensor([1.0, 0.0]), reduction="none")
        tensor([-2.0272, -1.0000])
    """
    shape = Bonus(log_end, bonus_clamp=bonus_clamp)
    require("bonus_weight", bonus_weight, is_finite(bonus_weight), "finite")
    require("bonus_alpha", bonus_alpha, bonus_alpha is None or 0 <= bonus_alpha <= 1, "in [0, 1] or None")
    require("bonus_gamma", bonus_gamma, 0 <= bonus_gamma < math.inf, "at least 0")
    logits, target = _binary(input, target)
    if weight is not None and torch.broadcast_shapes(weight.shape, logits.shape) != logits.shape:
        shapes = f"{tuple(logits.shape)}, got {tuple(weight.shape)}"
        raise ValueError(f"weight must broadcast to the shape of input, {shapes}")
    alpha = (1.0, 1.0) if bonus_alpha is None else (bonus_alpha, 1 - bonus_alpha)
    loss = torch.zeros_like(logits)
    for share, odds, a in ((target, logits, alpha[0]), (1 - target, -logits, alpha[1])):
        bonus = top_bonus(odds, shape.log_end, shape.bonus_clamp)[0].clamp_min(
            torch.finfo(odds.dtype).min
        )  # -inf times 0
        bonus = bonus * sigmoid_power(-odds, bonus_gamma)
        term = F.softplus(-odds) + bonus_weight * a * bonus if bonus_weight else F.softplus(-odds)
        loss = loss + share * term.masked_fill(share == 0, 0.0)
    return reduce_weighted(loss if weight is None else loss * weight, None, reduction)


def _binary(input: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    check_shape("target", target, input.shape, "one target for each logit")
    logits = input.to(compute_dtype(input))
    return logits, target.to(logits.dtype)


def mirror_bonus_loss(
    input: Tensor,
    target: Tensor,
    reduction: str = "mean",
    *,
    base: str = "mse",
    activation: str = "softmax",
    bonus_power: float = 2.0,
    bonus_weight: float = 1.0,
) -> Tensor:
    r"""Squared or absolute error of class probabilities with its mirror image as the bonus (arXiv:2110.06537).

    .. math::
        L = y (1 - q)^e + (1 - y) q^e - \lambda \left( y q^b + (1 - y) (1 - q)^b \right)

    with y the one-hot target and e = 2 (``"mse"``) or 1 (``"mae"``).

    Args:
        input: logits ``(N, C)``.
        target: class indices ``(N)``.
        reduction: ``"mean"`` over all ``N x C`` entries, ``"sum"``, or ``"none"`` for ``(N, C)``.
        base: ``"mse"`` or ``"mae"``.
        activation: how logits become q: ``"softmax"`` or ``"sigmoid"``.
        bonus_power: b; the paper's mirror of the squared error has 2.
        bonus_weight: :math:`\lambda`; 0 is the base loss.

    Raises:
        ValueError: an option out of its range, or ``target`` of another shape.
    """
    require("base", base, base in ("mse", "mae"), "'mse' or 'mae'")
    require("activation", activation, activation in ("softmax", "sigmoid"), "'softmax' or 'sigmoid'")
    require("bonus_weight", bonus_weight, is_finite(bonus_weight), "finite")
    require("bonus_power", bonus_power, bonus_weight == 0 or 0 < bonus_power < math.inf, "above 0")
    logits = input.to(compute_dtype(input))
    target = as_indices(target, logits.shape[:-1])
    q = logits.softmax(-1) if activation == "softmax" else logits.sigmoid()
    right = torch.where(one_hot(target, q).bool(), q, 1 - q)
    # The gradient of pow(0, power) is infinite for a power below 1.
    mirror = right.clamp_min(torch.finfo(right.dtype).tiny) ** bonus_power
    return reduce_weighted((1 - right) ** (2 if base == "mse" else 1) - bonus_weight * mirror, None, reduction)


def halted_focal_loss(
    input: Tensor,
    target: Tensor,
    reduction: str = "mean",
    *,
    alpha: float = 0.5,
    gamma: float = 1.0,
    halt: str = "correct",
) -> Tensor:
    r"""Focal loss that stops fading once an example is well classified (arXiv:2110.06537).

    .. math::
        L = \alpha_t (1 - p_t)^\gamma (-\log p_t), \qquad
        L_{halted} = \alpha_t (-\log p_t) - \alpha_t (1 - 2^{-\gamma}) \log 2

    The two meet at :math:`p_t = 1/2`.

    Args:
        input: logits of any shape, each a binary problem of its own.
        target: 0 or 1, of the same shape; a value between mixes the losses of both.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        alpha: weight of the positives; negatives have ``1 - alpha``. The published detector uses 0.5.
        gamma: focusing exponent; the published detector uses 1.
        halt: ``"correct"`` takes the halted branch where :math:`p_t > 1/2`, the paper's definition. ``"positive"``
            takes it where ``input > 0`` whatever the target, as in the code of the published detector: there negatives
            get plain cross-entropy when they are wrong.

    Raises:
        ValueError: an option out of its range, or ``target`` of another shape.
    """
    require("halt", halt, halt in ("correct", "positive"), "'correct' or 'positive'")
    require("alpha", alpha, 0 <= alpha <= 1, "in [0, 1]")
    require("gamma", gamma, 0 <= gamma < math.inf, "at least 0")
    logits, target = _binary(input, target)
    loss = torch.zeros_like(logits)
    for share, wrong, weight in ((target, -logits, alpha), (1 - target, logits, 1 - alpha)):
        halted = (logits > 0) if halt == "positive" else wrong < 0
        loss = loss + share * weight * _focal(wrong, gamma, halted).masked_fill(share == 0, 0.0)
    return reduce_weighted(loss, None, reduction)


def softmax_focal_loss(
    input: Tensor, target: Tensor, reduction: str = "mean", *, gamma: float = 1.0, halted: bool = False
) -> Tensor:
    r"""Focal loss of the softmax probability of the target, and its halted form (arXiv:2110.06537).

    .. math::
        L = -(1 - p_y)^\gamma \log p_y, \qquad
        L_{halted} = -\log p_y - (1 - 2^{-\gamma}) \log 2 \;\text{ for } p_y > \tfrac12

    The two meet at one half. The released code has no halted multi-class form; this is the paper's formula.

    Args:
        input: logits ``(*, C)`` of at least two classes. Half precision is computed in float32.
        target: class indices ``(*)``.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        gamma: focusing exponent. Default 1, as in the released code; 0 is the cross-entropy.
        halted: whether well-classified examples keep the gradient of the cross-entropy. Default: no.

    Raises:
        ValueError: a negative gamma, an unknown reduction, a single class, or ``target`` of another shape.
    """
    require("gamma", gamma, 0 <= gamma < math.inf, "at least 0")
    require("input", tuple(input.shape), input.dim() > 0 and input.size(-1) > 1, "logits of at least 2 classes")
    logits = input.to(compute_dtype(input))
    target = as_indices(target, logits.shape[:-1])
    others = logits.masked_fill(one_hot(target, logits).bool(), torch.finfo(logits.dtype).min)
    wrong = others.logsumexp(-1) - logits.gather(-1, target.unsqueeze(-1)).squeeze(-1)
    return reduce_weighted(_focal(wrong, gamma, (wrong < 0) & halted), None, reduction)


def _focal(wrong: Tensor, gamma: float, halted: Tensor) -> Tensor:
    """Focal loss from the log-odds against the target; where ``halted``, the cross-entropy less a constant."""
    error = F.softplus(wrong)
    return torch.where(halted, error - math.log(2) * (1 - 0.5**gamma), sigmoid_power(wrong, gamma) * error)
