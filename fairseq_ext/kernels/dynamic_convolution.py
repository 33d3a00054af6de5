r"""Dynamic convolution without a band matrix in memory, forward and backward.

The reference is :func:`fairseq_ext.modules.dynamic_convolution.dynamic_convolution`, which writes the kernels of 128
positions into a band matrix, zeros included, and multiplies by it. Here a program has the band of 64 positions in
registers. MUSE's gate is linear and mixes its kernels first, so that one launch is the whole gated convolution.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fairseq_ext.second_derivative import no_second_derivative

__all__ = ["dynamic_convolution", "takes"]

_WIDEST = 33
"""A band of 32 positions to the right of a square one holds these taps."""


def takes(x: Tensor, kernels: Tensor) -> bool:
    """Whether :func:`dynamic_convolution` computes this: whole sequences, no steps of a decoder; up to 33 taps; heads
    of a multiple of 8 channels, which are read 16 bytes at a time; dtypes of which the torch path makes that of ``x``;
    positions of at most 2**25 numbers in all of the batch, 64 of which are indexed in 32 bits.
    """
    device = x.device.type
    one_dtype = x.dtype == kernels.dtype
    if torch.is_autocast_enabled(device):
        one_dtype = one_dtype or kernels.dtype == torch.float32  # its softmax returns them so
        one_dtype = one_dtype and x.dtype in (torch.float32, torch.get_autocast_dtype(device))
    whole = x.size(0) == kernels.size(0) > 1
    fits = all(math.prod(tensor.shape[1:]) <= 2**25 for tensor in (x, kernels))
    sizes = 1 <= kernels.size(3) <= _WIDEST and x.size(2) % (8 * kernels.size(2)) == 0
    return one_dtype and whole and fits and sizes


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
        x: input, float32, float16 or bfloat16, multiplied in this dtype. One that is not contiguous is copied.
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
def _taps(kernels, start, output, tap, steps, rows, row, width):
    """Where the taps of the outputs from ``start`` on are, and which of them there are. What is the same for a whole
    block is in 64 bits, the rest in 32."""
    is_tap = (tap >= 0) & (tap < width) & (start + output >= 0) & (start + output < steps)
    return kernels + (tl.cast(start, tl.int64) * rows + row) * width + (output * (rows * width) + tap), is_tap


@triton.jit
def _band(kernels, start, output, tap, steps, rows, row, width):
    pointers, is_tap = _taps(kernels, start, output, tap, steps, rows, row, width)
    return tl.load(pointers, mask=is_tap, other=0.0)


@triton.jit
def _store_band(dkernels, gradient, start, output, tap, steps, rows, row, width):
    pointers, is_tap = _taps(dkernels, start, output, tap, steps, rows, row, width)
    tl.store(pointers, gradient, mask=is_tap)


@triton.jit
def _entries(x, start, position, channel, steps, rows, row, SIZE: tl.constexpr):
    """Where a tensor of all positions and channels has those from ``start`` on, and which of them there are."""
    there = (start + position >= 0) & (start + position < steps) & (channel < SIZE)
    return x + (tl.cast(start, tl.int64) * rows + row) * SIZE + (position * (rows * SIZE) + channel), there


@triton.jit
def _load(x, start, position, channel, steps, rows, row, SIZE: tl.constexpr):
    pointers, there = _entries(x, start, position, channel, steps, rows, row, SIZE)
    return tl.load(pointers, mask=there, other=0.0)


@triton.jit
def _store(x, values, start, position, channel, steps, rows, row, SIZE: tl.constexpr):
    pointers, there = _entries(x, start, position, channel, steps, rows, row, SIZE)
    tl.store(pointers, values, mask=there)


@triton.jit(do_not_specialize=["steps", "rows", "width", "first"])  # steps and rows vary with the batch
def _dynamic_convolution_forward(
    x, kernels, y, steps, rows, width, first,
    SIZE: tl.constexpr, BLOCK: tl.constexpr, HALO: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    row, start = _program(rows, BLOCK)
    near, far = tl.arange(0, BLOCK), tl.arange(0, HALO)
    # The inputs of a block: as many positions as it has outputs, and those that its last outputs reach beyond.
    near_start, far_start = start + first, start + first + BLOCK
    output = near[:, None]
    dtype = x.dtype.element_ty
    near_band = _band(kernels, start, output, near[None, :] - output, steps, rows, row, width).to(dtype)
    far_band = _band(kernels, start, output, far[None, :] + BLOCK - output, steps, rows, row, width).to(dtype)
    for channels in range(0, SIZE, CHANNELS):
        channel = channels + tl.arange(0, CHANNELS)[None, :]
        near_x = _load(x, near_start, near[:, None], channel, steps, rows, row, SIZE)
        far_x = _load(x, far_start, far[:, None], channel, steps, rows, row, SIZE)
        sums = tl.dot(near_band, near_x, input_precision="ieee")
        sums = tl.dot(far_band, far_x, sums, input_precision="ieee")
        _store(y, sums, start, output, channel, steps, rows, row, SIZE)


@triton.jit(do_not_specialize=["steps", "rows", "width", "first"])
def _dynamic_convolution_backward(
    x, kernels, grad, dx, dkernels, steps, rows, width, first,
    SIZE: tl.constexpr, BLOCK: tl.constexpr, HALO: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    row, start = _program(rows, BLOCK)
    near, far = tl.arange(0, BLOCK), tl.arange(0, HALO)
    # What the block's inputs went to, and what its outputs came from.
    near_to, far_to = start - first, start - first - HALO
    near_from, far_from = start + first, start + first + BLOCK
    here = near[:, None]
    dtype = x.dtype.element_ty
    near_band = _band(kernels, near_to, near[None, :], here - near[None, :], steps, rows, row, width).to(dtype)
    far_band = _band(kernels, far_to, far[None, :], here + HALO - far[None, :], steps, rows, row, width).to(dtype)
    near_products = tl.zeros((BLOCK, BLOCK), tl.float32)
    far_products = tl.zeros((BLOCK, HALO), tl.float32)
    for channels in range(0, SIZE, CHANNELS):
        channel = channels + tl.arange(0, CHANNELS)
        columns = channel[None, :]
        near_grad = _load(grad, near_to, here, columns, steps, rows, row, SIZE)
        far_grad = _load(grad, far_to, far[:, None], columns, steps, rows, row, SIZE)
        sums = tl.dot(near_band, near_grad, input_precision="ieee")
        sums = tl.dot(far_band, far_grad, sums, input_precision="ieee")
        _store(dx, sums, start, here, columns, steps, rows, row, SIZE)
        own_grad = _load(grad, start, here, columns, steps, rows, row, SIZE)
        near_x = _load(x, near_from, near[None, :], channel[:, None], steps, rows, row, SIZE)
        far_x = _load(x, far_from, far[None, :], channel[:, None], steps, rows, row, SIZE)
        near_products = tl.dot(own_grad, near_x, near_products, input_precision="ieee")
        far_products = tl.dot(own_grad, far_x, far_products, input_precision="ieee")
    _store_band(dkernels, near_products, start, here, near[None, :] - here, steps, rows, row, width)
    _store_band(dkernels, far_products, start, here, far[None, :] + BLOCK - here, steps, rows, row, width)


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
        ctx.save_for_backward(x, kernels)
        x, kernels = x.contiguous(), kernels.contiguous()
        y = torch.empty_like(x)
        if y.numel():
            grid, sizes, constants = _launch(x, kernels)
            with torch.cuda.device_of(x):
                _dynamic_convolution_forward[grid](x, kernels, y, *sizes, first, **constants)
        ctx.first = first
        return y

    @staticmethod
    @no_second_derivative("the forward pass goes into `with fairseq_ext.kernels.disabled():`", batched=False)
    def backward(ctx: Any, saved: tuple[Tensor, ...], grad: Tensor) -> tuple[Tensor | None, ...]:
        x, kernels, grad = (tensor.contiguous() for tensor in (*saved, grad))
        dx, dkernels = torch.empty_like(x), torch.empty_like(kernels)
        if x.numel():
            grid, sizes, constants = _launch(x, kernels)
            with torch.cuda.device_of(x):
                _dynamic_convolution_backward[grid](x, kernels, grad, dx, dkernels, *sizes, ctx.first, **constants)
        return dx, dkernels, None
