"""Half precision: which dtype to compute in, and how gradients get back. torch only."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["compute_dtype", "widen"]


def compute_dtype(input: Tensor) -> torch.dtype:
    """float32 for half precision, where ``1 - p`` is lost near 1 and a small probability is 0; else the input's own."""
    return torch.promote_types(input.dtype, torch.float32)


class _Widen(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(input: Tensor) -> Tensor:
        return input.float()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.dtype = inputs[0].dtype

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        limits = torch.finfo(ctx.dtype)
        return grad.clamp(limits.min, limits.max).to(ctx.dtype)


def widen(input: Tensor) -> Tensor:
    """Half precision in float32, for slopes beyond the range of float16: its gradient ends at the largest number.

    A plain cast makes it infinite there, and infinite gradients make a loss scaler skip every step.
    """
    if input.dtype != torch.float16 and input.dtype != torch.bfloat16:
        return input
    if torch.jit.is_scripting() or torch.compiler.is_compiling():
        return input.float()
    return _Widen.apply(input)
