r"""Dynamic convolution without a band matrix in memory, forward and backward.

The reference is :func:`fairseq_ext.modules.dynamic_convolution.dynamic_convolution`, which writes the kernels of 128
positions into a band matrix, zeros included, and multiplies by it. Here a program has the band of 64 positions in
registers. MUSE's gate is linear and mixes its kernels first, so that one launch is the whole gated convolution.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["dynamic_convolution", "takes"]

_WIDEST = 33
"""A band of 32 positions to the right of a square one holds these taps."""


def takes(x: Tensor, kernels: Tensor) -> bool:
    """Whether :func:`dynamic_convolution` computes this: whole sequences, no steps of a decoder; up to 33 taps; heads
    of a multiple of 8 channels, which are read 16 bytes at a time; dtypes of which the torch path makes that of ``x``.
    """
    device = x.device.type
    one_dtype = x.dtype == kernels.dtype
    if torch.is_autocast_enabled(device):
        one_dtype = one_dtype or kernels.dtype == torch.float32  # its softmax returns them so
        one_dtype = one_dtype and x.dtype in (torch.float32, torch.get_autocast_dtype(device))
    whole = x.size(0) == kernels.size(0) > 1
    return one_dtype and whole and 1 <= kernels.size(3) <= _WIDEST and x.size(2) % (8 * kernels.size(2)) == 0


def dynamic_convolution(x: Tensor, kernels: Tensor, first: int) -> Tensor:
    r"""Convolve every position with its own kernel, one per head.

    .. math::
        y_{t,b,c} = \sum_{j=0}^{K-1} k_{t,b,h(c),j}\, x_{t + f + j,\, b,\, c}, \qquad
        \frac{\partial L}{\partial x_{s,b,c}} = \sum_{j=0}^{K-1} k_{s-f-j,\,b,\,h(c),\,j}\; g_{s-f-j,\,b,\,c}, \qquad
        \frac{\partial L}{\partial k_{t,b,h,j}} = \sum_{c \in h} g_{t,b,c}\, x_{t+f+j,\,b,\,c}

    with :math:`f` for ``first`` and :math:`g = \partial L / \partial y`. A position outside of the sequence counts as
    zero. The products are summed in float32. Dynamic convolution: Wu et al. (arXiv:1901.10430); MUSE: Zhao et al.
    (arXiv:1911.09483).

    Args:
        x: input, float32, float16 or bfloat16, which is what is multiplied. One that is not contiguous is copied.
        kernels: kernels of all positions, used as given; under autocast they may have another dtype.
        first: position that tap 0 of position 0 reads, :math:`f`; negative where that lies before the sequence.

    Shape:
        - x: :math:`(T, B, C)`
        - kernels: :math:`(T, B, H, K)`, with :math:`8H` dividing :math:`C` and :math:`1 \le K \le 33`
        - output: :math:`(T, B, C)`
    """
    return _DynamicConvolution.apply(x, kernels, first)


@triton.jit
def _program(rows, BLOCK: tl.constexpr):
    """Row of the batch and first position of this program. Programs beside each other read what lies beside."""
    program = tl.program_id(0)
    return program % rows, program // rows * BLOCK


@triton.jit
def _taps(output, input, steps, rows, row, width, first):
    """Where the kernels have the tap with which ``output`` reads ``input``, and whether it is one."""
    tap = input - output - first
    is_tap = (tap >= 0) & (tap < width) & (output >= 0) & (output < steps)
    return (output.to(tl.int64) * rows + row) * width + tap, is_tap


@triton.jit
def _band(kernels, output, input, steps, rows, row, width, first):
    offset, is_tap = _taps(output, input, steps, rows, row, width, first)
    return tl.load(kernels + offset, mask=is_tap, other=0.0)


@triton.jit
def _store_band(dkernels, gradient, output, input, steps, rows, row, width, first):
    offset, is_tap = _taps(output, input, steps, rows, row, width, first)
    tl.store(dkernels + offset, gradient, mask=is_tap)


@triton.jit
def _entries(position, channel, steps, rows, row, SIZE: tl.constexpr):
    """Where a tensor of all positions and channels has these, and which of them there are."""
    there = (position >= 0) & (position < steps) & (channel < SIZE)
    return (position.to(tl.int64) * rows + row) * SIZE + channel, there


@triton.jit
def _load(x, position, channel, steps, rows, row, SIZE: tl.constexpr):
    offset, there = _entries(position, channel, steps, rows, row, SIZE)
    return tl.load(x + offset, mask=there, other=0.0)


@triton.jit
def _store(x, values, position, channel, steps, rows, row, SIZE: tl.constexpr):
    offset, there = _entries(position, channel, steps, rows, row, SIZE)
    tl.store(x + offset, values, mask=there)


@triton.jit(do_not_specialize=["steps", "rows", "width", "first"])  # steps and rows vary with the batch
def _dynamic_convolution_forward(
    x, kernels, y, steps, rows, width, first,
    SIZE: tl.constexpr, BLOCK: tl.constexpr, HALO: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    row, start = _program(rows, BLOCK)
    output = start + tl.arange(0, BLOCK)[:, None]
    # The inputs of a block: as many positions as it has outputs, and those that its last outputs reach beyond.
    near, far = start + first + tl.arange(0, BLOCK), start + first + BLOCK + tl.arange(0, HALO)
    dtype = x.dtype.element_ty
    near_band = _band(kernels, output, near[None, :], steps, rows, row, width, first).to(dtype)
    far_band = _band(kernels, output, far[None, :], steps, rows, row, width, first).to(dtype)
    for channels in range(0, SIZE, CHANNELS):
        channel = channels + tl.arange(0, CHANNELS)[None, :]
        near_x = _load(x, near[:, None], channel, steps, rows, row, SIZE)
        far_x = _load(x, far[:, None], channel, steps, rows, row, SIZE)
        sums = tl.dot(near_band, near_x, input_precision="ieee")
        sums = tl.dot(far_band, far_x, sums, input_precision="ieee")
        _store(y, sums, output, channel, steps, rows, row, SIZE)


@triton.jit(do_not_specialize=["steps", "rows", "width", "first"])
def _dynamic_convolution_backward(
    x, kernels, grad, dx, dkernels, steps, rows, width, first,
    SIZE: tl.constexpr, BLOCK: tl.constexpr, HALO: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    row, start = _program(rows, BLOCK)
    here = start + tl.arange(0, BLOCK)
    # What the block's inputs went to, and what its outputs came from.
    near_to, far_to = here - first, start - first - HALO + tl.arange(0, HALO)
    near_from, far_from = here + first, start + first + BLOCK + tl.arange(0, HALO)
    dtype = x.dtype.element_ty
    near_band = _band(kernels, near_to[None, :], here[:, None], steps, rows, row, width, first).to(dtype)
    far_band = _band(kernels, far_to[None, :], here[:, None], steps, rows, row, width, first).to(dtype)
    near_products = tl.zeros((BLOCK, BLOCK), tl.float32)
    far_products = tl.zeros((BLOCK, HALO), tl.float32)
    for channels in range(0, SIZE, CHANNELS):
        channel = channels + tl.arange(0, CHANNELS)
        columns = channel[None, :]
        near_grad = _load(grad, near_to[:, None], columns, steps, rows, row, SIZE)
        far_grad = _load(grad, far_to[:, None], columns, steps, rows, row, SIZE)
        sums = tl.dot(near_band, near_grad, input_precision="ieee")
        sums = tl.dot(far_band, far_grad, sums, input_precision="ieee")
        _store(dx, sums, here[:, None], columns, steps, rows, row, SIZE)
        own_grad = _load(grad, here[:, None], columns, steps, rows, row, SIZE)
        near_x = _load(x, near_from[None, :], channel[:, None], steps, rows, row, SIZE)
        far_x = _load(x, far_from[None, :], channel[:, None], steps, rows, row, SIZE)
        near_products = tl.dot(own_grad, near_x, near_products, input_precision="ieee")
        far_products = tl.dot(own_grad, far_x, far_products, input_precision="ieee")
    _store_band(dkernels, near_products, here[:, None], near_from[None, :], steps, rows, row, width, first)
    _store_band(dkernels, far_products, here[:, None], far_from[None, :], steps, rows, row, width, first)


def _launch(x: Tensor, kernels: Tensor) -> tuple[tuple[int], tuple[int, ...], dict[str, Any]]:
    """Grid, sizes and constants. 64 positions by 64 channels are what four warps multiply at once on an H100. Float32
    has no tensor cores here, since they would round it to ten bits, and a quarter of the tile fits into registers."""
    steps, batch, heads, width = kernels.shape
    rows = batch * heads
    block = 32 if x.dtype == torch.float32 else 64
    constants = {
        "SIZE": x.size(2) // heads,
        "BLOCK": block,
        "HALO": 16 if width <= 17 else 32,
        "CHANNELS": block,
        "num_warps": 4,
        "num_stages": 1,
        "enable_fp_fusion": True,
    }
    return (-(-steps // block) * rows,), (steps, rows, width), constants


class _DynamicConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, kernels: Tensor, first: int) -> Tensor:
        x, kernels = x.contiguous(), kernels.contiguous()
        y = torch.empty_like(x)
        if y.numel():
            grid, sizes, constants = _launch(x, kernels)
            with torch.cuda.device_of(x):
                _dynamic_convolution_forward[grid](x, kernels, y, *sizes, first, **constants)
        ctx.save_for_backward(x, kernels)
        ctx.first = first
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, kernels = ctx.saved_tensors
        grad = grad.contiguous()
        dx, dkernels = torch.empty_like(x), torch.empty_like(kernels)
        if x.numel():
            grid, sizes, constants = _launch(x, kernels)
            with torch.cuda.device_of(x):
                _dynamic_convolution_backward[grid](x, kernels, grad, dx, dkernels, *sizes, ctx.first, **constants)
        return dx, dkernels, None
