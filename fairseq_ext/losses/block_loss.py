"""Encouraging loss of a block of logits that nobody needs afterwards: value and gradient at once."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fairseq_ext.losses.bonus import Bonus
from fairseq_ext.losses.encouraging import encouraging_loss_terms, off_target_shares
from fairseq_ext.losses.log_bonus import LogBonusForm, bonus_sum_below_half, largest, row_blocks
from fairseq_ext.precision import compute_dtype

__all__ = ["BlockLoss", "BlockTerms", "block_loss"]


class BlockTerms(NamedTuple):
    """The terms of the loss for the rows of a block, ``(N)`` each and without gradient."""

    cross_entropy: Tensor
    bonus: Tensor
    nll: Tensor
    """``-log p_y``, without smoothing."""
    prediction: Tensor
    """The class with the largest logit."""


BlockLoss = Callable[[Tensor, Tensor, float, float], tuple[BlockTerms, Tensor]]
"""From ``(logits, target, grad_ce, grad_bonus)`` the terms, and the gradient of the logits ``(N, V)``, which may be
written over them, of ``grad_ce * cross_entropy + grad_bonus * bonus``. With both weights 0 it holds nothing of use."""


def block_loss(
    classes: int,
    class_weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    bonus_smoothing: float | None = None,
    smoothing_form: str = "uniform",
    **bonus: Any,
) -> BlockLoss:
    """The closed form of the log bonus, or autograd for class weights and the rarer forms of the bonus.

    Args:
        classes: number of classes V.
        class_weight: ``weight`` of :func:`~fairseq_ext.losses.encouraging_loss_terms`.
        label_smoothing, bonus_smoothing, smoothing_form: as there.
        **bonus: fields of :class:`~fairseq_ext.losses.bonus.Bonus`.

    Raises:
        ValueError: an option out of its range or without effect.
    """
    shape = Bonus(**bonus)
    off, off_bonus = off_target_shares(classes, shape, label_smoothing, bonus_smoothing, smoothing_form)
    if shape.is_plain_log and class_weight is None:
        return partial(_closed_form, LogBonusForm(classes, off, off_bonus, shape.log_end, shape.bonus_clamp))
    terms = partial(
        encouraging_loss_terms,
        weight=class_weight,
        label_smoothing=label_smoothing,
        bonus_smoothing=bonus_smoothing,
        smoothing_form=smoothing_form,
        **bonus,
    )
    return partial(_by_autograd, terms)


def _by_autograd(
    terms: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    logits: Tensor,
    target: Tensor,
    grad_ce: float,
    grad_bonus: float,
) -> tuple[BlockTerms, Tensor]:
    nll = F.cross_entropy(logits.to(compute_dtype(logits)), target, reduction="none")
    prediction = logits.argmax(1)
    if not grad_ce and not grad_bonus:
        with torch.no_grad():
            return BlockTerms(*terms(logits, target), nll, prediction), logits
    with torch.enable_grad():
        cross_entropy, bonus = terms(logits.requires_grad_(), target)
        loss = (grad_ce * cross_entropy + grad_bonus * bonus).sum()
    (grad,) = torch.autograd.grad(loss, logits)
    return BlockTerms(cross_entropy.detach(), bonus.detach(), nll, prediction), grad


def _closed_form(
    form: LogBonusForm, logits: Tensor, target: Tensor, grad_ce: float, grad_bonus: float
) -> tuple[BlockTerms, Tensor]:
    """:class:`~fairseq_ext.losses.log_bonus.LogBonusCrossEntropy` forward and backward, with one softmax for both."""
    dtype = compute_dtype(logits)
    least = torch.finfo(dtype).min
    blocks = row_blocks(logits, cpu=2**19, accelerator=2**23)
    # Memory that every step allocates anew costs a CPU as much time as the computation in it.
    buffers = [torch.empty_like(logits[blocks[0]], dtype=dtype) for _ in range(2)]
    rows = []
    for block in blocks:
        z, y = logits[block].to(dtype), target[block, None]
        u, p = (buffer[: len(z)] for buffer in buffers)
        z_top, t = (value[:, None] for value in largest(z))
        hit, lag = y == t, z.gather(1, y) - z_top
        z.scatter_(1, t, -math.inf)
        highest = z.amax(1, keepdim=True).clamp_(min=least)
        z.sub_(highest)
        below = bonus_rest = torch.zeros_like(highest)
        if form.off:
            below = z.scatter_(1, t, 0.0).sum(1, keepdim=True) + (form.classes - 1) * (highest - z_top)
        # A softmax over nothing but -inf would be nan.
        z.scatter_(1, t, torch.zeros_like(highest).masked_fill_(highest > least, -math.inf))
        torch.softmax(z, 1, out=u)
        # The largest logit of z is 0, so the largest u is 1 / sum(exp(z)).
        odds = z_top - highest + u.amax(1, keepdim=True).log()
        u.scatter_(1, t, 0.0)
        q_top = (-odds).sigmoid()
        p_y = u.gather(1, y) * q_top
        slope = None
        if form.off_bonus:
            bonus_rest, q = bonus_sum_below_half(torch.mul(u, q_top, out=p), form.log_end, out=z)
            slope = p.div_(q) if grad_bonus else None
        rows.append((odds, hit, lag, below, bonus_rest, t))
        if not grad_ce and not grad_bonus:
            continue
        slope_sum = 0.0 if slope is None else slope.sum(1, keepdim=True)
        factor, at_y, at_top = form.slopes(odds, hit, p_y, slope_sum, grad_ce, grad_bonus)
        grad = torch.mul(u, factor, out=z)
        if form.off:
            grad.sub_(form.off * grad_ce)
        if slope is not None:
            grad.sub_(slope, alpha=form.off_bonus * grad_bonus)
        grad.scatter_add_(1, y, at_y).scatter_(1, t, at_top)
        if z.dtype != logits.dtype:
            logits[block] = grad
    *columns, top = (torch.cat(column).squeeze(1) for column in zip(*rows, strict=True))
    cross_entropy, bonus, log_p_y = form.terms(*columns)
    return BlockTerms(cross_entropy, bonus, -log_p_y, top), logits
