r"""Output projection and encouraging loss in one, without the ``(N, V)`` logits.

With :math:`z = h W^\top + b` and a loss that is a sum over the rows of z,

.. math::
    \frac{\partial L}{\partial h} = G W, \qquad \frac{\partial L}{\partial W} = G^\top h, \qquad
    \frac{\partial L}{\partial b} = \sum_n G_n, \qquad G = \frac{\partial L}{\partial z},

are known in the forward pass already, a block of rows at a time: only one block of the ``N x V`` numbers is alive.
The idea is that of Liger-Kernel's fused linear cross-entropy (Hsu et al., arXiv:2410.10989).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fairseq_ext.losses.block_loss import BlockLoss, block_loss
from fairseq_ext.losses.common import REDUCTIONS, as_class_weight, as_indices, check_shape, is_finite, require
from fairseq_ext.losses.encouraging import encouraging_loss
from fairseq_ext.precision import compute_dtype
from fairseq_ext.second_derivative import link, no_second_derivative

__all__ = ["FusedTerms", "block_elements", "fused_linear_encouraging_loss", "fused_linear_terms"]

FLOAT16_SCALE = 8.0
"""Of the gradients of logits in float16: eps / V stays above its least number, a sum over a block below its largest."""


def block_elements(device: torch.device) -> int:
    """How many logits a block has: few beside all, but enough for the weight's gradient to be summed in few blocks.

    On an accelerator these are 512 rows of 32,000 classes, which fill its matrix units.
    """
    return 2**23 if device.type == "cpu" else 2**24


def _block_rows(weight: Tensor) -> int:
    return max(1, block_elements(weight.device) // len(weight))


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


@dataclass(frozen=True)
class _Loss:
    """``cross_entropy + bonus_weight * bonus``, summed over the rows that are not ignored."""

    of_block: BlockLoss
    bonus_weight: float
    ignore_index: int


class _FusedLinear(torch.autograd.Function):
    """The fields of :class:`FusedTerms`, then links to the inputs."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, target, loss):
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        dtype, device = compute_dtype(hidden), hidden.device
        scale = FLOAT16_SCALE if hidden.dtype == torch.float16 else 1.0
        grad_ce = scale if any(ctx.needs_input_grad) else 0.0
        grad_hidden = torch.zeros_like(hidden) if wants_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=dtype) if wants_weight else None
        grad_bias = torch.zeros_like(bias, dtype=dtype) if wants_bias else None
        cross_entropy, bonus, nll = (torch.zeros(len(hidden), dtype=dtype, device=device) for _ in range(3))
        columns = cross_entropy, bonus, nll, torch.zeros_like(target)  # the last one for predictions
        kept = (target != loss.ignore_index).nonzero()[:, 0]
        for rows in kept.split(_block_rows(weight)) if len(kept) else ():
            block = hidden[rows]
            terms, grad = loss.of_block(
                F.linear(block, weight, bias), target[rows], grad_ce, grad_ce * loss.bonus_weight
            )
            for column, value in zip(columns, terms, strict=True):
                column[rows] = value
            if grad_hidden is not None:
                grad_hidden[rows] = grad @ weight
            if grad_weight is not None and grad.dtype == dtype:
                grad_weight.addmm_(grad.t(), block)
            elif grad_weight is not None:
                grad_weight += grad.t() @ block
            if grad_bias is not None:
                grad_bias += grad.sum(0, dtype=dtype)
            del grad  # or two blocks of logits would be alive
        ctx.scale, ctx.dtypes = scale, (hidden.dtype, weight.dtype, None if bias is None else bias.dtype)
        links = [link(value) for value in (hidden, weight, bias) if value is not None]
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias, *links)
        ctx.mark_non_differentiable(*columns)
        ctx.set_materialize_grads(False)  # they would be zeros for the links
        return (cross_entropy + loss.bonus_weight * bonus).sum(), *columns, *links

    @staticmethod
    @no_second_derivative("take encouraging_loss(F.linear(hidden, weight, bias), target)")
    def backward(ctx, saved, grad_loss, *_):
        factor = grad_loss / ctx.scale
        grads = (
            None if grad is None else (grad * factor).to(dtype)
            for grad, dtype in zip(saved[:3], ctx.dtypes, strict=True)
        )
        return *grads, None, None


def _checked(
    hidden: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None, class_weight: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Target and class weights in the form that the computation takes."""
    if weight.dim() != 2 or hidden.dim() != 2 or hidden.size(1) != weight.size(1):
        shapes = f"{tuple(hidden.shape)} and {tuple(weight.shape)}"
        raise ValueError(f"hidden and weight must have shapes (N, D) and (V, D), got {shapes}")
    if bias is not None:
        check_shape("bias", bias, weight.shape[:1], "one number for each class")
    if class_weight is not None:
        class_weight = as_class_weight(class_weight, len(weight), "class_weight")
    return as_indices(target, hidden.shape[:1]), class_weight


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
        **options: the other options of :func:`~fairseq_ext.losses.encouraging_loss_terms`.
    """
    require("bonus_weight", bonus_weight, is_finite(bonus_weight), "finite")
    target, class_weight = _checked(hidden, weight, target, bias, class_weight)
    loss = _Loss(block_loss(len(weight), class_weight, **options), bonus_weight, ignore_index)
    kind = hidden.device.type
    if torch.is_autocast_enabled(kind):
        hidden, weight = (value.to(torch.get_autocast_dtype(kind)) for value in (hidden, weight))
        bias = None if bias is None else bias.to(hidden.dtype)
    if not torch.is_grad_enabled():
        hidden, weight, bias = hidden.detach(), weight.detach(), None if bias is None else bias.detach()
    with torch.autocast(kind, enabled=False):
        return FusedTerms(*_FusedLinear.apply(hidden, weight, bias, target, loss)[: len(FusedTerms._fields)])


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
    ``F.cross_entropy``. The gradients are computed in the forward pass and scaled in the backward pass, so that only
    ``reduction="none"`` has a second derivative; asking the others for one raises a RuntimeError.

    Args:
        hidden: ``(N, D)``. Under autocast it and ``weight`` are cast as ``F.linear`` would cast them; the loss, and the
            sums over blocks of rows, are float32.
        weight: ``(V, D)``, the weight of an output layer, such as the embeddings.
        target: class indices, ``(N)``.
        bias: ``(V)``.
        class_weight, ignore_index, bonus_weight: ``weight``, ``ignore_index`` and ``bonus_weight`` of
            :func:`~fairseq_ext.losses.encouraging_loss`.
        reduction: ``"mean"``, ``"sum"``, or ``"none"``, where the backward pass computes each block anew.
        **options: the other options of that loss: ``label_smoothing``, ``log_end``, ``bonus``, ...

    Raises:
        ValueError: shapes that do not fit, or an option out of its range.

    Example:
        >>> hidden, embeddings = torch.randn(6, 4, requires_grad=True), torch.randn(9, 4, requires_grad=True)
        >>> target = torch.tensor([1, 0, 8, 3, 3, 2])
        >>> fused_linear_encouraging_loss(hidden, embeddings, target, label_smoothing=0.1).backward()
    """
    require("reduction", reduction, reduction in REDUCTIONS, f"one of {REDUCTIONS}")
    target, class_weight = _checked(hidden, weight, target, bias, class_weight)
    if reduction == "none":
        options |= {"ignore_index": ignore_index, "bonus_weight": bonus_weight, "reduction": "none"}

        def rows(hidden: Tensor, target: Tensor) -> Tensor:
            return encouraging_loss(F.linear(hidden, weight, bias), target, class_weight, **options)

        blocks = zip(*(value.split(_block_rows(weight)) for value in (hidden, target)), strict=True)
        return torch.cat([checkpoint(rows, *block, use_reentrant=False) for block in blocks])
    terms = fused_linear_terms(
        hidden,
        weight,
        target,
        bias,
        class_weight=class_weight,
        ignore_index=ignore_index,
        bonus_weight=bonus_weight,
        **options,
    )
    if reduction == "sum":
        return terms.loss
    kept = target[target != ignore_index]
    return terms.loss / (len(kept) if class_weight is None else class_weight[kept].sum())
