"""The largest numbers of each row of a tile: a bitonic sorting network that drops what cannot be among them.

The network is that of Triton's ``tl.topk``. An exchange here is a maximum and a minimum, two instructions where Triton
compares, selects and moves bits; and the columns change places so that most exchanges are between registers.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["largest", "log2", "merge"]


@triton.constexpr_function
def log2(n):
    return n.bit_length() - 1


@triton.jit
def _exchange(x, BIT: tl.constexpr, RUN: tl.constexpr, ASCENDING: tl.constexpr):
    """Orders the pairs of columns that differ in one bit: the larger first in every other run of ``2**RUN`` columns."""
    ROWS: tl.constexpr = x.shape[0]
    COLUMNS: tl.constexpr = x.shape[1]
    GROUPS: tl.constexpr = COLUMNS // 2 ** (BIT + 1)
    pairs = tl.reshape(x, (ROWS, GROUPS, 2, 2**BIT))
    run = tl.arange(0, GROUPS)[None, :, None, None] >> (RUN - BIT - 1)
    second = tl.arange(0, 2)[None, None, :, None]
    larger = ((run + second + ASCENDING) & 1) == 0
    ordered = tl.where(larger, tl.max(pairs, 2, keep_dims=True), tl.min(pairs, 2, keep_dims=True))
    return tl.reshape(ordered, (ROWS, COLUMNS))


@triton.jit
def merge(x, RUN: tl.constexpr, ASCENDING: tl.constexpr = False):
    """Sorts bitonic runs of ``2**RUN`` columns, descending and ascending in turn."""
    for i in tl.static_range(RUN):
        x = _exchange(x, RUN - 1 - i, RUN, ASCENDING)
    return x


@triton.jit
def largest(x, RUN: tl.constexpr):
    """The ``2**RUN`` largest numbers of each row, descending (Shanbhag et al., "Efficient Top-K Query Processing on
    Massively Parallel Hardware", SIGMOD 2018)."""
    # A tensor core leaves neighbouring columns in different threads. Which column is which does not matter here: with
    # those that one thread has next to each other, most exchanges are between registers.
    owned = tl.permute(tl.reshape(x, (x.shape[0], x.shape[1] // 16, 2, 4, 2)), (0, 3, 2, 1, 4))
    x = tl.reshape(owned, x.shape)
    if x.shape[1] < 2**RUN:
        x = tl.reshape(tl.join(x, tl.full(x.shape, float("-inf"), x.dtype)), (x.shape[0], 2 * x.shape[1]))
    for i in tl.static_range(RUN):
        x = merge(x, i + 1)
    for _ in tl.static_range(log2(x.shape[1]) - RUN):
        pairs = tl.reshape(x, (x.shape[0], x.shape[1] // 2 ** (RUN + 1), 2, 2**RUN))
        x = merge(tl.reshape(tl.max(pairs, 2), (x.shape[0], x.shape[1] // 2)), RUN)
    return x
