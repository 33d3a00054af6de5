"""The propagation of PPNP: a product with the whole PageRank matrix. APPNP approximates it in steps.

Klicpera et al., "Predict then Propagate: Graph Neural Networks meet Personalized PageRank", ICLR 2019.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fairseq_ext.training.errors import OptionError
from graph.inputs import edges_and_weights
from graph.remembered import Remembered
from graph.renode.pagerank import PageRank

__all__ = ["ExactPageRank", "dense_pagerank"]

# The dense matrix then has 0.9 GB, and takes twice that while it is computed.
PPNP_NODES = 15_000


def dense_pagerank(edge_index: Tensor, num_nodes: int, alpha: float, topk: int = 0) -> Tensor:
    """The matrix of :class:`graph.renode.PageRank`, (n, n) float32.

    Args:
        edge_index, num_nodes, alpha: as in :class:`graph.renode.PageRank`.
        topk: entries below the ``topk``-th largest of their row are set to 0; ties (in float32, as released) stay, and
            nothing is normalised again. Default: 0, which keeps all.

    Raises:
        OptionError: more nodes than ``PPNP_NODES``.
    """
    if num_nodes > PPNP_NODES:
        raise OptionError(f"--backbone: ppnp takes at most {PPNP_NODES} nodes, the graph has {num_nodes}; choose appnp")
    rows = PageRank(edge_index, num_nodes, alpha, tol=1e-8).rows(torch.arange(num_nodes)).float()
    if 0 < topk < num_nodes:
        rows.masked_fill_(rows < rows.topk(topk, dim=1).values[:, -1:], 0)
    return rows.to(edge_index.device)


class ExactPageRank(nn.Module):
    """The propagation of PPNP: a product with a dense matrix of PageRank.

    Args:
        alpha, topk: as in :func:`dense_pagerank`. Default 0.15, and 0.
        matrix: computes the matrix from edges, number of nodes, alpha and, where it is not 0, topk; models of one graph
            may share one. Default: :func:`dense_pagerank`, whose last result is remembered.
    """

    def __init__(self, alpha: float = 0.15, matrix: Callable[..., Tensor] | None = None, topk: int = 0) -> None:
        super().__init__()
        self.alpha, self.topk, self.matrix = alpha, topk, matrix or Remembered(dense_pagerank)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        edges, _ = edges_and_weights(edge_index, None, weighted=False)
        with torch.autocast(x.device.type, enabled=False):  # the matrix is the same with and without
            cut = (self.topk,) if self.topk else ()  # a user's own `matrix` need not take topk
            matrix = self.matrix(edges, len(x), self.alpha, *cut).to(x)
        return matrix @ x

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}" + (f", topk={self.topk}" if self.topk else "")
