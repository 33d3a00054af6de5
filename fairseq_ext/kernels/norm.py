r"""AdaNorm, LayerNorm-simple and DetachNorm in one pass over the rows forward, and one backward.

The reference is :func:`fairseq_ext.modules.norm_function.normalize`, which needs several passes of torch kernels. As
there, half precision is computed in float32, and its gradient ends at the largest number of its dtype. Kept for the
backward pass are the input and two float32 numbers per row, as in :func:`torch.nn.functional.layer_norm`.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fairseq_ext.second_derivative import no_second_derivative

__all__ = ["normalize", "takes"]

_TINY = torch.finfo(torch.float32).tiny
_LARGEST_ROW = 16384
"""A row lives in the registers of one program: 16 warps, 32 numbers per thread; thrice that in the backward pass."""


def takes(x: Tensor, normalized_shape: list[int]) -> bool:
    """Whether :func:`normalize` computes these rows: they have a length of 1 to 16,384 and are what ``x`` ends with."""
    ends_so = list(x.shape[-len(normalized_shape) :]) == normalized_shape
    return ends_so and 1 <= math.prod(normalized_shape) <= _LARGEST_ROW


def normalize(
    x: Tensor,
    normalized_shape: list[int],
    eps: float,
    unbiased: bool,
    scale: float = 1.0,
    k: float = 0.0,
    detach_mean: bool = False,
    detach_std: bool = False,
) -> Tensor:
    r""":math:`z = C (1 - k\,\mathrm{sg}(y))\,y` with :math:`y = (x - \mu) / s`, and its closed-form gradient.

    With :math:`g = \partial L / \partial z`, :math:`h = C (1 - k y)\,g`, :math:`H` the length of a row,
    :math:`\sigma` its biased deviation and :math:`b = \sqrt{H / (H - 1)}`, so that :math:`s = b \sigma + \epsilon`,

    .. math::
        \frac{\partial L}{\partial x_j} = \frac{1}{s} \Big[ h_j - \bar h - \frac{b s}{\sigma}\,y_j\,\overline{h y} \Big]

    (:math:`s = \sqrt{\sigma^2 + \epsilon}` and :math:`y_j\,\overline{h y}` for ``unbiased=False``). Detaching the mean
    removes :math:`\bar h`, detaching the deviation removes the last term. AdaNorm, LayerNorm-simple and DetachNorm of
    Xu et al., "Understanding and Improving Layer Normalization" (arXiv:1911.07013).

    Args:
        x: input, float32, float16 or bfloat16. One that is not contiguous is copied, as by ``F.layer_norm``.
        normalized_shape: size(s) of the last dimension(s), which :func:`takes` accepts.
        eps: :math:`\epsilon`.
        unbiased: which deviation :math:`s` is.
        scale: :math:`C`.
        k: slope of the detached factor.
        detach_mean: :math:`\mu` is a constant to the gradient.
        detach_std: :math:`s` is a constant to the gradient.

    Shape:
        - x and output: :math:`(*, \text{normalized\_shape})`
    """
    return _Normalize.apply(x, math.prod(normalized_shape), eps, unbiased, scale, k, detach_mean, detach_std)


@triton.jit
def _tile(rows, size, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Rows of this program, their offsets and those of their entries, and which of the rows and entries there are."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    start = row.to(tl.int64) * size
    return row, start, column, row < rows, (row < rows) & (column < size)


@triton.jit
def _shifted(x, start, column, is_row, is_entry):
    """The rows less their first entries: no digits are lost of a large offset, and constant rows become exactly zero,
    whose ``1 / s`` would make an error of their mean visible."""
    first = tl.load(x + start, mask=is_row, other=0.0).to(tl.float32)
    return tl.load(x + start + column, mask=is_entry, other=0.0).to(tl.float32) - first


@triton.jit(do_not_specialize=["rows"])  # which varies with the batch
def _normalize_forward(
    x, z, moments, rows, size, scale, slope, inside, outside, bessel, ROWS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    row, start, column, is_row, is_entry = _tile(rows, size, ROWS, BLOCK)
    shifted = tl.where(is_entry, _shifted(x, start, column, is_row, is_entry), 0.0)
    row_mean = tl.sum(shifted, 1, keep_dims=True) / size
    centred = tl.where(is_entry, shifted - row_mean, 0.0)
    row_rstd = tl.rsqrt(tl.sum(centred * centred, 1, keep_dims=True) / size + inside)
    y = centred * (row_rstd / (bessel + outside * row_rstd))
    tl.store(z + start + column, y * (scale - slope * y), mask=is_entry)
    tl.store(moments + row, row_mean, mask=is_row)
    tl.store(moments + rows + row, row_rstd, mask=is_row)


@triton.jit(do_not_specialize=["rows"])
def _normalize_backward(
    x, grad, dx, moments, rows, size, scale, slope, outside, bessel, limit,
    DETACH_MEAN: tl.constexpr, DETACH_STD: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, start, column, is_row, is_entry = _tile(rows, size, ROWS, BLOCK)
    row_mean = tl.load(moments + row, mask=is_row, other=0.0)
    row_rstd = tl.load(moments + rows + row, mask=is_row, other=1.0)
    ratio = bessel + outside * row_rstd
    inv_s = row_rstd / ratio
    y = (_shifted(x, start, column, is_row, is_entry) - row_mean) * inv_s
    h = tl.load(grad + start + column, mask=is_entry, other=0.0).to(tl.float32) * (scale - slope * y)
    bracket = h
    if not DETACH_MEAN:
        bracket -= tl.sum(h, 1, keep_dims=True) / size
    if not DETACH_STD:
        bracket -= y * (bessel * ratio * (tl.sum(h * y, 1, keep_dims=True) / size))
    gradient = bracket * inv_s
    if dx.dtype.element_ty != tl.float32:
        gradient = tl.clamp(gradient, -limit, limit, propagate_nan=tl.PropagateNan.ALL)
    tl.store(dx + start + column, gradient, mask=is_entry)


@functools.cache
def _constants(size: int) -> dict[str, Any]:
    """A warp has 512 numbers, 16 per thread, so that rows of up to 512 need no other warp for their sums and rows of
    any length are read 16 bytes at a time; short rows share a warp."""
    block = triton.next_power_of_2(size)
    warps = min(max(1, block // 512), 16)
    return {
        "ROWS": max(1, 512 // block),
        "BLOCK": block,
        "num_warps": warps,
        "num_stages": 1,
        "enable_fp_fusion": True,
    }


def _grid(rows: int, constants: dict[str, Any]) -> tuple[int]:
    return (-(-rows // constants["ROWS"]),)


class _Normalize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        size: int,
        eps: float,
        unbiased: bool,
        scale: float,
        k: float,
        detach_mean: bool,
        detach_std: bool,
    ) -> Tensor:
        given, x = x, x.contiguous()
        rows = x.numel() // size
        z = torch.empty_like(x)
        moments = x.new_empty((2, rows), dtype=torch.float32)
        # The smallest normal number keeps 1 / sigma of a constant row finite, and is nothing beside any variance.
        inside, outside = (_TINY, eps) if unbiased else (eps, 0.0)
        bessel = math.sqrt(size / (size - 1)) if unbiased else 1.0
        # Floats, since Triton compiles a whole number into the kernel where it is 1.
        scale, slope = float(scale), float(scale * k)
        if rows:
            constants = _constants(size)
            with torch.cuda.device_of(x):
                _normalize_forward[_grid(rows, constants)](
                    x, z, moments, rows, size, scale, slope, inside, outside, bessel, **constants
                )  # fmt: skip
        ctx.save_for_backward(given, moments)
        ctx.numbers = scale, slope, outside, bessel
        ctx.detached = {"DETACH_MEAN": detach_mean, "DETACH_STD": detach_std}
        return z

    @staticmethod
    @no_second_derivative("the forward pass goes into `with fairseq_ext.kernels.disabled():`", batched=False)
    def backward(ctx: Any, saved: tuple[Tensor, ...], grad: Tensor) -> tuple[Tensor | None, ...]:
        x, moments = saved
        x, grad = x.contiguous(), grad.contiguous()
        dx = torch.empty_like(x)
        rows = moments.size(1)
        if rows:
            size = x.numel() // rows
            constants = _constants(size)
            limit = torch.finfo(x.dtype).max
            with torch.cuda.device_of(x):
                _normalize_backward[_grid(rows, constants)](
                    x, grad, dx, moments, rows, size, *ctx.numbers, limit, **ctx.detached, **constants
                )  # fmt: skip
        return (dx, *(None,) * 7)
