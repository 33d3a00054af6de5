"""Derivatives of gradients that are written by hand: those of a formula, or refused in one line. torch only.

``once_differentiable`` of torch looks only at the gradient that comes in. Where the loss is linear in the output, that
is a constant, and the second derivative with respect to the inputs is silently zero.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["link", "no_second_derivative", "of_formula"]


def link(input: Tensor) -> Tensor:
    """Zeros of the shape of ``input`` in the memory of one.

    As an output of an autograd function it leads derivatives of a gradient to an input that is not kept.
    """
    return input.new_zeros(()).expand_as(input)


class _Gradient(torch.autograd.Function):
    """A gradient that was computed without a graph, with the derivative that ``pull(grad, *tensors)`` computes."""

    generate_vmap_rule = True

    @staticmethod
    def forward(pull: Callable[..., tuple[Tensor | None, ...]], gradient: Tensor, *tensors: Tensor) -> Tensor:
        return gradient.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.pull, _, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *ctx.pull(grad, *ctx.saved_tensors)


def of_formula(
    gradient: Tensor,
    formula: Callable[..., Tensor | tuple[Tensor, ...]],
    input: Tensor,
    grads: tuple[Tensor, ...],
    constants: tuple[Tensor, ...] = (),
) -> Tensor:
    r"""``gradient`` with the derivatives of :math:`J^\top g`, where J is the Jacobian of ``formula`` at ``input``.

    For the end of a backward pass; costs nothing where nobody can ask for them (no ``create_graph``).

    Args:
        gradient: :math:`J^\top g` by any means.
        formula: ``formula(input, *constants)`` in operations that autograd can differentiate as often as is asked.
        input: where the gradient is that of.
        grads: g, of each output of the formula.
        constants: other tensors of the formula, without a gradient.
    """
    if not torch.is_grad_enabled():
        return gradient

    def transposed(constants: tuple[Tensor, ...], input: Tensor, *grads: Tensor) -> Tensor:
        outputs, pull = torch.func.vjp(lambda input: formula(input, *constants), input)
        return pull(grads if isinstance(outputs, tuple) else grads[0])[0]

    def pull(grad: Tensor, *tensors: Tensor) -> tuple[Tensor | None, ...]:
        fixed, free = tensors[: len(constants)], tensors[len(constants) :]
        derivatives = torch.func.vjp(functools.partial(transposed, fixed), *free)[1](grad)
        return *(None,) * len(fixed), *derivatives

    return _Gradient.apply(pull, gradient.detach(), *constants, input, *grads)


def no_second_derivative(instead: str, *, batched: bool = True) -> Callable[..., Any]:
    """Decorates a ``backward(ctx, saved_tensors, *grads)`` whose gradients cannot be differentiated.

    That is an error where it is tried. The function has to save its inputs, or a :func:`link` to each.

    Args:
        instead: what to do, for the message.
        batched: whether the function computes with many gradients at once, as ``torch.autograd.grad`` gives them with
            ``is_grads_batched`` and ``torch.autograd.functional.jacobian`` with ``vectorize``. These have no memory, so
            that a kernel cannot. Default: True.

    Raises:
        RuntimeError: a gradient is differentiated; or many come in at once where not ``batched``.
    """
    is_batched = torch._C._functorch.is_legacy_batchedtensor

    def refuse(*_: Tensor) -> tuple[Tensor | None, ...]:
        raise RuntimeError(f"there is no second derivative of this gradient: {instead}")

    def decorate(backward: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(backward)
        def once(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
            if not batched and any(grad is not None and is_batched(grad) for grad in grads):
                raise RuntimeError(f"no gradients of many outputs at once (is_grads_batched, vectorize): {instead}")
            saved = ctx.saved_tensors  # which a checkpoint gives once
            with torch.no_grad():
                gradients = backward(ctx, saved, *grads)
            if not torch.is_grad_enabled():
                return gradients
            tensors = [tensor for tensor in (*saved, *grads) if tensor is not None]
            return tuple(None if g is None else _Gradient.apply(refuse, g, *tensors) for g in gradients)

        return once

    return decorate
