"""Encouraging loss: cross-entropy plus a bonus for examples that are already well classified.

    L = -log p_y + B(p_y),   B(p) = log(1 - p)                          p <= log_end
                             B(p) = log(1 - LE) - (p - LE) / (1 - LE)   p >  log_end = LE (the tangent at LE)

Guangxiang Zhao, Wenkai Yang, Xuancheng Ren, Lei Li, Yunfang Wu, Xu Sun,
"Well-classified Examples are Underestimated in Classification with Deep Neural Networks", arXiv:2110.06537.

Cross-entropy pulls on the target logit with force ``1 - p_y``, so a well-classified example stops teaching. The bonus
cancels that factor up to ``log_end``: there the pull is 1 whatever ``p_y``.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from fairseq_ext.losses.bonus import Bonus, plain_terms
from fairseq_ext.losses.common import as_class_weight, as_indices, is_finite, one_hot, reduce_weighted, require
from fairseq_ext.losses.log_bonus import LogBonusCrossEntropy
from fairseq_ext.precision import compute_dtype

__all__ = ["SMOOTHING_FORMS", "encouraging_loss", "encouraging_loss_terms", "off_target_shares"]

SMOOTHING_FORMS = ("uniform", "off-target")
UNBOUNDED = (
    "log_end=1 with label smoothing and bonus_clamp=0: this loss falls without end as the margin grows; "
    "bonus_clamp=1e-5, as released, or log_end below 1 gives it a minimum"
)


def encouraging_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    log_end: float = 0.75,
    *,
    bonus: str = "log",
    bonus_weight: float = 1.0,
    bonus_smoothing: float | None = None,
    bonus_power: float = 1.0,
    bonus_start: float = 0.0,
    bonus_end: float | None = None,
    subsample: float = 1.0,
    smoothing_form: str = "uniform",
    bonus_clamp: float = 1e-5,
) -> Tensor:
    r"""Encouraging loss with the interface of :func:`torch.nn.functional.cross_entropy`.

    .. math::
        L = \sum_c a_c (-\log p_c) + \lambda \sum_c b_c B(p_c), \qquad a_c = (1 - \epsilon) [c = y] + \epsilon / V

    with :math:`B(p) = \log(1 - p)` up to ``log_end`` and its tangent beyond ("conservative bonus"), and :math:`b_c`
    smoothed like :math:`a_c`. From Zhao et al., "Well-classified Examples are Underestimated in Classification with
    Deep Neural Networks", arXiv:2110.06537. The loss is negative for well-classified examples and bounded below by
    :math:`\log(1 - LE) - 1` for ``log_end < 1``. Log-probabilities are valid logits.

    Args:
        input: logits ``(C)``, ``(N, C)`` or ``(N, C, d_1, ...)``. Half precision is computed in float32.
        target: class indices without the class dimension, or class probabilities of the shape of ``input``.
        weight: class weights ``(C)``; they scale both terms, and ``reduction="mean"`` divides by their sum.
        ignore_index: the class index that adds neither loss nor gradient.
        reduction: ``"none"``, ``"mean"`` (over the targets that are not ignored) or ``"sum"``.
        label_smoothing: :math:`\epsilon` of the cross-entropy, and of the bonus unless ``bonus_smoothing`` is given.
        log_end: where the logarithm ends, in [0, 1]. 0 is the bonus ``-p``, 1 the full logarithm ("normal bonus").
            Default 0.75, as in the released image code; translation was published with 0.5. With 1, halve the
            learning rate.
        bonus: ``"log"``; ``"power"``, :math:`B = -p^\gamma`; or ``"cosine"``, :math:`B = \cos(\pi p) - 1`. The last
            two refuse ``log_end``, ``subsample`` and ``bonus_clamp``.
        bonus_weight: :math:`\lambda`; 0 is the cross-entropy.
        bonus_smoothing: :math:`\epsilon` of the bonus alone. Default: ``label_smoothing``.
        bonus_power: :math:`\gamma` of the power bonus.
        bonus_start: s of the "aggressive" bonus, :math:`B(p) - B(s)` for :math:`p \ge s` and 0 below. The paper uses
            ``bonus_start=0.5, log_end=1.0``. The bonus is continuous at s for every ``log_end`` (our choice).
        bonus_end: no bonus for :math:`p` above this value, itself above ``bonus_start``. Default: none.
        subsample: :math:`\rho` in :math:`B(\rho p)`, the bonus as if a share of the probability did not count.
        smoothing_form: ``"uniform"`` gives every class :math:`\epsilon / V`, as the released code and
            ``F.cross_entropy`` do; ``"off-target"`` gives :math:`\epsilon / (V - 1)` to all but the target, as fairseq
            0.12 does.
        bonus_clamp: least value of ``1 - p`` inside the logarithm of ``log_end=1``; beyond it the bonus is constant.
            Default 1e-5, as in the released code. With smoothed targets the clamp keeps that loss bounded below: a
            clamp of 0, the exact loss, which is stable for any margin, gives a warning. Below ``log_end=1`` the
            tangent bounds the bonus and nothing is clamped (our choice above ``1 - bonus_clamp``).

    Returns:
        A scalar, or with ``reduction="none"`` a tensor of the shape of the class indices; float32 for
        half-precision input.

    Raises:
        ValueError: an option out of its range or without effect, or ``target`` or ``weight`` of another shape.

    Example:
        >>> logits, target = torch.randn(3, 5, requires_grad=True), torch.tensor([1, 0, 4])
        >>> encouraging_loss(logits, target, label_smoothing=0.1).backward()
    """
    require("bonus_weight", bonus_weight, is_finite(bonus_weight), "finite")
    shape = Bonus(log_end, bonus, bonus_power, bonus_start, bonus_end, subsample, bonus_clamp)
    target, weight = _checked(input, target, weight)
    smoothing = label_smoothing, bonus_smoothing, smoothing_form
    cross_entropy, value = _terms(input, target, weight, ignore_index, *smoothing, shape)
    loss = cross_entropy + bonus_weight * value if bonus_weight else cross_entropy
    total = None
    if reduction == "mean" and not target.is_floating_point():
        kept = target != ignore_index
        total = kept.sum() if weight is None else (weight[target * kept] * kept).sum()
    return reduce_weighted(loss, None, reduction, total)


def encouraging_loss_terms(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    log_end: float = 0.75,
    *,
    bonus_smoothing: float | None = None,
    smoothing_form: str = "uniform",
    **bonus: Any,
) -> tuple[Tensor, Tensor]:
    """The cross-entropy and the bonus of every example, apart.

    For losses that weigh or mask the two differently, such as a class-weighted bonus on a plain cross-entropy::

        cross_entropy, bonus = encouraging_loss_terms(logits, target)
        loss = (cross_entropy + class_weight[target] * bonus).mean()

    Args and shapes are those of :func:`encouraging_loss`; ``**bonus`` are the other fields of
    :class:`~fairseq_ext.losses.bonus.Bonus`.

    Returns:
        ``(cross_entropy, bonus)``, each of the shape that ``reduction="none"`` gives, 0 at ignored targets, in
        float32 for half-precision input. ``bonus`` is never positive.
    """
    smoothing = label_smoothing, bonus_smoothing, smoothing_form
    target, weight = _checked(input, target, weight)
    return _terms(input, target, weight, ignore_index, *smoothing, Bonus(log_end, **bonus))


def _terms(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    bonus_smoothing: float | None,
    smoothing_form: str,
    bonus: Bonus,
) -> tuple[Tensor, Tensor]:
    class_dim = _class_dimension(input)
    classes, rows_shape = input.size(class_dim), target.shape
    if target.is_floating_point():
        rows_shape = rows_shape[:class_dim] + rows_shape[class_dim + 1 :]
    off, off_bonus = off_target_shares(classes, bonus, label_smoothing, bonus_smoothing, smoothing_form)
    logits = input.movedim(class_dim, -1).reshape(-1, classes)
    if target.is_floating_point():
        ignored = None
        probabilities = target.movedim(class_dim, -1).reshape(-1, classes).to(compute_dtype(logits))
    else:
        ignored = target.reshape(-1) == ignore_index
        indices = target.reshape(-1).masked_fill(ignored, 0)
        # A compiler fuses the plain formula by itself, and torch.export would lose the closed form's gradient.
        if bonus.is_plain_log and weight is None and not torch.compiler.is_compiling():
            constants = off, off_bonus, bonus.log_end, bonus.bonus_clamp
            cross_entropy, value = LogBonusCrossEntropy.apply(logits, indices, *constants)[:2]
            return tuple(term.masked_fill(ignored, 0.0).view(rows_shape) for term in (cross_entropy, value))
        probabilities = one_hot(indices, logits).to(compute_dtype(logits))

    cross_entropy, value = (
        (term if ignored is None else term.masked_fill(ignored, 0.0)).view(rows_shape)
        for term in plain_terms(logits, probabilities, off, off_bonus, bonus, weight)
    )
    return cross_entropy, value


def _class_dimension(input: Tensor) -> int:
    return 1 if input.dim() > 1 else 0


def _checked(input: Tensor, target: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Target and class weights in the form that the computation takes."""
    if input.dim() == 0:
        raise ValueError("input must have a class dimension, got a scalar")
    class_dim = _class_dimension(input)
    classes = input.size(class_dim)
    if classes < 2:
        raise ValueError(f"input must have at least 2 classes, got shape {tuple(input.shape)}")
    rows_shape = input.shape[:class_dim] + input.shape[class_dim + 1 :]
    if target.shape != (input.shape if target.is_floating_point() else rows_shape):
        raise ValueError(
            f"target must have shape {tuple(rows_shape)} (class indices) or {tuple(input.shape)} (probabilities)"
            f" for input of shape {tuple(input.shape)}, got {tuple(target.shape)}"
        )
    if not target.is_floating_point():
        target = as_indices(target, rows_shape)
    return target, None if weight is None else as_class_weight(weight, classes)


def off_target_shares(
    classes: int,
    bonus: Bonus,
    label_smoothing: float = 0.0,
    bonus_smoothing: float | None = None,
    smoothing_form: str = "uniform",
) -> tuple[float, float]:
    """The shares that smoothing gives to a class other than the target, in the cross-entropy and in the bonus.

    Warns where the loss has no minimum although targets are smoothed: for a large margin m of the target it grows as
    ``(e_ce + e_bonus - 1) m``, where smoothing takes ``e_ce`` and ``e_bonus`` from the target in the two terms.
    """
    if bonus_smoothing is None:
        bonus_smoothing = label_smoothing
    require("label_smoothing", label_smoothing, 0 <= label_smoothing <= 1, "in [0, 1]")
    require("bonus_smoothing", bonus_smoothing, 0 <= bonus_smoothing <= 1, "in [0, 1]")
    require("smoothing_form", smoothing_form, smoothing_form in SMOOTHING_FORMS, f"one of {SMOOTHING_FORMS}")
    spread = classes if smoothing_form == "uniform" else classes - 1
    off, off_bonus = label_smoothing / spread, bonus_smoothing / spread
    falls = bonus.is_unbounded and 0 < (off + off_bonus) * (classes - 1) < 1
    if falls and not torch.compiler.is_compiling():  # a graph would break here
        warnings.warn(UNBOUNDED, stacklevel=1)  # here, and not at the caller: once
    return off, off_bonus
