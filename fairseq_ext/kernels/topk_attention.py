r"""Exact top-k attention, block by block: no matrix of queries times keys is ever stored.

The reference is :func:`fairseq_ext.modules.sparse_attention.topk_attention`. A program takes a block of queries of one
head. It goes over the keys twice: first to find the ``k`` largest scores of each query, hence the threshold; then as
flash attention does (Dao, "FlashAttention-2", arXiv 2307.08691), over the keys that are not below it. The backward pass
computes the scores again. Kept for it are the output and three float32 numbers per query.

Whether a key is kept must be the same in all of these passes, to the last bit and for ties too: all take their scores
from :func:`_scores`, in tiles of one shape. As in the reference, scores are compared in the dtype of the queries.
More than 300 lines, since the three kernels share what must be the same in all.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fairseq_ext.kernels.selection import largest, log2, merge
from fairseq_ext.second_derivative import no_second_derivative

__all__ = ["fits", "takes", "topk_attention"]

_LARGEST_K = 64
_LARGEST_WIDTH = 128
_TILE = {torch.float16: 64, torch.bfloat16: 64, torch.float32: 32}
"""Queries and keys of a tile. 64 rows are one ``wgmma`` of an H100, and the scores of 64 by 64 take 32 registers of a
thread in four warps. float32 is multiplied without tensor cores, with operands in registers: more do not fit."""

_FLOAT32_MAX = tl.constexpr(torch.finfo(torch.float32).max)


def fits(num_keys: int, width: int, k: int) -> bool:
    """Whether there is a kernel for heads of ``width`` that keep ``k`` of the keys, fewer than all."""
    return 0 < width <= _LARGEST_WIDTH and 0 < k <= _LARGEST_K and k < num_keys


def takes(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, keep: Tensor | None, dropout_p: float, k: int
) -> bool:
    """Whether :func:`topk_attention` computes this call.

    Heads do not broadcast, ``bias`` gets no gradient; no queries, a dropout of everything, and a mask whose columns are
    too far from each other for 32 bits are left to torch.
    """
    if not query.dim() == key.dim() == value.dim() == 4 or not query.dtype == key.dtype == value.dtype:
        return False
    heads = query.shape[:2] == key.shape[:2] == value.shape[:2] and query.size(3) == key.size(3)
    sizes = key.size(2) == value.size(2) and all(fits(key.size(2), x.size(3), k) for x in (query, value))
    given = [mask for mask in (bias, keep) if mask is not None]
    masks = all(mask.device == query.device for mask in given)
    near = all(mask.dim() == 0 or mask.size(-1) * mask.stride(-1) < 2**31 for mask in given)
    constant = bias is None or not (bias.requires_grad and torch.is_grad_enabled())
    return query.numel() > 0 and heads and sizes and masks and near and constant and 0 <= dropout_p < 1


def topk_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None = None,
    keep: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float,
    k: int,
) -> Tensor:
    r"""Attention over the ``k`` best keys of each query, for inputs that :func:`takes` accepts.

    .. math::
        \text{dropout}(\text{topk-softmax}_k(\text{scale} \cdot Q K^\top + \text{bias}))\, V

    (Zhao et al., arXiv 1912.11637.)

    Args:
        query, key, value: float32, float16 or bfloat16, of any strides.
        bias: added to the scores, which are rounded to the dtype of the queries again; no gradient.
        keep: boolean, False hides a key.
        dropout_p: dropout on the weights, drawn from the generator of the tensors' device.
        is_causal: query ``i`` sees keys ``0..i``.
        scale: factor on the queries.
        k: keys to keep, those tied with the last one too.

    Shape:
        - query: ``(B, H, T, D)``; key: ``(B, H, S, D)``; value: ``(B, H, S, Dv)``; bias and keep: broadcast to
          ``(B, H, T, S)``; output: ``(B, H, T, Dv)``.

    Returns:
        Zeros for a query that sees no key; extreme scores as in :mod:`fairseq_ext.modules.topk`.
    """
    shape = (*query.shape[:3], key.size(2))
    bias, keep = (None if mask is None else mask.expand(shape) for mask in (bias, keep))
    seed = torch.randint(2**62, (1,), device=query.device) if dropout_p else None
    return _TopKAttention.apply(query, key, value, bias, keep, seed, dropout_p, is_causal, scale, k)


class _Heads(NamedTuple):
    """A tensor (B, H, rows, columns) as a kernel gets it; the columns are next to each other unless it is a mask."""

    data: Any
    strides: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor) -> _Heads:
        return cls(tensor, tensor.stride())


class _Rows(NamedTuple):
    """A float32 number for each query, (B, H, T): what the forward pass leaves to the backward pass, and ``mean``,
    what the gradient of a softmax subtracts."""

    threshold: Any
    maximum: Any
    inverse: Any
    mean: Any


@triton.jit
def _program(length, heads, TILE: tl.constexpr):
    """First row of this program's tile, its head among all, and that head as batch and head; the last tile first, which
    has the most keys where attention is causal."""
    tiles = tl.cdiv(length, TILE)
    tile = tiles - 1 - tl.program_id(0) % tiles
    index = (tl.program_id(0) // tiles).to(tl.int64)
    return tile * TILE, index, index // heads, index % heads


@triton.jit
def _pointers(matrix, batch, head, rows, columns):
    start = matrix.data + batch * matrix.strides[0] + head * matrix.strides[1]
    return start + rows.to(tl.int64)[:, None] * matrix.strides[2] + columns[None, :] * matrix.strides[3]


@triton.jit
def _load(matrix, batch, head, rows, length, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Rows of a head, zeros around them."""
    columns = tl.arange(0, BLOCK)
    inside = (rows[:, None] < length) & (columns[None, :] < WIDTH)
    return tl.load(_pointers(matrix, batch, head, rows, columns), mask=inside, other=0.0)


@triton.jit
def _store(matrix, batch, head, rows, length, tile, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    columns = tl.arange(0, BLOCK)
    inside = (rows[:, None] < length) & (columns[None, :] < WIDTH)
    tl.store(_pointers(matrix, batch, head, rows, columns), tile.to(matrix.data.dtype.element_ty), mask=inside)


@triton.jit
def _scaled(query, scale):
    return (query.to(tl.float32) * scale).to(query.dtype)


@triton.jit
def _scores(query, key, rows, columns, bias, keep, batch, head, T, S, CAUSAL: tl.constexpr):
    """Scores as the torch path compares them, in float32."""
    scores = tl.dot(query, tl.trans(key), input_precision="ieee").to(query.dtype).to(tl.float32)
    visible = columns[None, :] < S
    inside = (rows[:, None] < T) & visible
    if bias is not None:
        added = tl.load(_pointers(bias, batch, head, rows, columns), mask=inside, other=0.0)
        scores = (scores + added.to(tl.float32)).to(query.dtype).to(tl.float32)
    if CAUSAL:
        visible &= columns[None, :] <= rows[:, None]
    if keep is not None:
        visible &= tl.load(_pointers(keep, batch, head, rows, columns), mask=inside, other=False)
    return tl.where(visible, scores, float("-inf"))


@triton.jit
def _weights(scores, threshold, maximum):
    """``exp(score - maximum)`` of what is not below the threshold, which NaN is not."""
    distance = tl.minimum(scores - maximum[:, None], 0.0, propagate_nan=tl.PropagateNan.ALL)  # inf - finite is above 0
    return tl.where(scores < threshold[:, None], 0.0, tl.exp(distance))


@triton.jit
def _spared(seed, dropout_p, index, rows, start, TILE: tl.constexpr):
    """What dropout multiplies with, a function of the position: four columns per draw."""
    quads = start // 4 + tl.arange(0, TILE // 4)
    a, b, c, d = tl.philox(tl.load(seed), quads[None, :], rows[:, None], index.to(tl.int32), 0, 7)
    bits = tl.reshape(tl.join(tl.join(a, c), tl.join(b, d)), (TILE, TILE))
    return tl.where(tl.uint_to_uniform_float(bits) < dropout_p, 0.0, 1 / (1 - dropout_p))


@triton.jit
def _any(tile, SKIP: tl.constexpr):
    """Whether a tile has a weight, where it pays to ask."""
    if SKIP:
        return tl.max(tl.max((tile != 0).to(tl.int32), 1), 0) > 0
    else:
        return True


@triton.jit
def _topk_forward(
    query, key, value, bias, keep, seed, out, row, heads, T, S, k, scale, dropout_p,
    D: tl.constexpr, DV: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, RUN: tl.constexpr,
    CAUSAL: tl.constexpr, SKIP: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    first, index, batch, head = _program(T, heads, TILE)
    rows = first + tl.arange(0, TILE)
    q = _scaled(_load(query, batch, head, rows, T, D, BLOCK_D), scale)
    end = tl.minimum(S, first + TILE) if CAUSAL else S

    best = tl.full((TILE, 2**RUN), float("-inf"), tl.float32)  # ascending
    threshold = tl.full((TILE,), float("-inf"), tl.float32)
    for start in range(0, end, TILE):
        columns = start + tl.arange(0, TILE)
        keys = _load(key, batch, head, columns, S, D, BLOCK_D)
        scores = _scores(q, keys, rows, columns, bias, keep, batch, head, T, S, CAUSAL)
        if tl.max(tl.max((scores > threshold[:, None]).to(tl.int32), 1), 0) > 0:
            best = merge(tl.maximum(best, largest(scores, RUN)), RUN, ASCENDING=True)
            chosen = tl.arange(0, 2**RUN)[None, :] == 2**RUN - k
            threshold = tl.max(tl.where(chosen, best, float("-inf")), 1)
    maximum = tl.max(best, 1)
    # Beside +inf nothing else has a weight. The ends of float32 stand for infinity, for inf - inf is NaN.
    threshold = tl.where(maximum == float("inf"), maximum, threshold)
    maximum = tl.clamp(maximum, -_FLOAT32_MAX, _FLOAT32_MAX)

    total = tl.zeros((TILE,), tl.float32)
    context = tl.zeros((TILE, BLOCK_DV), tl.float32)
    for start in range(0, end, TILE):
        columns = start + tl.arange(0, TILE)
        keys = _load(key, batch, head, columns, S, D, BLOCK_D)
        scores = _scores(q, keys, rows, columns, bias, keep, batch, head, T, S, CAUSAL)
        weights = _weights(scores, threshold, maximum)
        if _any(weights, SKIP):
            total += tl.sum(weights, 1)
            if seed is not None:
                weights *= _spared(seed, dropout_p, index, rows, start, TILE)
            values = _load(value, batch, head, columns, S, DV, BLOCK_DV)
            context = tl.dot(weights.to(values.dtype), values, context, input_precision="ieee")
    inverse = 1 / tl.where(total == 0, 1.0, total)  # no key to attend to
    _store(out, batch, head, rows, T, context * inverse[:, None], DV, BLOCK_DV)
    place = index * T + rows
    # With a threshold of NaN every key of the row keeps its weight, which is NaN by its inverse.
    tl.store(row.threshold + place, tl.where(total == total, threshold, total), mask=rows < T)
    tl.store(row.maximum + place, maximum, mask=rows < T)
    tl.store(row.inverse + place, inverse, mask=rows < T)


@triton.jit
def _statistics(row, index, rows, T):
    """Threshold, maximum, inverse; rows beyond the last keep no key."""
    place, inside = index * T + rows, rows < T
    threshold = tl.load(row.threshold + place, mask=inside, other=float("inf"))
    maximum = tl.load(row.maximum + place, mask=inside, other=0.0)
    return threshold, maximum, tl.load(row.inverse + place, mask=inside, other=1.0)


@triton.jit
def _topk_backward_query(
    query, key, value, bias, keep, seed, out, grad, dquery, row, heads, T, S, scale, dropout_p,
    D: tl.constexpr, DV: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
    CAUSAL: tl.constexpr, SKIP: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    first, index, batch, head = _program(T, heads, TILE)
    rows = first + tl.arange(0, TILE)
    q = _scaled(_load(query, batch, head, rows, T, D, BLOCK_D), scale)
    g = _load(grad, batch, head, rows, T, DV, BLOCK_DV)
    context = _load(out, batch, head, rows, T, DV, BLOCK_DV)
    mean = tl.sum(g.to(tl.float32) * context.to(tl.float32), 1)
    tl.store(row.mean + index * T + rows, mean, mask=rows < T)
    threshold, maximum, inverse = _statistics(row, index, rows, T)
    dq = tl.zeros((TILE, BLOCK_D), tl.float32)
    for start in range(0, tl.minimum(S, first + TILE) if CAUSAL else S, TILE):
        columns = start + tl.arange(0, TILE)
        keys = _load(key, batch, head, columns, S, D, BLOCK_D)
        scores = _scores(q, keys, rows, columns, bias, keep, batch, head, T, S, CAUSAL)
        weights = _weights(scores, threshold, maximum) * inverse[:, None]
        if _any(weights, SKIP):
            values = _load(value, batch, head, columns, S, DV, BLOCK_DV)
            dweights = tl.dot(g, tl.trans(values), input_precision="ieee")
            if seed is not None:
                dweights *= _spared(seed, dropout_p, index, rows, start, TILE)
            dscores = weights * (dweights - mean[:, None])
            dq = tl.dot(dscores.to(keys.dtype), keys, dq, input_precision="ieee")
    _store(dquery, batch, head, rows, T, dq * scale, D, BLOCK_D)


@triton.jit
def _topk_backward_key_value(
    query, key, value, bias, keep, seed, grad, dkey, dvalue, row, heads, T, S, scale, dropout_p,
    D: tl.constexpr, DV: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
    CAUSAL: tl.constexpr, SKIP: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    start, index, batch, head = _program(S, heads, TILE)
    columns = start + tl.arange(0, TILE)
    keys = _load(key, batch, head, columns, S, D, BLOCK_D)
    values = _load(value, batch, head, columns, S, DV, BLOCK_DV)
    dk = tl.zeros((TILE, BLOCK_D), tl.float32)
    dv = tl.zeros((TILE, BLOCK_DV), tl.float32)
    for first in range(start if CAUSAL else 0, T, TILE):
        rows = first + tl.arange(0, TILE)
        q = _scaled(_load(query, batch, head, rows, T, D, BLOCK_D), scale)
        scores = _scores(q, keys, rows, columns, bias, keep, batch, head, T, S, CAUSAL)
        threshold, maximum, inverse = _statistics(row, index, rows, T)
        weights = _weights(scores, threshold, maximum) * inverse[:, None]
        if _any(weights, SKIP):
            g = _load(grad, batch, head, rows, T, DV, BLOCK_DV)
            mean = tl.load(row.mean + index * T + rows, mask=rows < T, other=0.0)
            dweights = tl.dot(g, tl.trans(values), input_precision="ieee")
            dropped = weights
            if seed is not None:
                spared = _spared(seed, dropout_p, index, rows, start, TILE)
                dropped = weights * spared
                dweights *= spared
            dv = tl.dot(tl.trans(dropped).to(g.dtype), g, dv, input_precision="ieee")
            dscores = weights * (dweights - mean[:, None])
            dk = tl.dot(tl.trans(dscores).to(q.dtype), q, dk, input_precision="ieee")
    _store(dkey, batch, head, columns, S, dk, D, BLOCK_D)
    _store(dvalue, batch, head, columns, S, dv, DV, BLOCK_DV)


def _with_rows(x: Tensor) -> Tensor:
    """With columns that are next to each other."""
    return x if x.stride(3) == 1 else x.contiguous()


def _launch(query: Tensor, value: Tensor, k: int, is_causal: bool) -> dict[str, Any]:
    """Constants and options, the same for all kernels."""
    tile = _TILE[query.dtype]
    block_d, block_dv = (max(16, triton.next_power_of_2(x.size(3))) for x in (query, value))
    return {
        "D": query.size(3),
        "DV": value.size(3),
        "BLOCK_D": block_d,
        "BLOCK_DV": block_dv,
        "CAUSAL": is_causal,
        # At fewer keys than that nearly every tile has one that some query keeps.
        "SKIP": value.size(2) >= 4 * tile * k,
        "TILE": tile,
        "num_warps": 8 if query.dtype == torch.float32 else 4,
        "num_stages": 2,
        "enable_fp_fusion": True,
    }


class _TopKAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Tensor | None,
        keep: Tensor | None,
        seed: Tensor | None,
        dropout_p: float,
        is_causal: bool,
        scale: float,
        k: int,
    ) -> Tensor:
        given = query, key, value
        query, key, value = map(_with_rows, given)
        B, H, T, _ = query.shape
        out = torch.empty_like(query) if query.size(3) == value.size(3) else query.new_empty(B, H, T, value.size(3))
        row = _Rows(*query.new_empty(4, B, H, T, dtype=torch.float32))
        inputs = *(None if x is None else _Heads.of(x) for x in (query, key, value, bias, keep)), seed
        constants = _launch(query, value, k, is_causal)
        with torch.cuda.device_of(query):
            _topk_forward[_grid(query)](
                *inputs, _Heads.of(out), row, H, T, key.size(2), k, scale, dropout_p,
                RUN=max(3, log2(triton.next_power_of_2(k))), **constants,
            )  # fmt: skip
        ctx.save_for_backward(*given, bias, keep, seed, out, *row[:3])
        ctx.numbers, ctx.constants = (scale, dropout_p), constants
        return out

    @staticmethod
    @no_second_derivative("the forward pass goes into `with fairseq_ext.kernels.disabled():`", batched=False)
    def backward(ctx: Any, saved: tuple[Tensor, ...], grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, bias, keep, seed, out, *rows = saved
        rows.append(torch.empty_like(rows[0]))  # of this gradient: another may be computed at the same time
        query, key, value, grad = map(_with_rows, (query, key, value, grad))
        grads = [torch.empty_like(x) for x in (query, key, value)]
        inputs = *(None if x is None else _Heads.of(x) for x in (query, key, value, bias, keep)), seed
        dquery, dkey, dvalue = map(_Heads.of, grads)
        sizes = query.size(1), query.size(2), key.size(2)
        arguments = _Rows(*rows), *sizes, *ctx.numbers
        # Gradients of wide keys and values leave no registers for the addresses of a tile read ahead.
        wide = max(ctx.constants["BLOCK_D"], ctx.constants["BLOCK_DV"]) > 64
        stages = {"num_stages": 1 if wide else 2}
        with torch.cuda.device_of(query):
            _topk_backward_query[_grid(query)](
                *inputs, _Heads.of(out), _Heads.of(grad), dquery, *arguments, **ctx.constants
            )  # fmt: skip
            _topk_backward_key_value[_grid(key)](
                *inputs, _Heads.of(grad), dkey, dvalue, *arguments, **ctx.constants | stages
            )  # fmt: skip
        return *grads, *(None,) * 7


def _grid(x: Tensor) -> tuple[int]:
    return (x.size(0) * x.size(1) * triton.cdiv(x.size(2), _TILE[x.dtype]),)
