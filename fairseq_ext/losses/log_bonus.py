"""The log bonus of the encouraging loss in closed form: value and gradient without losing 1 - p near 1."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from fairseq_ext.precision import compute_dtype


class LogBonusCrossEntropy(torch.autograd.Function):
    """Per-row cross-entropy and log bonus of ``(N, V)`` logits, in closed form, a block of rows at a time.

    With smoothed targets ``a_c = t [c = y] + o`` and ``b_c`` likewise for the bonus, ``G_c = b_c B'(p_c) p_c``:

        d ce / dz_j = p_j - a_j        d bonus / dz_j = G_j - p_j sum_c G_c

    Only ``m = argmax z`` can have ``p > 1/2``, so it alone needs care in ``1 - p``: its complement is summed from the
    other logits, ``1 - p_m = sigmoid(logsumexp_{j != m} z_j - z_m)``, and with ``u_j = softmax`` over those others
    ``p_j = (1 - p_m) u_j``. Written in ``u`` no term of the gradient divides by ``1 - p_m``.

    The backward pass rebuilds ``u`` from the input and three numbers a row; the gradient itself is the only
    ``N x V`` tensor that is allocated.
    """

    @staticmethod
    def forward(input, target, off, off_bonus, log_end, bonus_clamp):
        rows, classes = input.shape
        dtype = compute_dtype(input)
        top = torch.empty_like(target)
        peak, total, ce, bonus = (torch.empty(rows, dtype=dtype, device=input.device) for _ in range(4))
        on, on_bonus = 1.0 - classes * off, 1.0 - classes * off_bonus
        for block in _row_blocks(input):
            z, y = input[block].to(dtype), target[block]
            zt, t = z.max(1)
            others = z.scatter(1, t[:, None], -math.inf)
            highest = others.amax(1).clamp_(min=torch.finfo(dtype).min)
            others.sub_(highest[:, None])
            if off:
                below_highest = others.scatter_(1, t[:, None], 0.0).sum(1)
                others.scatter_(1, t[:, None], -math.inf)
            p_rest = others.exp_()
            sum_rest = p_rest.sum(1).clamp_(min=torch.finfo(dtype).tiny)
            top[block], peak[block], total[block] = t, highest, sum_rest
            # Differences of logits first: a large offset that all of them share must not swallow the logarithm.
            odds = zt - highest - sum_rest.log()
            log_p_top = F.logsigmoid(odds)
            hit = y == t
            log_p_y = torch.where(hit, 0.0, z.gather(1, y[:, None]).squeeze(1) - zt) + log_p_top

            bonus_top, _ = top_bonus(odds, log_end, bonus_clamp)
            # The other branch of the `where` sees p_y <= 1/2 only.
            p_y = log_p_y.exp().masked_fill_(hit, 0.0)
            row_ce = -on * log_p_y
            row_bonus = on_bonus * torch.where(hit, bonus_top, _bonus_below_half(p_y, log_end))
            if off:
                row_ce -= off * (below_highest + (classes - 1) * (highest - zt) + classes * log_p_top)
            if off_bonus:
                p_rest *= ((-odds).sigmoid() / sum_rest)[:, None]
                row_bonus += off_bonus * (_bonus_sum_below_half(p_rest, log_end) + bonus_top)
            ce[block], bonus[block] = row_ce, row_bonus
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
    @once_differentiable
    def backward(ctx, grad_ce, grad_bonus, *_):
        return _Gradient.apply(grad_ce, grad_bonus, *ctx.saved_tensors, *ctx.constants), None, None, None, None, None


class _Gradient(torch.autograd.Function):
    """The backward pass of :class:`LogBonusCrossEntropy`: a function of its own, so that ``torch.func`` can map it."""

    @staticmethod
    def forward(grad_ce, grad_bonus, input, target, top, peak, total, off, off_bonus, log_end, bonus_clamp):
        classes = input.size(1)
        on, on_bonus = 1.0 - classes * off, 1.0 - classes * off_bonus
        grad = torch.empty_like(input, memory_format=torch.contiguous_format)
        for block in _row_blocks(input):
            y, t, highest, sum_rest = (value[block, None] for value in (target, top, peak, total))
            z, hit = input[block].to(peak.dtype), y == t
            odds = z.gather(1, t) - highest - sum_rest.log()
            g_ce, g_bonus = grad_ce[block, None], grad_bonus[block, None]
            p_top, q_top = odds.sigmoid(), (-odds).sigmoid()
            _, slope_top = top_bonus(odds, log_end, bonus_clamp)
            p_y = ((z.gather(1, y) - highest).exp() * (q_top / sum_rest)).masked_fill_(hit, 0.0)

            direct = grad[block] if grad.dtype == z.dtype else None
            u = torch.sub(z, highest, out=direct).exp_().scatter_(1, t, 0.0)  # times sum_rest
            slope_y = -on_bonus * p_y / (1.0 - p_y.clamp(max=log_end))
            slope_sum = slope_y
            slope_top = slope_top * (off_bonus + on_bonus * hit.to(u.dtype))
            if off_bonus:
                slope_rest = u * (q_top / sum_rest)
                slope_rest /= 1.0 - (slope_rest.clamp(max=log_end) if log_end < 0.5 else slope_rest)
                slope_sum = slope_sum - off_bonus * slope_rest.sum(1, keepdim=True)
            factor = (g_ce * q_top - g_bonus * (q_top * slope_sum + slope_top)) / sum_rest
            torch.addcmul(-off * g_ce, u, factor, out=u)
            if off_bonus:
                u.addcmul_(slope_rest, g_bonus, value=-off_bonus)
            u.scatter_add_(1, y, g_bonus * slope_y - g_ce * on)
            # p_m - a_m without the cancellation of 1 - p_m
            ce_top = torch.where(hit, (classes - 1) * off - q_top, p_top - off)
            u.scatter_(1, t, g_ce * ce_top + g_bonus * (slope_top - p_top * slope_sum))
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
    """What is mapped over becomes more rows: rows do not know each other."""
    return tuple(
        value
        if not isinstance(value, Tensor)
        else (value.expand(info.batch_size, *value.shape) if dim is None else value.movedim(dim, 0)).flatten(0, 1)
        for value, dim in zip(arguments, in_dims, strict=True)
    )


def _row_blocks(input: Tensor):
    # Small enough for the cache of a core; on an accelerator large enough to hide the launches.
    elements = 2**18 if input.device.type == "cpu" else 2**26
    rows = max(1, elements // max(1, input.size(1)))
    return [slice(start, start + rows) for start in range(0, input.size(0), rows)]


def top_bonus(odds: Tensor, log_end: float, bonus_clamp: float) -> tuple[Tensor, Tensor]:
    """``B(p)`` and ``(1 - p) p B'(p)`` for ``p = sigmoid(odds)``, exact however close ``p`` is to 1."""
    p, log_q = odds.sigmoid(), F.logsigmoid(-odds)
    value, slope = log_q, -p
    if bonus_clamp > 0:
        clamped = log_q < math.log(bonus_clamp)
        value, slope = value.masked_fill(clamped, math.log(bonus_clamp)), slope.masked_fill(clamped, 0.0)
    if log_end < 1:
        linear = p > log_end
        value = torch.where(linear, math.log1p(-log_end) - (p - log_end) / (1 - log_end), value)
        slope = torch.where(linear, -p * log_q.exp() / (1 - log_end), slope)
    return value, slope


def _bonus_below_half(p: Tensor, log_end: float) -> Tensor:
    """``B(p)`` for ``p <= 1/2``."""
    if log_end >= 0.5:
        return torch.log1p(-p)
    return torch.log1p(-p.clamp(max=log_end)) - (p - log_end).clamp_(min=0.0) / (1 - log_end)


def _bonus_sum_below_half(p: Tensor, log_end: float) -> Tensor:
    """``B(p)`` summed over all classes but the most probable one; overwrites ``p``."""
    linear: Tensor | float = 0.0
    if log_end < 0.5:
        clipped = p.clamp(max=log_end)
        linear, p = (p.sum(1) - clipped.sum(1)) / (1 - log_end), clipped
    # One logarithm a row. Every p <= 1/2 and their sum is at most 1, so the product stays above 1/4.
    return p.neg_().add_(1.0).prod(1).log() - linear
