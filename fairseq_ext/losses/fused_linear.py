r"""Output projection and encouraging loss in one, without the ``(N, V)`` logits.

With :math:`z = h W^\top + b` and a loss that is a sum over the rows of z,

.. math::
    \frac{\partial L}{\partial h} = G W, \qquad \frac{\partial L}{\partial W} = G^\top h, \qquad
    \frac{\partial L}{\partial b} = \sum_n G_n, \qquad G = \frac{\partial L}{\partial z},

are known in the forward pass already, a block of rows at a time: of ``N x V`` numbers one block is alive at once.
The idea is that of Liger-Kernel's fused linear cross-entropy (Hsu et al., arXiv:2410.10989).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from fairseq_ext.losses.common import REDUCTIONS, require
from fairseq_ext.losses.encouraging import encouraging_loss, encouraging_loss_terms
from fairseq_ext.precision import compute_dtype

FLOAT16_SCALE = 2.0**8
"""Keeps the small gradients of logits above the least number of float16; they are at most a few units large."""


class FusedTerms(NamedTuple):
    """A loss summed over rows, and the parts of each row, ``(N)`` and without gradient; 0 at ignored targets."""

    loss: Tensor
    """``cross_entropy + bonus_weight * bonus``, summed; the one with a gradient."""
    cross_entropy: Tensor
    bonus: Tensor
    nll: Tensor
    """``-log p_y``, without smoothing."""
    prediction: Tensor
    """The class with the largest logit."""


def _nll_and_prediction(logits: Tensor, target: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    logits = logits.to(compute_dtype(logits))
    return F.cross_entropy(logits, target, ignore_index=ignore_index, reduction="none"), logits.argmax(1)


def block_elements(device: torch.device) -> int:
    """Logits of a block: few beside all of them, but so many that sums of the weight's gradient cost little."""
    return 2**23 if device.type == "cpu" else 2**25


def _blocks(hidden: Tensor, classes: int) -> list[slice]:
    size = max(1, block_elements(hidden.device) // classes)
    return [slice(start, start + size) for start in range(0, max(len(hidden), 1), size)]


class _FusedLinear(torch.autograd.Function):
    """A loss summed over rows, and what of it and of their logits is observed; ``terms`` gives its two parts."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, target, terms, bonus_weight, observe, differentiable):
        wanted = [differentiable and need for need in ctx.needs_input_grad[:3]]
        dtype = compute_dtype(hidden)
        grad_hidden = torch.empty_like(hidden) if wanted[0] else None
        grad_weight = torch.zeros_like(weight, dtype=dtype) if wanted[1] else None
        grad_bias = torch.zeros_like(bias, dtype=dtype) if wanted[2] else None
        scale = FLOAT16_SCALE if hidden.dtype == torch.float16 else 1.0
        rows = []
        for block in _blocks(hidden, len(weight)):
            logits = F.linear(hidden[block], weight, bias)
            with torch.enable_grad():
                logits.requires_grad_(any(wanted))
                cross_entropy, bonus = terms(logits, target[block])
                loss = (cross_entropy + bonus_weight * bonus).sum() * scale
            seen = observe(logits.detach(), target[block]) if observe else ()
            rows.append((cross_entropy.detach(), bonus.detach(), *seen))
            if not any(wanted):
                continue
            (grad,) = torch.autograd.grad(loss, logits)
            if grad_hidden is not None:
                torch.mm(grad, weight, out=grad_hidden[block])
            if grad_weight is not None and grad.dtype == dtype:
                grad_weight.addmm_(grad.t(), hidden[block])
            elif grad_weight is not None:
                grad_weight += grad.t() @ hidden[block]
            if grad_bias is not None:
                grad_bias += grad.sum(0, dtype=dtype)
        ctx.scale, ctx.dtypes = scale, (hidden.dtype, weight.dtype, None if bias is None else bias.dtype)
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        cross_entropy, bonus, *seen = map(torch.cat, zip(*rows, strict=True))
        ctx.mark_non_differentiable(cross_entropy, bonus, *seen)
        return (cross_entropy + bonus_weight * bonus).sum(), cross_entropy, bonus, *seen

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_loss, *_):
        factor = grad_loss / ctx.scale
        grads = (
            None if grad is None else (grad * factor).to(dtype)
            for grad, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return *grads, None, None, None, None, None


def _check_shapes(hidden: Tensor, weight: Tensor, target: Tensor) -> None:
    if weight.dim() != 2 or hidden.dim() != 2 or hidden.size(1) != weight.size(1):
        shapes = f"{tuple(hidden.shape)} and {tuple(weight.shape)}"
        raise ValueError(f"hidden and weight must have shapes (N, D) and (V, D), got {shapes}")
    if target.shape != hidden.shape[:1] or target.is_floating_point():
        raise ValueError(f"target must hold one class index a row, shape ({len(hidden)},), got {tuple(target.shape)}")


def _fused(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None,
    class_weight: Tensor | None,
    ignore_index: int,
    bonus_weight: float,
    observe: Callable[[Tensor, Tensor], tuple[Tensor, ...]] | None,
    options: dict[str, Any],
) -> tuple[Tensor, ...]:
    require("bonus_weight", bonus_weight, math.isfinite(bonus_weight), "finite")
    _check_shapes(hidden, weight, target)
    kind = hidden.device.type
    if torch.is_autocast_enabled(kind):
        hidden, weight = (value.to(torch.get_autocast_dtype(kind)) for value in (hidden, weight))
        bias = None if bias is None else bias.to(hidden.dtype)
    terms = partial(encouraging_loss_terms, weight=class_weight, ignore_index=ignore_index, **options)
    with torch.autocast(kind, enabled=False):
        return _FusedLinear.apply(hidden, weight, bias, target, terms, bonus_weight, observe, torch.is_grad_enabled())


def fused_linear_terms(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None = None,
    *,
    class_weight: Tensor | None = None,
    ignore_index: int = -100,
    bonus_weight: float = 1.0,
    **options: Any,
) -> FusedTerms:
    """The parts of :func:`fused_linear_encouraging_loss` with ``reduction="sum"``.

    Args:
        hidden, weight, target, bias, class_weight, ignore_index, bonus_weight: as there.
        **options: the other options of :func:`~fairseq_ext.losses.encouraging.encouraging_loss_terms`.
    """
    observe = partial(_nll_and_prediction, ignore_index=ignore_index)
    return FusedTerms(*_fused(hidden, weight, target, bias, class_weight, ignore_index, bonus_weight, observe, options))


def fused_linear_encouraging_loss(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None = None,
    *,
    class_weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    bonus_weight: float = 1.0,
    **options: Any,
) -> Tensor:
    r"""``encouraging_loss(F.linear(hidden, weight, bias), target)`` without the ``(N, V)`` logits.

    Value and gradients are those of :func:`~fairseq_ext.losses.encouraging_loss`; with ``bonus_weight=0`` those of
    ``F.cross_entropy``. The gradients are computed in the forward pass and scaled in the backward pass, so that there
    is no second derivative.

    Args:
        hidden: ``(N, D)``. Under autocast it and ``weight`` are cast as ``F.linear`` would cast them; the loss, and the
            sums over blocks of rows, are float32.
        weight: ``(V, D)``, of an output layer, such as the embeddings.
        target: class indices, ``(N)``.
        bias: ``(V)``.
        class_weight, ignore_index, bonus_weight: ``weight``, ``ignore_index`` and ``bonus_weight`` of
            :func:`~fairseq_ext.losses.encouraging_loss`.
        reduction: ``"mean"``, ``"sum"``, or ``"none"``, where the backward pass computes each block anew.
        **options: its other options: ``label_smoothing``, ``log_end``, ``bonus``, ...

    Raises:
        ValueError: shapes that do not fit, or an option out of its range.

    Example:
        >>> hidden, embeddings = torch.randn(6, 4, requires_grad=True), torch.randn(9, 4, requires_grad=True)
        >>> target = torch.tensor([1, 0, 8, 3, 3, 2])
        >>> fused_linear_encouraging_loss(hidden, embeddings, target, label_smoothing=0.1).backward()
    """
    require("reduction", reduction, reduction in REDUCTIONS, f"one of {REDUCTIONS}")
    if reduction == "none":
        _check_shapes(hidden, weight, target)
        options |= {"ignore_index": ignore_index, "bonus_weight": bonus_weight, "reduction": "none"}

        def rows(hidden: Tensor, target: Tensor) -> Tensor:
            return encouraging_loss(F.linear(hidden, weight, bias), target, class_weight, **options)

        blocks = _blocks(hidden, len(weight))
        return torch.cat([checkpoint(rows, hidden[block], target[block], use_reentrant=False) for block in blocks])
    loss = _fused(hidden, weight, target, bias, class_weight, ignore_index, bonus_weight, None, options)[0]
    if reduction == "sum":
        return loss
    kept = target != ignore_index
    return loss / (kept.sum() if class_weight is None else class_weight[target[kept]].sum())
