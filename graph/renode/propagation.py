"""Propagation over a graph that stays the same from step to step, as one sparse product."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.nn import APPNP, Linear, MessagePassing
from torch_geometric.nn.conv.gcn_conv import gcn_norm
from torch_geometric.utils import degree, to_torch_csr_tensor

from fairseq_ext.remembered import Remembered
from fairseq_ext.training.errors import OptionError
from graph.renode.inputs import as_edges
from graph.renode.pagerank import PageRank

__all__ = ["ExactPageRank", "Simplified", "fixed_norm", "fixed_propagation"]

# PPNP's dense matrix: 0.9 GB for this many nodes, and twice that while it is computed.
PPNP_NODES = 15_000


def fixed_propagation(conv: MessagePassing) -> MessagePassing:
    """Let a linear ``conv`` propagate by one sparse product, whose matrix is made anew only for another graph.

    An input without gradient is propagated once, too: in full-batch training the raw features are the same at every
    step, and for most graphs they are the widest thing that is ever propagated. What is kept is compared by content
    (:class:`~fairseq_ext.remembered.Remembered`), so that ``conv`` stays a function of its arguments.
    """
    conv.propagate = _Propagation(conv.aggr)
    return conv


def fixed_norm(conv: MessagePassing) -> MessagePassing:
    """Give a ``conv`` made with ``normalize=False`` GCN's normalised graph, made anew only for another graph.

    That is ``cached=True`` of torch_geometric's layers, but for a graph that is not the first one.
    """
    conv.register_forward_pre_hook(_Norm())
    return conv


class _Norm:
    """The forward pre-hook of :func:`fixed_norm`."""

    def __init__(self) -> None:
        self.norm = Remembered(gcn_norm)

    def __call__(self, conv: MessagePassing, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        x, edge_index, *weight = inputs
        edge_weight = weight[0] if weight else None
        return x, *self.norm(edge_index, edge_weight, len(x), False, True, conv.flow, x.dtype)


class _Propagation:
    """``propagate`` of a linear layer that sums its messages or takes their mean."""

    def __init__(self, aggr: str) -> None:
        self.aggr = aggr
        self.product = Remembered(_Product)

    def __call__(
        self,
        edge_index: Tensor,
        x: Tensor | tuple[Tensor, ...],
        size: object = None,
        *,
        edge_weight: Tensor | None = None,
        norm: Tensor | None = None,
    ) -> Tensor:
        x = x[0] if isinstance(x, tuple) else x
        weight = norm if edge_weight is None else edge_weight
        return self.product(edge_index, weight, len(x), x.dtype, self.aggr)(x)


class _Product:
    """``A x`` for the sparse matrix A of a graph, ``A[target, source] = weight``."""

    def __init__(
        self, edge_index: Tensor, weight: Tensor | None, num_nodes: int, dtype: torch.dtype, aggr: str
    ) -> None:
        source, target = as_edges(edge_index)
        value = torch.ones(len(source), dtype=dtype, device=source.device) if weight is None else weight
        if aggr == "mean":
            value = value / degree(target, num_nodes, dtype)[target]
        with warnings.catch_warnings():
            # torch warns that sparse CSR is in beta, and that it leaves the indices unchecked.
            warnings.filterwarnings("ignore", "Sparse")
            matrices = [
                to_torch_csr_tensor(torch.stack(pair), value, size=(num_nodes, num_nodes))
                for pair in ((target, source), (source, target))
            ]
        self.product = Remembered(functools.partial(_FixedProduct.apply, *matrices))

    def __call__(self, x: Tensor) -> Tensor:
        return self.product(x)


class _FixedProduct(torch.autograd.Function):
    """``A x`` with a constant sparse A whose transpose is at hand: autograd's own product transposes A every time."""

    @staticmethod
    def forward(ctx, matrix, transpose, x):
        ctx.transpose = transpose
        return matrix @ x

    @staticmethod
    def backward(ctx, grad):
        return None, None, ctx.transpose @ grad


class Simplified(nn.Module):
    """A linear map of the features propagated ``hops`` times, as SGC; equal features are propagated once.

    Felix Wu, Tianyi Zhang, Amauri Holanda de Souza Jr., Christopher Fifty, Tao Yu, Kilian Q. Weinberger, "Simplifying
    Graph Convolutional Networks", arXiv:1902.07153.
    """

    def __init__(self, in_channels: int, out_channels: int, hops: int) -> None:
        super().__init__()
        # Without restart, PageRank's steps are powers of the normalised adjacency matrix.
        self.propagated = Remembered(fixed_propagation(fixed_norm(APPNP(hops, alpha=0.0, normalize=False))))
        self.lin = Linear(in_channels, out_channels)

    def reset_parameters(self) -> None:
        self.lin.reset_parameters()

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.lin(self.propagated(x, edge_index))


class ExactPageRank(nn.Module):
    """The propagation of PPNP: a product with the dense matrix of :class:`graph.renode.PageRank`."""

    def __init__(self, alpha: float = 0.15) -> None:
        super().__init__()
        self.alpha = alpha

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return _dense_pagerank(edge_index, len(x), self.alpha).to(x) @ x

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}"


# One for all models: those that train on one graph share its matrix.
@Remembered
def _dense_pagerank(edge_index: Tensor, num_nodes: int, alpha: float) -> Tensor:
    if num_nodes > PPNP_NODES:
        raise OptionError(f"--model: ppnp takes at most {PPNP_NODES} nodes, the graph has {num_nodes}; choose appnp")
    rows = PageRank(edge_index, num_nodes, alpha, tol=1e-8).rows(torch.arange(num_nodes))
    return rows.to(edge_index.device, torch.float32)
