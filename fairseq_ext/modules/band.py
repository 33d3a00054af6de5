"""Products of each query with the few keys before it, without computing those of all queries with all keys."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

__all__ = ["Band"]


class Band:
    """Queries in blocks, each beside the keys that it looks at.

    Query ``i`` of ``T`` looks at the keys ``i .. i + L - 1`` of ``T + L``. A block of ``size`` queries multiplies
    ``size + L`` keys, so that ``T`` queries cost ``T (size + L)`` products instead of ``T (T + L)``.
    """

    def __init__(self, queries: int, size: int) -> None:
        self.queries, self.size = queries, max(1, min(queries, size))
        self.number = max(1, math.ceil(queries / self.size))
        self.missing = self.number * self.size - queries

    def split(self, x: Tensor) -> Tensor:
        """Cut queries (N, T, D) into blocks (N * number, size, D), the last one filled up with zeros."""
        return F.pad(x, (0, 0, 0, self.missing)).unflatten(1, (self.number, self.size)).flatten(0, 1)

    def windows(self, x: Tensor) -> Tensor:
        """Cut keys (N, T + L, D) into those of each block, (N * number, size + L, D)."""
        length = x.size(1) - self.queries
        windows = F.pad(x, (0, 0, 0, self.missing)).unfold(1, length + self.size, self.size)
        return windows.transpose(2, 3).flatten(0, 1)

    def join(self, x: Tensor) -> Tensor:
        """The inverse of :meth:`split`."""
        rows = x.size(0) // self.number
        return x.unflatten(0, (rows, self.number)).flatten(1, 2)[:, : self.queries]

    def products(self, q: Tensor, k: Tensor) -> Tensor:
        """``q`` (N, T, D) times the keys ``k`` (N, T + L, D) that each query looks at: (N, T, L)."""
        scores = self.split(q) @ self.windows(k).transpose(1, 2)
        rows, size, keys = scores.shape
        # Cutting the flattened matrix into rows of keys + 1 entries makes each row start one column further right.
        return self.join(F.pad(scores.flatten(1), (0, size)).view(rows, size, keys + 1)[..., : keys - size])

    def sums(self, attn: Tensor, v: Tensor) -> Tensor:
        """``v`` (N, T + L, D) summed over the keys of each query with weights ``attn`` (N, T, L): (N, T, D)."""
        band = self.split(attn)
        rows, size, length = band.shape
        weights = F.pad(band, (0, size + 1)).flatten(1)[:, : size * (length + size)].view(rows, size, length + size)
        return self.join(weights @ self.windows(v))
