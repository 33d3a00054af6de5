"""Products along a band of a matrix, computed block by block."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fairseq_ext.modules.band import Band


@given(st.integers(1, 9), st.integers(0, 6), st.integers(1, 12), st.integers(0, 3), st.integers(0, 2**31))
def test_blocks_of_any_size_are_the_definition(queries: int, length: int, size: int, rows: int, seed: int) -> None:
    torch.manual_seed(seed)
    q, k, attn = (torch.randn(rows, n, d) for n, d in ((queries, 3), (queries + length, 3), (queries, length)))
    band = Band(queries, size)
    products, sums = band.products(q, k), band.sums(attn, k)
    assert products.shape == (rows, queries, length) and sums.shape == (rows, queries, 3)
    for i in range(queries):
        window = k[:, i : i + length]
        torch.testing.assert_close(products[:, i], (window @ q[:, i, :, None]).squeeze(-1))
        torch.testing.assert_close(sums[:, i], (attn[:, i, None] @ window).squeeze(1))


@pytest.mark.parametrize(("queries", "length", "size", "most"), [(1000, 10, 64, 74_000), (1000, 1000, 1000, 2_000_000)])
def test_short_bands_are_cheap(queries: int, length: int, size: int, most: int) -> None:
    band = Band(queries, size)
    windows = band.windows(torch.zeros(1, queries + length, 1))
    assert band.number * band.size * windows.size(1) <= 1.1 * most
