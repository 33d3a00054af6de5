"""Networks for node classification: torch_geometric's models, with the layers of ReNode's released code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch_geometric.nn.models
from torch import Tensor, nn
from torch_geometric.nn import MLP, GATConv, Linear, MessagePassing
from torch_geometric.nn.models.basic_gnn import BasicGNN

from fairseq_ext.training.errors import OptionError
from graph.renode.pagerank import check_alpha
from graph.renode.ppnp import ExactPageRank
from graph.renode.propagation import (
    FixedAPPNP,
    FixedChebConv,
    FixedGCNConv,
    FixedPowers,
    FixedSAGEConv,
    Propagation,
)

__all__ = ["APPNP", "GAT", "GCN", "PPNP", "SGC", "Cheb", "GraphSAGE"]


def _shared(layers: nn.ModuleList) -> Propagation | None:
    """The propagation of the layers before, if any: all layers of a model propagate over one graph."""
    return layers[0].propagation if len(layers) else None  # type: ignore[return-value]


class GCN(torch_geometric.nn.models.GCN):
    """``GCN`` for a graph that stays the same."""

    def init_conv(self, in_channels: int, out_channels: int, **kwargs: Any) -> MessagePassing:
        return FixedGCNConv(in_channels, out_channels, _shared(self.convs))


class GraphSAGE(torch_geometric.nn.models.GraphSAGE):
    """``GraphSAGE``, with the mean, for a graph that stays the same."""

    def init_conv(self, in_channels: Any, out_channels: int, **kwargs: Any) -> MessagePassing:
        return FixedSAGEConv(in_channels, out_channels, _shared(self.convs))


class Cheb(BasicGNN):
    """Chebyshev convolutions, K = 2 (arXiv:1606.09375), for a graph that stays the same."""

    supports_edge_weight, supports_edge_attr = True, False

    def init_conv(self, in_channels: Any, out_channels: int, **kwargs: Any) -> MessagePassing:
        return FixedChebConv(in_channels, out_channels, 2, _shared(self.convs))


class GAT(BasicGNN):
    """Graph attention with 4 heads, 1 in the last layer, and no dropout on attention, as released.

    torch_geometric's model of this name has as many heads in the last layer as in the others, and dropout on attention.
    """

    supports_edge_weight, supports_edge_attr = False, False
    heads = 4

    def init_conv(self, in_channels: Any, out_channels: int, **kwargs: Any) -> MessagePassing:
        if len(self.convs) == self.num_layers - 1:
            return GATConv(in_channels, out_channels)
        if out_channels % self.heads:
            raise OptionError(f"--hidden-size must be a multiple of gat's {self.heads} heads, got {out_channels}")
        return GATConv(in_channels, out_channels // self.heads, heads=self.heads)


class SGC(nn.Module):
    r"""A linear map of features that were propagated ``num_layers`` times; equal input is propagated only once.

    .. math::
        Z = \hat A^K X W + b,\qquad \hat A = D^{-1/2}(A + I)\,D^{-1/2}

    Felix Wu, Tianyi Zhang, Amauri Holanda de Souza Jr., Christopher Fifty, Tao Yu, Kilian Q. Weinberger, "Simplifying
    Graph Convolutional Networks", arXiv:1902.07153. ``SGConv(cached=True)`` would keep the features of its first graph.

    Args:
        in_channels: number of features of a node.
        out_channels: number of classes.
        num_layers: number of propagations, :math:`K`.

    Shape:
        - x: (n, in_channels).
        - edge_index: (2, edges), from source to target.
        - output: (n, out_channels).
    """

    def __init__(self, in_channels: int, out_channels: int, num_layers: int) -> None:
        super().__init__()
        self.propagation = FixedPowers(num_layers)
        self.lin = Linear(in_channels, out_channels)

    def reset_parameters(self) -> None:
        self.lin.reset_parameters()

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.lin(self.propagation(x, edge_index))


class PPNP(nn.Module):
    r"""A perceptron whose outputs are propagated by exact PageRank, through a dense matrix.

    .. math::
        Z = \alpha\,(I - (1-\alpha)\hat A)^{-1} H,\qquad H = \mathrm{MLP}(X)

    Johannes Klicpera, Aleksandar Bojchevski, Stephan Günnemann, "Predict then Propagate: Graph Neural Networks meet
    Personalized PageRank", arXiv:1810.05997.

    As released, the matrix is the one of the Totoro scores, :class:`~graph.renode.PageRank`: a node reads the targets
    of its edges, while in the other backbones it reads the sources; a self-loop of the graph counts in addition to the
    one that is added, and duplicate edges count once.

    Args:
        in_channels: number of features of a node.
        hidden_channels: width of the perceptron.
        num_layers: matrices in the perceptron.
        out_channels: number of classes.
        dropout: dropout in the perceptron. Default 0.5.
        alpha: restart probability. Default 0.15, as in ReNode's released code.
        matrix: computes the dense matrix; models of one graph may share it. Default: computed once per graph.
        topk: entries of the matrix below the ``topk``-th largest of their row are set to 0; ties stay, and nothing is
            normalised again. Default: 0, which keeps all, as released.

    Shape:
        - x: (n, in_channels).
        - edge_index: (2, edges).
        - output: (n, out_channels).

    Raises:
        OptionError: ``alpha`` outside [1e-6, 1), or ``topk`` below 0; in ``forward``, more nodes than a dense matrix is
            made for.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        num_layers: int,
        out_channels: int,
        dropout: float = 0.5,
        alpha: float = 0.15,
        matrix: Callable[..., Tensor] | None = None,
        topk: int = 0,
    ) -> None:
        super().__init__()
        check_alpha(alpha)
        if topk < 0:
            raise OptionError(f"topk must be at least 0, got {topk}")
        sizes = [in_channels, *[hidden_channels] * (num_layers - 1), out_channels]
        self.mlp = MLP(sizes, dropout=dropout, norm=None)
        self.propagation: nn.Module = ExactPageRank(alpha, matrix, topk)

    def reset_parameters(self) -> None:
        self.mlp.reset_parameters()

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.propagation(self.mlp(x), edge_index)


class APPNP(PPNP):
    r""":class:`PPNP` with ``hops`` steps towards PageRank.

    .. math::
        Z^{(0)} = H,\qquad Z^{(k+1)} = (1-\alpha)\hat A Z^{(k)} + \alpha H

    On an undirected graph without self-loops and duplicate edges, :class:`PPNP` is the limit for many hops. On other
    graphs it is not: edges are read as in torch_geometric's layer, from source to target, with one self-loop per node.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        num_layers: int,
        out_channels: int,
        dropout: float = 0.5,
        alpha: float = 0.15,
        hops: int = 10,
    ) -> None:
        super().__init__(in_channels, hidden_channels, num_layers, out_channels, dropout, alpha)
        self.propagation = FixedAPPNP(hops, alpha)
