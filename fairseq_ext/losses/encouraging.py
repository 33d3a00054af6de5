"""Encouraging loss: cross-entropy plus a bonus for examples that are already well classified.

    L = -log p_y + B(p_y),   B(p) = log(1 - p)                          p <= log_end
                             B(p) = log(1 - LE) - (p - LE) / (1 - LE)   p >  log_end = LE (the tangent at LE)

Guangxiang Zhao, Wenkai Yang, Xuancheng Ren, Lei Li, Yunfang Wu, Xu Sun,
"Well-classified Examples are Underestimated in Classification with Deep Neural Networks", arXiv:2110.06537.

Cross-entropy pulls on the target logit with force ``1 - p_y``, so a well-classified example stops teaching. The bonus
cancels that factor up to ``log_end``: there the pull is 1 whatever ``p_y``.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairseq_ext.losses.common import REDUCTIONS, one_hot, reduce_weighted, require
from fairseq_ext.losses.log_bonus import LogBonusCrossEntropy
from fairseq_ext.precision import compute_dtype

BONUSES = ("log", "power", "cosine")
SCHEDULES = ("none", "linear", "exp", "cos")
SMOOTHING_FORMS = ("uniform", "off-target")


def _dense_bonus(
    log_p: Tensor,
    bonus: str,
    log_end: float,
    bonus_power: float,
    bonus_start: float,
    bonus_end: float | None,
    subsample: float,
    bonus_clamp: float,
) -> Tensor:
    """``B(p_c)`` of every class for every variant, in plain autograd operations."""
    p = log_p.exp()
    if bonus == "power":
        # The gradient of pow(0, power) is infinite for a power below 1.
        value, at_start = -(bonus_power * log_p).exp(), -(bonus_start**bonus_power)
    elif bonus == "cosine":
        value, at_start = (math.pi * p).cos() - 1, math.cos(math.pi * bonus_start) - 1
    else:
        x = subsample * p
        if subsample < 1:
            value = torch.log1p(-x)
        else:
            is_top = one_hot(p.argmax(-1), p).bool()
            others = log_p.masked_fill(is_top, torch.finfo(log_p.dtype).min)
            value = torch.where(is_top, others.logsumexp(-1, keepdim=True), torch.log1p(-p.masked_fill(is_top, 0.0)))
        if bonus_clamp > 0:
            value = value.clamp(min=math.log(bonus_clamp))
        start = subsample * bonus_start
        at_start = math.log1p(-min(start, log_end)) if bonus_start > 0 else 0.0
        if log_end < 1:
            value = torch.where(x > log_end, math.log1p(-log_end) - (x - log_end) / (1 - log_end), value)
            at_start -= max(start - log_end, 0.0) / (1 - log_end)
    if bonus_start > 0:
        value = (value - at_start).masked_fill(p < bonus_start, 0.0)
    if bonus_end is not None:
        value = value.masked_fill(p > bonus_end, 0.0)
    return value


def _check_options(
    log_end: float,
    label_smoothing: float,
    bonus_smoothing: float,
    smoothing_form: str,
    bonus: str,
    bonus_power: float,
    bonus_start: float,
    bonus_end: float | None,
    subsample: float,
    bonus_clamp: float,
) -> None:
    require("log_end", log_end, 0 <= log_end <= 1, "in [0, 1]")
    require("label_smoothing", label_smoothing, 0 <= label_smoothing <= 1, "in [0, 1]")
    require("bonus_smoothing", bonus_smoothing, 0 <= bonus_smoothing <= 1, "in [0, 1]")
    require("smoothing_form", smoothing_form, smoothing_form in SMOOTHING_FORMS, f"one of {SMOOTHING_FORMS}")
    require("bonus", bonus, bonus in BONUSES, f"one of {BONUSES}")
    require("bonus_power", bonus_power, 0 < bonus_power < math.inf, "above 0")
    require("bonus_power", bonus_power, bonus_power == 1 or bonus == "power", "1 unless bonus='power'")
    require("bonus_start", bonus_start, 0 <= bonus_start < 1, "in [0, 1)")
    require("bonus_end", bonus_end, bonus_end is None or 0 <= bonus_end <= 1, "in [0, 1] or None")
    require("subsample", subsample, 0 < subsample <= 1, "in (0, 1]")
    require("subsample", subsample, subsample == 1 or bonus == "log", "1 unless bonus='log'")
    require("bonus_clamp", bonus_clamp, 0 <= bonus_clamp < 0.5, "in [0, 0.5)")


def encouraging_loss_terms(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    log_end: float = 0.75,
    *,
    bonus: str = "log",
    bonus_smoothing: float | None = None,
    bonus_power: float = 1.0,
    bonus_start: float = 0.0,
    bonus_end: float | None = None,
    subsample: float = 1.0,
    smoothing_form: str = "uniform",
    bonus_clamp: float = 1e-5,
) -> tuple[Tensor, Tensor]:
    """The cross-entropy and the bonus of every example, apart.

    For losses that weigh or mask the two differently, such as a class-weighted bonus on a plain cross-entropy::

        cross_entropy, bonus = encouraging_loss_terms(logits, target)
        loss = (cross_entropy + class_weight[target] * bonus).mean()

    Args and shapes are those of :func:`encouraging_loss`.

    Returns:
        ``(cross_entropy, bonus)``, each of the shape that ``reduction="none"`` gives, 0 at ignored targets, in
        float32 for half-precision input. ``bonus`` is never positive.
    """
    if bonus_smoothing is None:
        bonus_smoothing = label_smoothing
    _check_options(
        log_end,
        label_smoothing,
        bonus_smoothing,
        smoothing_form,
        bonus,
        bonus_power,
        bonus_start,
        bonus_end,
        subsample,
        bonus_clamp,
    )
    if input.dim() == 0:
        raise ValueError("input must have a class dimension, got a scalar")
    class_dim = 1 if input.dim() > 1 else 0
    classes = input.size(class_dim)
    if classes < 2:
        raise ValueError(f"input must have at least 2 classes, got shape {tuple(input.shape)}")
    rows_shape = input.shape[:class_dim] + input.shape[class_dim + 1 :]
    soft = target.is_floating_point()
    if target.shape != (input.shape if soft else rows_shape):
        raise ValueError(
            f"target must have shape {tuple(rows_shape)} (class indices) or {tuple(input.shape)} (probabilities)"
            f" for input of shape {tuple(input.shape)}, got {tuple(target.shape)}"
        )
    logits = input.movedim(class_dim, -1).reshape(-1, classes)
    spread = classes if smoothing_form == "uniform" else classes - 1
    off, off_bonus = label_smoothing / spread, bonus_smoothing / spread
    plain_log = bonus == "log" and bonus_start == 0 and bonus_end is None and subsample == 1

    if soft:
        ignored = None
        probabilities = target.movedim(class_dim, -1).reshape(-1, classes).to(compute_dtype(logits))
    else:
        ignored = target.reshape(-1) == ignore_index
        indices = target.reshape(-1).masked_fill(ignored, 0)
        # A compiler fuses the plain formula by itself, and torch.export would lose the closed form's gradient.
        if plain_log and weight is None and not torch.compiler.is_compiling():
            terms = LogBonusCrossEntropy.apply(logits, indices, off, off_bonus, log_end, bonus_clamp)[:2]
            return tuple(term.masked_fill(ignored, 0.0).view(rows_shape) for term in terms)
        probabilities = one_hot(indices, logits).to(compute_dtype(logits))

    log_p = F.log_softmax(logits, -1, dtype=compute_dtype(logits))
    value = _dense_bonus(log_p, bonus, log_end, bonus_power, bonus_start, bonus_end, subsample, bonus_clamp)
    terms = []
    for per_class, amount in ((-log_p, off), (value, off_bonus)):
        q = probabilities * (1 - classes * amount) + amount
        if weight is not None:
            q = q * weight.to(q.dtype)
        # 0 * log 0 = 0
        term = (q * per_class.masked_fill(q == 0, 0.0)).sum(-1)
        terms.append((term if ignored is None else term.masked_fill(ignored, 0.0)).view(rows_shape))
    return terms[0], terms[1]


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
        label_smoothing: :math:`\epsilon` of the cross-entropy, and of the bonus unless ``bonus_smoothing`` says else.
        log_end: where the logarithm ends, in [0, 1]. 0 is the bonus ``-p``, 1 the full logarithm ("normal bonus").
            Default 0.75, as the released image code; translation was published with 0.5. With 1, halve the learning
            rate.
        bonus: ``"log"``; ``"power"``, :math:`B = -p^\gamma`; or ``"cosine"``, :math:`B = \cos(\pi p) - 1`. The last
            two do not use ``log_end``.
        bonus_weight: :math:`\lambda`; 0 is the cross-entropy.
        bonus_smoothing: :math:`\epsilon` of the bonus alone. Default: ``label_smoothing``.
        bonus_power: :math:`\gamma` of the power bonus.
        bonus_start: s of the "aggressive" bonus, :math:`B(p) - B(s)` for :math:`p \ge s` and 0 below. The paper uses
            ``bonus_start=0.5, log_end=1.0``. Continuous at s for every ``log_end`` (our choice).
        bonus_end: no bonus for :math:`p` above this value. Default: none.
        subsample: :math:`\rho` in :math:`B(\rho p)`, the bonus as if a share of the probability did not count.
        smoothing_form: ``"uniform"`` gives every class :math:`\epsilon / V`, as the released code and
            ``F.cross_entropy``; ``"off-target"`` gives :math:`\epsilon / (V - 1)` to all but the target, as fairseq
            0.12.
        bonus_clamp: least value of ``1 - p`` inside the logarithm; beyond it the bonus is constant. Default 1e-5, as
            the released code. Only ``log_end=1`` gets there, and with smoothed targets the clamp is what keeps that
            loss bounded below. 0 is the exact loss, stable for any margin.

    Returns:
        A scalar, or with ``reduction="none"`` a tensor of the shape of the class indices; float32 for
        half-precision input.

    Raises:
        ValueError: an option out of its range, or ``target`` of neither shape.

    Example:
        >>> logits, target = torch.randn(3, 5, requires_grad=True), torch.tensor([1, 0, 4])
        >>> encouraging_loss(logits, target, label_smoothing=0.1).backward()
    """
    require("reduction", reduction, reduction in REDUCTIONS, f"one of {REDUCTIONS}")
    require("bonus_weight", bonus_weight, math.isfinite(bonus_weight), "finite")
    cross_entropy, bonus_term = encouraging_loss_terms(
        input,
        target,
        weight,
        ignore_index,
        label_smoothing,
        log_end,
        bonus=bonus,
        bonus_smoothing=bonus_smoothing,
        bonus_power=bonus_power,
        bonus_start=bonus_start,
        bonus_end=bonus_end,
        subsample=subsample,
        smoothing_form=smoothing_form,
        bonus_clamp=bonus_clamp,
    )
    loss = cross_entropy + bonus_weight * bonus_term if bonus_weight else cross_entropy
    if reduction != "mean" or target.is_floating_point():
        return reduce_weighted(loss, None, reduction)
    kept = target != ignore_index
    total = kept.sum() if weight is None else (weight[target * kept] * kept).sum()
    return loss.sum() / total


def bonus_schedule(epoch: int, max_epoch: int, schedule: str = "linear", ratio: float = 5.0) -> float:
    """Share of the bonus at ``epoch``, with ``t = epoch / max_epoch`` and at most 1.

    ``"linear"``: t. ``"exp"``: exp((t - 1) ratio) for a positive ratio, a late start; 1 - exp(t ratio) for a negative
    one, an early start. ``"cos"``: (1 + cos(pi (1 + t))) / 2. ``"none"``: 1.

    Raises:
        ValueError: another schedule, or a ratio of 0, which would be no bonus at any time.
    """
    require("schedule", schedule, schedule in SCHEDULES, f"one of {SCHEDULES}")
    require("ratio", ratio, math.isfinite(ratio) and ratio != 0, "a finite number other than 0")
    if schedule == "none":
        return 1.0
    t = min(epoch / max_epoch, 1.0)
    if schedule == "linear":
        return t
    if schedule == "cos":
        return (1 + math.cos(math.pi * (1 + t))) / 2
    return math.exp((t - 1) * ratio) if ratio > 0 else 1 - math.exp(t * ratio)


class EncouragingLoss(nn.Module):
    """Module form of :func:`encouraging_loss`, with a bonus that may start late or grow over the epochs.

    Args:
        weight, ignore_index, reduction, label_smoothing, log_end: as :func:`encouraging_loss`.
        defer_start: no bonus up to and including this epoch, as :meth:`set_epoch` counts them. Default 0.
        schedule: ``"none"``, ``"linear"``, ``"exp"`` or ``"cos"``; see :func:`bonus_schedule`.
        schedule_of: what grows: ``"bonus_weight"`` or ``"log_end"``.
        schedule_ratio: steepness of ``"exp"``.
        max_epoch: the epoch at which a schedule reaches its end; every schedule needs it.
        **options: the keyword-only options of :func:`encouraging_loss`.

    Without a call of :meth:`set_epoch` the bonus is at its full strength.

    Example:
        >>> criterion = EncouragingLoss(log_end=0.5, defer_start=25)
        >>> criterion.set_epoch(26)
        >>> loss = criterion(torch.randn(3, 5), torch.tensor([1, 0, 4]))
    """

    def __init__(
        self,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        log_end: float = 0.75,
        *,
        defer_start: int = 0,
        schedule: str = "none",
        schedule_of: str = "bonus_weight",
        schedule_ratio: float = 5.0,
        max_epoch: int | None = None,
        **options,
    ) -> None:
        super().__init__()
        require("schedule", schedule, schedule in SCHEDULES, f"one of {SCHEDULES}")
        scheduled = schedule != "none"
        require("schedule_of", schedule_of, schedule_of in ("bonus_weight", "log_end"), "'bonus_weight' or 'log_end'")
        require("schedule_of", schedule_of, scheduled or schedule_of == "bonus_weight", "left alone without a schedule")
        require("schedule_ratio", schedule_ratio, math.isfinite(schedule_ratio) and schedule_ratio != 0, "not 0")
        require("schedule_ratio", schedule_ratio, schedule == "exp" or schedule_ratio == 5, "5 unless schedule='exp'")
        positive = max_epoch is not None and max_epoch > 0
        require("max_epoch", max_epoch, positive == scheduled, "a positive number with a schedule, None without one")
        require("defer_start", defer_start, defer_start >= 0, "at least 0")
        self.weight: Tensor | None
        self.register_buffer("weight", weight)
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.label_smoothing = label_smoothing
        self.log_end = log_end
        self.defer_start = defer_start
        self.schedule = schedule
        self.schedule_of = schedule_of
        self.schedule_ratio = schedule_ratio
        self.max_epoch = max_epoch
        self.options = options
        self.epoch: int | None = None
        # A wrong option is an error here, not at the first batch.
        dummy = torch.zeros(1, 2), torch.zeros(1, dtype=torch.long)
        encouraging_loss(*dummy, None, ignore_index, reduction, label_smoothing, log_end, **options)

    def set_epoch(self, epoch: int) -> None:
        """Tell the loss which epoch runs."""
        self.epoch = epoch

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        current = {"bonus_weight": self.options.get("bonus_weight", 1.0), "log_end": self.log_end}
        if self.epoch is not None:
            if self.defer_start and self.epoch <= self.defer_start:
                current["bonus_weight"] = 0.0
            if self.max_epoch and self.schedule != "none":
                share = bonus_schedule(self.epoch, self.max_epoch, self.schedule, self.schedule_ratio)
                current[self.schedule_of] *= share
        return encouraging_loss(
            input,
            target,
            self.weight,
            self.ignore_index,
            self.reduction,
            self.label_smoothing,
            **{**self.options, **current},
        )

    def extra_repr(self) -> str:
        names = ["reduction", "label_smoothing", "log_end"]
        if self.defer_start:
            names.append("defer_start")
        if self.schedule != "none":
            names += ["schedule", "schedule_of", "max_epoch"]
        shown = {name: getattr(self, name) for name in names} | self.options
        return ", ".join(f"{name}={value!r}" for name, value in shown.items())
