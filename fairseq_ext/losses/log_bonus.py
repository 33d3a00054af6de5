"""The log bonus of the encouraging loss in closed form: value and gradient without losing 1 - p near 1."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fairseq_ext.losses.bonus import Bonus, plain_terms, tangent
from fairseq_ext.losses.common import one_hot
from fairseq_ext.precision import compute_dtype
from fairseq_ext.second_derivative import of_formula

__all__ = ["LogBonusCrossEntropy", "LogBonusForm", "bonus_sum_below_half", "largest", "row_blocks", "top_bonus"]


@dataclass(frozen=True)
class LogBonusForm:
    """The row-wise part of the closed form that :class:`LogBonusCrossEntropy` states.

    Args:
        classes: number of classes V.
        off, off_bonus: o, the share that smoothing gives to every class, in the cross-entropy and in the bonus.
        log_end, bonus_clamp: as in :class:`~fairseq_ext.losses.bonus.Bonus`.
    """

    classes: int
    off: float
    off_bonus: float
    log_end: float
    bonus_clamp: float

    @property
    def on(self) -> float:
        """The share t of the target in the cross-entropy, see :class:`LogBonusCrossEntropy`."""
        return 1.0 - self.classes * self.off

    @property
    def on_bonus(self) -> float:
        """The share t of the target in the bonus."""
        return 1.0 - self.classes * self.off_bonus

    def terms(
        self, odds: Tensor, hit: Tensor, lag: Tensor, below: Tensor | float, bonus_rest: Tensor | float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Cross-entropy, bonus and ``log p_y`` of rows.

        Args:
            odds: ``log(p_m / (1 - p_m))``.
            hit: whether ``y = m``.
            lag: ``z_y - z_m``.
            below: ``sum_j z_j - z_m``, needed for ``off > 0``.
            bonus_rest: ``sum_{j != m} B(p_j)``, needed for ``off_bonus > 0``.
        """
        log_p_top = F.logsigmoid(odds)
        log_p_y = torch.where(hit, 0.0, lag) + log_p_top
        bonus_top, _ = top_bonus(odds, self.log_end, self.bonus_clamp)
        # The other branch of the `where` sees p_y <= 1/2 only.
        p_y = log_p_y.exp().masked_fill_(hit, 0.0)
        cross_entropy = -self.on * log_p_y
        bonus = self.on_bonus * torch.where(hit, bonus_top, _bonus_below_half(p_y, self.log_end))
        if self.off:
            cross_entropy -= self.off * (below + self.classes * log_p_top)
        if self.off_bonus:
            bonus += self.off_bonus * (bonus_rest + bonus_top)
        return cross_entropy, bonus, log_p_y

    def slopes(
        self,
        odds: Tensor,
        hit: Tensor,
        p_y: Tensor,
        slope_rest: Tensor | float,
        grad_ce: Tensor | float,
        grad_bonus: Tensor | float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The gradient of rows in three parts: the factor of ``u``, the summand at ``y``, and the value at ``m``.

        Args:
            odds, hit: as in :meth:`terms`.
            p_y: 0 where ``y = m``.
            slope_rest: ``sum_{j != m} p_j / (1 - p_j)``, with ``log_end`` for a larger p below the fraction.
            grad_ce, grad_bonus: gradients of the cross-entropy and of the bonus.
        """
        p_top, q_top = odds.sigmoid(), (-odds).sigmoid()
        _, slope_top = top_bonus(odds, self.log_end, self.bonus_clamp)
        slope_top = slope_top * (self.off_bonus + self.on_bonus * hit.to(odds.dtype))
        slope_y = -self.on_bonus * p_y / (1.0 - p_y.clamp(max=self.log_end))
        slope_sum = slope_y - self.off_bonus * slope_rest
        factor = grad_ce * q_top - grad_bonus * (q_top * slope_sum + slope_top)
        # p_m - a_m without the cancellation of 1 - p_m
        ce_top = torch.where(hit, (self.classes - 1) * self.off - q_top, p_top - self.off)
        at_top = grad_ce * ce_top + grad_bonus * (slope_top - p_top * slope_sum)
        return factor, grad_bonus * slope_y - grad_ce * self.on, at_top


class LogBonusCrossEntropy(torch.autograd.Function):
    """Per-row cross-entropy and log bonus of ``(N, V)`` logits, in closed form, a block of rows at a time.

    With smoothed targets ``a_c = t [c = y] + o`` and ``b_c`` likewise for the bonus, ``G_c = b_c B'(p_c) p_c``:

        d ce / dz_j = p_j - a_j        d bonus / dz_j = G_j - p_j sum_c G_c

    Only ``m = argmax z`` can have ``p > 1/2``, so it alone needs care in ``1 - p``: its complement is summed from the
    other logits, ``1 - p_m = sigmoid(logsumexp_{j != m} z_j - z_m)``, and with ``u_j = softmax`` over those others
    ``p_j = (1 - p_m) u_j``. Written in ``u`` no term of the gradient divides by ``1 - p_m``.

    The backward pass rebuilds ``u`` from the input and three numbers per row; the gradient itself is the only
    ``N x V`` tensor that is allocated.
    """

    @staticmethod
    def forward(input, target, off, off_bonus, log_end, bonus_clamp):
        rows, classes = input.shape
        dtype = compute_dtype(input)
        top = torch.empty_like(target)
        peak, total, ce, bonus = (torch.empty(rows, dtype=dtype, device=input.device) for _ in range(4))
        form = LogBonusForm(classes, off, off_bonus, log_end, bonus_clamp)
        for block in row_blocks(input):
            z, y = input[block].to(dtype), target[block]
            zt, t = largest(z)
            others = z.scatter(1, t[:, None], -math.inf)
            highest = others.amax(1).clamp_(min=torch.finfo(dtype).min)
            others.sub_(highest[:, None])
            below: Tensor | float = 0.0
            if off:
                below_highest = others.scatter_(1, t[:, None], 0.0).sum(1)
                below = below_highest + (classes - 1) * (highest - zt)
                others.scatter_(1, t[:, None], -math.inf)
            p_rest = others.exp_()
            sum_rest = p_rest.sum(1).clamp_(min=torch.finfo(dtype).tiny)
            top[block], peak[block], total[block] = t, highest, sum_rest
            # Differences of logits first: a large offset that all of them share must not swallow the logarithm.
            odds = zt - highest - sum_rest.log()
            bonus_rest: Tensor | float = 0.0
            if off_bonus:
                p_rest *= ((-odds).sigmoid() / sum_rest)[:, None]
                bonus_rest = bonus_sum_below_half(p_rest, log_end, out=p_rest)[0].squeeze(1)
            lag = z.gather(1, y[:, None]).squeeze(1) - zt
            ce[block], bonus[block], _ = form.terms(odds, y == t, lag, below, bonus_rest)
        return ce, bonus, top, peak, total

    @staticmethod
    def setup_context(ctx, inputs, output):
        input, target, *constants = inputs
        _, _, *saved = output
        ctx.mark_non_differentiable(*saved)
        ctx.save_for_backward(input, target, *saved)
        ctx.constants = constants

    @staticmethod
    def vmap(info, in_dims, *arguments):
        rows = LogBonusCrossEntropy.apply(*_as_rows(info, in_dims, arguments))
        return tuple(value.unflatten(0, (info.batch_size, -1)) for value in rows), (0,) * len(rows)

    @staticmethod
    def backward(ctx, grad_ce, grad_bonus, *_):
        saved = ctx.saved_tensors  # a checkpoint gives them only once
        with torch.no_grad():
            gradient = _Gradient.apply(grad_ce, grad_bonus, *saved, *ctx.constants)
        input, target, *_ = saved
        gradient = of_formula(gradient, _formula(*ctx.constants), input, (grad_ce, grad_bonus), (target,))
        return gradient, None, None, None, None, None


def _formula(off: float, off_bonus: float, log_end: float, bonus_clamp: float) -> Callable[..., tuple[Tensor, Tensor]]:
    """What :class:`LogBonusCrossEntropy` computes, in operations that can be differentiated any number of times."""
    bonus = Bonus(log_end, bonus_clamp=bonus_clamp)

    def formula(input: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        probabilities = one_hot(target, input).to(compute_dtype(input))
        return plain_terms(input, probabilities, off, off_bonus, bonus)

    return formula


class _Gradient(torch.autograd.Function):
    """The backward pass of :class:`LogBonusCrossEntropy`: a function of its own, so that ``torch.func`` can map it."""

    @staticmethod
    def forward(grad_ce, grad_bonus, input, target, top, peak, total, off, off_bonus, log_end, bonus_clamp):
        classes = input.size(1)
        form = LogBonusForm(classes, off, off_bonus, log_end, bonus_clamp)
        grad = torch.empty_like(input, memory_format=torch.contiguous_format)
        for block in row_blocks(input):
            y, t, highest, sum_rest = (value[block, None] for value in (target, top, peak, total))
            z, hit = input[block].to(peak.dtype), y == t
            odds = z.gather(1, t) - highest - sum_rest.log()
            g_ce, g_bonus = grad_ce[block, None], grad_bonus[block, None]
            share = (-odds).sigmoid() / sum_rest
            p_y = ((z.gather(1, y) - highest).exp() * share).masked_fill_(hit, 0.0)

            direct = grad[block] if grad.dtype == z.dtype else None
            u = torch.sub(z, highest, out=direct).exp_().scatter_(1, t, 0.0)  # times sum_rest
            slope_sum: Tensor | float = 0.0
            if off_bonus:
                slope = u * share
                slope /= 1.0 - (slope.clamp(max=log_end) if log_end < 0.5 else slope)
                slope_sum = slope.sum(1, keepdim=True)
            factor, at_y, at_top = form.slopes(odds, hit, p_y, slope_sum, g_ce, g_bonus)
            torch.addcmul(-off * g_ce, u, factor / sum_rest, out=u)
            if off_bonus:
                u.addcmul_(slope, g_bonus, value=-off_bonus)
            u.scatter_add_(1, y, at_y).scatter_(1, t, at_top)
            if direct is None:
                grad[block] = u
        return grad

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def vmap(info, in_dims, *arguments):
        return _Gradient.apply(*_as_rows(info, in_dims, arguments)).unflatten(0, (info.batch_size, -1)), 0


def _as_rows(info, in_dims, arguments):
    """The arguments with the mapped dimension turned into more rows, as rows do not depend on each other."""
    return tuple(
        value
        if not isinstance(value, Tensor)
        else (value.expand(info.batch_size, *value.shape) if dim is None else value.movedim(dim, 0)).flatten(0, 1)
        for value, dim in zip(arguments, in_dims, strict=True)
    )


def row_blocks(input: Tensor, cpu: int = 2**18, accelerator: int = 2**26) -> list[slice]:
    """The rows of each step: few enough for the cache of a ``cpu``, enough to hide launches on an ``accelerator``."""
    elements = cpu if input.device.type == "cpu" else accelerator
    rows = max(1, elements // max(1, input.size(1)))
    return [slice(start, start + rows) for start in range(0, input.size(0), rows)]


def largest(input: Tensor) -> tuple[Tensor, Tensor]:
    """``input.max(1)``; on a CPU, where that takes longer than a softmax, over windows first."""
    classes = input.size(1)
    size = min(4 * math.isqrt(classes), classes)
    if input.device.type != "cpu" or size == classes:
        return input.max(1)
    whole = input[:, : classes - classes % size].unflatten(1, (-1, size)).amax(2)
    tail = input[:, -size:].amax(1, keepdim=True)
    start = (torch.cat([whole, tail], 1).argmax(1, keepdim=True) * size).clamp_(max=classes - size)
    value, index = input.gather(1, start + torch.arange(size, device=input.device)).max(1)
    return value, index + start.squeeze(1)


def top_bonus(odds: Tensor, log_end: float, bonus_clamp: float) -> tuple[Tensor, Tensor]:
    """``B(p)`` and ``(1 - p) p B'(p)`` for ``p = sigmoid(odds)``, exact however close ``p`` is to 1."""
    p, log_q = odds.sigmoid(), F.logsigmoid(-odds)
    value, slope = log_q, -p
    if log_end == 1 and bonus_clamp > 0:
        clamped = log_q < math.log(bonus_clamp)
        value, slope = value.masked_fill(clamped, math.log(bonus_clamp)), slope.masked_fill(clamped, 0.0)
    if log_end < 1:
        linear, q = log_q < math.log1p(-log_end), log_q.exp()
        value = torch.where(linear, tangent(log_end, p, q), value)
        slope = torch.where(linear, -p * q / (1 - log_end), slope)
    return value, slope


def _bonus_below_half(p: Tensor, log_end: float) -> Tensor:
    """``B(p)`` for ``p <= 1/2``."""
    if log_end >= 0.5:
        return torch.log1p(-p)
    return torch.log1p(-p.clamp(max=log_end)) - (p - log_end).clamp_(min=0.0) / (1 - log_end)


def bonus_sum_below_half(p: Tensor, log_end: float, out: Tensor) -> tuple[Tensor, Tensor]:
    """``B(p)`` summed over all classes but the most probable one, ``(N, 1)``, and ``out = 1 - min(p, log_end)``."""
    linear: Tensor | float = 0.0
    clipped = p
    if log_end < 0.5:
        clipped = p.clamp(max=log_end)
        linear = (p.sum(1, keepdim=True) - clipped.sum(1, keepdim=True)) / (1 - log_end)
    q = torch.sub(1.0, clipped, out=out)
    # One logarithm per row. Every p <= 1/2 and their sum is at most 1, so the product stays above 1/4.
    return q.prod(1, keepdim=True).log() - linear, q
