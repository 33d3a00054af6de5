"""Layers of torch_geometric for a graph that stays the same from step to step: propagation as one sparse product.

Each is its parent, with the same parameters and results, but for its ``propagate``: the sparse matrix of a graph is
made anew only for another graph, and input without gradient is propagated only once. In full-batch training the raw
features are the same at every step, and for most graphs they are the widest thing that is ever propagated. What is kept
is compared by content (:class:`~fairseq_ext.remembered.Remembered`): unlike with ``cached=True``, layers stay functions
of their arguments.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch_geometric.nn import APPNP, ChebConv, GCNConv, SAGEConv
from torch_geometric.nn.conv.gcn_conv import gcn_norm
from torch_geometric.utils import degree, to_torch_csr_tensor

from fairseq_ext.remembered import Remembered
from fairseq_ext.training.errors import DataError, OptionError
from graph.inputs import as_edges
from graph.renode.pagerank import PageRank

__all__ = [
    "ExactPageRank",
    "FixedAPPNP",
    "FixedChebConv",
    "FixedGCNConv",
    "FixedSAGEConv",
    "Propagation",
    "dense_pagerank",
]

# PPNP's dense matrix: 0.9 GB for this many nodes, and twice that while it is computed.
PPNP_NODES = 15_000

Weighting = Callable[[Tensor, Tensor | None, int, torch.dtype], tuple[Tensor, Tensor]]


def edge_weights(
    edge_index: Tensor, weight: Tensor | None, num_nodes: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The edges with their weights, ones where there are none: a sum over neighbours."""
    edge_index = as_edges(edge_index)
    ones = torch.ones(edge_index.size(1), dtype=dtype, device=edge_index.device)
    return edge_index, ones if weight is None else weight


def mean_weights(
    edge_index: Tensor, weight: Tensor | None, num_nodes: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The edges weighted so that a sum over neighbours is their mean."""
    edge_index, weight = edge_weights(edge_index, weight, num_nodes, dtype)
    target = edge_index[1]
    return edge_index, weight / degree(target, num_nodes, dtype)[target]


def gcn_weights(edge_index: Tensor, weight: Tensor | None, num_nodes: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    r"""The edges of :math:`\hat D^{-1/2}(A + I)\,\hat D^{-1/2}`."""
    return gcn_norm(edge_index, weight, num_nodes, dtype=dtype)


class Propagation:
    """``A x`` for the sparse matrix A of a graph, ``A[target, source] = weight``.

    Args:
        weighting: the edges and weights of A, given ``edge_index``, weights or None, the number of nodes and a type.

    Raises:
        DataError: weights that need a gradient: A is constant.
    """

    def __init__(self, weighting: Weighting) -> None:
        self.product = Remembered(functools.partial(_product, weighting))

    def __call__(self, x: Tensor, edge_index: Tensor, weight: Tensor | None = None) -> Tensor:
        if weight is not None and weight.requires_grad:
            raise DataError("edge_weight: gets no gradient here; use torch_geometric's own layer to learn it")
        return self.product(edge_index, weight, len(x), x.dtype)(x)


def _product(
    weighting: Weighting, edge_index: Tensor, weight: Tensor | None, num_nodes: int, dtype: torch.dtype
) -> Remembered:
    """The product with the matrix of one graph, which remembers its last result."""
    (source, target), value = weighting(edge_index, weight, num_nodes, dtype)
    with warnings.catch_warnings():
        # torch warns that sparse CSR is in beta, and that it leaves the indices unchecked.
        warnings.filterwarnings("ignore", "Sparse")
        matrices = [
            to_torch_csr_tensor(torch.stack(pair), value, size=(num_nodes, num_nodes))
            for pair in ((target, source), (source, target))
        ]
    return Remembered(functools.partial(_FixedProduct.apply, *matrices))


class _FixedProduct(torch.autograd.Function):
    """``A x`` with a constant sparse A whose transpose is at hand: autograd's own product transposes A every time."""

    @staticmethod
    def forward(ctx, matrix, transpose, x):
        ctx.transpose = transpose
        return matrix @ x

    @staticmethod
    def backward(ctx, grad):
        return None, None, ctx.transpose @ grad


# torch_geometric compiles a `propagate` for each class whose own body has none: each of these has one.


class FixedGCNConv(GCNConv):
    """``GCNConv``."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, normalize=False)
        self.propagation = Propagation(gcn_weights)

    def propagate(self, edge_index: Tensor, size: None = None, *, x: Tensor, edge_weight: Tensor | None) -> Tensor:
        return self.propagation(x, edge_index, edge_weight)


class FixedSAGEConv(SAGEConv):
    """``SAGEConv`` with the mean."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels)
        self.propagation = Propagation(mean_weights)

    def propagate(self, edge_index: Tensor, size: None = None, *, x: tuple[Tensor, Tensor]) -> Tensor:
        return self.propagation(x[0], edge_index)


class FixedChebConv(ChebConv):
    """``ChebConv``."""

    def __init__(self, in_channels: int, out_channels: int, K: int) -> None:
        super().__init__(in_channels, out_channels, K)
        self.propagation = Propagation(edge_weights)

    def propagate(self, edge_index: Tensor, size: None = None, *, x: Tensor, norm: Tensor) -> Tensor:
        return self.propagation(x, edge_index, norm)


class FixedAPPNP(APPNP):
    """``APPNP``."""

    def __init__(self, K: int, alpha: float) -> None:
        super().__init__(K, alpha, normalize=False)
        self.propagation = Propagation(gcn_weights)

    def propagate(self, edge_index: Tensor, size: None = None, *, x: Tensor, edge_weight: Tensor | None) -> Tensor:
        return self.propagation(x, edge_index, edge_weight)


def dense_pagerank(edge_index: Tensor, num_nodes: int, alpha: float) -> Tensor:
    """The matrix of :class:`graph.renode.PageRank`, (n, n) float32.

    Raises:
        OptionError: more nodes than ``PPNP_NODES``.
    """
    if num_nodes > PPNP_NODES:
        raise OptionError(f"--backbone: ppnp takes at most {PPNP_NODES} nodes, the graph has {num_nodes}; choose appnp")
    rows = PageRank(edge_index, num_nodes, alpha, tol=1e-8).rows(torch.arange(num_nodes))
    return rows.to(edge_index.device, torch.float32)


class ExactPageRank(nn.Module):
    """The propagation of PPNP: a product with a dense matrix of PageRank.

    Args:
        alpha: restart probability.
        matrix: computes the matrix. Default: :func:`dense_pagerank`, remembered; models of one graph may share one.
    """

    def __init__(self, alpha: float = 0.15, matrix: Callable[..., Tensor] | None = None) -> None:
        super().__init__()
        self.alpha, self.matrix = alpha, matrix or Remembered(dense_pagerank)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.matrix(edge_index, len(x), self.alpha).to(x) @ x

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}"
