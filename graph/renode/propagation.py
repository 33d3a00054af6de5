"""Layers of torch_geometric for a graph that stays the same from step to step: propagation as one sparse product.

Each layer has the parameters and the results of its parent, but a ``propagate`` of its own: the sparse matrix of a
graph is made anew only for another graph, the layers of a model share one, and a first layer that propagates the raw
features does so only once. In full-batch training these are the same at every step, and for most graphs they are the
widest thing that is ever propagated. Kept inputs are compared by content (:class:`~graph.remembered.Remembered`), so
that layers stay functions of their arguments, unlike with ``cached=True``. Explainers, hooks and ``torch.func`` find
the messages of the parent.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch_geometric.nn import APPNP, ChebConv, GCNConv, MessagePassing, SAGEConv
from torch_geometric.nn.conv.gcn_conv import gcn_norm
from torch_geometric.utils import degree, to_torch_csr_tensor

from graph.inputs import as_edges, edges_and_weights
from graph.remembered import Remembered, is_transformed

__all__ = [
    "FixedAPPNP",
    "FixedChebConv",
    "FixedGCNConv",
    "FixedPowers",
    "FixedSAGEConv",
    "Propagation",
]

Weighting = Callable[[Tensor, Tensor | None, int, torch.dtype], tuple[Tensor, Tensor]]


def edge_weights(
    edge_index: Tensor, weight: Tensor | None, num_nodes: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The edges with their weights, or with ones where there are no weights: a sum over neighbours."""
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
    """The product ``A x`` with the sparse matrix A of a graph, ``A[target, source] = weight``.

    The matrix of the last graph is kept: give one object to all layers that propagate over the same graph.

    Args:
        weighting: gives the edges and weights of A from ``edge_index``, weights (or None), the number of nodes, and a
            type.

    Shape:
        - x: (n, features). Half precision is summed in float32, under ``torch.autocast`` as well.
        - edge_index: (2, edges).
        - weight: (edges,), without gradient: A is constant. Default: ones.
        - remember: whether x and the result are kept for a next call with an equal x. Default: False.
        - output: (n, features), of the type of x.

    Raises:
        DataError: an edge joins nodes that x does not have.
    """

    def __init__(self, weighting: Weighting) -> None:
        self.weighting = weighting
        self.product = Remembered(functools.partial(_product, weighting))

    def __call__(self, x: Tensor, edge_index: Tensor, weight: Tensor | None = None, remember: bool = False) -> Tensor:
        exact = _at_least_single(x.dtype)
        with torch.autocast(x.device.type, enabled=False):
            product = self.product(edge_index, weight, len(x), exact)
            return (product if remember else product.function)(x.to(exact)).to(x.dtype)


def _at_least_single(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def _weighted(
    weighting: Weighting, edge_index: Tensor, weight: Tensor | None, num_nodes: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    return weighting(as_edges(edge_index), None if weight is None else weight.to(dtype), num_nodes, dtype)


def _product(
    weighting: Weighting, edge_index: Tensor, weight: Tensor | None, num_nodes: int, dtype: torch.dtype
) -> Remembered:
    """The product with the matrix of one graph, which remembers its last result."""
    # With the edges of another graph, the product would read beyond the end of x.
    edge_index = as_edges(edge_index, num_nodes=num_nodes)
    (source, target), value = _weighted(weighting, edge_index, weight, num_nodes, dtype)
    with warnings.catch_warnings():
        # torch warns that sparse CSR is in beta, and that it leaves the indices unchecked.
        warnings.filterwarnings("ignore", "Sparse")
        matrices = [
            _narrow(to_torch_csr_tensor(torch.stack(pair), value, size=(num_nodes, num_nodes)))
            for pair in ((target, source), (source, target))
        ]
    return Remembered(functools.partial(_FixedProduct.apply, *matrices))


def _narrow(matrix: Tensor) -> Tensor:
    """The same sparse CSR matrix with indices of 32 bits, where they fit."""
    if max(len(matrix), matrix.values().numel()) > torch.iinfo(torch.int32).max:
        return matrix
    indices = matrix.crow_indices().int(), matrix.col_indices().int()
    # The values themselves are a view, which would keep the wide matrix.
    return torch.sparse_csr_tensor(*indices, matrix.values().clone(), matrix.shape, check_invariants=False)


class _FixedProduct(torch.autograd.Function):
    """``A x`` for a constant sparse A whose transpose is given: autograd's own product transposes A every time."""

    @staticmethod
    def forward(ctx, matrix, transpose, x):
        ctx.transpose = transpose
        return matrix @ x

    @staticmethod
    def backward(ctx, grad):
        with torch.autocast(grad.device.type, enabled=False):  # sparse products do not take autocast's types
            return None, None, ctx.transpose @ grad


STEPS = ("propagate", "message", "aggregate", "message_and_aggregate")


class _FixedLayer(MessagePassing):
    """A mixin by which a layer of torch_geometric propagates by one sparse product, where nobody sees the difference.

    The layer makes messages between single nodes, as its parent does, where an explainer masks them, a hook is
    registered, the weights need a gradient, ``x`` holds several graphs or the two sides of a bipartite one, and within
    forward-mode differentiation and ``torch.func``'s transforms.

    A subclass sets ``propagation``, which later layers of a model take over from its first one, and ``weight_name``,
    the name of the weight in its parent's messages, or None where these have no weight. One that propagates its very
    input sets ``remembers`` where that may be the features, and not hidden activations, which never come again. In
    place of ``edge_index`` a layer also takes ``adj_t``, a sparse matrix with ``adj_t[target, source] = weight``.
    """

    propagation: Propagation
    weight_name: str | None = "edge_weight"
    remembers = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # torch_geometric compiles a `propagate` of its own for each class whose own body has none.
        cls.propagate = cls.propagate  # type: ignore[method-assign]

    @property
    def is_observed(self) -> bool:
        """Whether an explainer or a hook has to see, or changes, the steps of ``propagate``."""
        hooks = (getattr(self, f"_{step}_forward{kind}_hooks") for step in STEPS for kind in ("", "_pre"))
        return bool(self.explain) or any(hooks)

    def propagate(self, edge_index: Tensor, size: Any = None, *, x: Any, **weights: Tensor | None) -> Tensor:
        weight = weights.get(self.weight_name) if self.weight_name else None
        edge_index, weight = edges_and_weights(edge_index, weight, self.weight_name is not None)
        nodes = x if isinstance(x, Tensor) else x[0]
        if not (self.is_observed or _is_several(x) or _is_differentiated(nodes, weight)):
            return self.propagation(nodes, edge_index, weight, self.remembers)
        inputs = {"x": x}
        if self.weight_name:
            num_nodes, dtype = nodes.size(-2), _at_least_single(nodes.dtype)
            edge_index, weight = _weighted(self.propagation.weighting, edge_index, weight, num_nodes, dtype)
            inputs[self.weight_name] = weight.to(nodes.dtype)
        # Not the parent's `propagate`: torch_geometric has compiled it, and the compiled one knows no explainers.
        return MessagePassing.propagate(self, edge_index, size, **inputs)


def _is_several(x: Tensor | tuple[Tensor, Tensor | None]) -> bool:
    if isinstance(x, Tensor):
        return x.dim() != 2
    return x[0].dim() != 2 or x[1] is None or len(x[0]) != len(x[1])


def _is_differentiated(x: Tensor, weight: Tensor | None) -> bool:
    """Whether more is asked than derivatives in ``x`` by autograd's reverse mode."""
    given = (x,) if weight is None else (x, weight)
    return (weight is not None and weight.requires_grad) or is_transformed(*given)


class FixedGCNConv(_FixedLayer, GCNConv):
    """``GCNConv``."""

    def __init__(self, in_channels: int, out_channels: int, propagation: Propagation | None = None) -> None:
        super().__init__(in_channels, out_channels, normalize=False)
        self.propagation = propagation or Propagation(gcn_weights)


class FixedSAGEConv(_FixedLayer, SAGEConv):
    """``SAGEConv`` with the mean."""

    weight_name = None

    def __init__(self, in_channels: int, out_channels: int, propagation: Propagation | None = None) -> None:
        super().__init__(in_channels, out_channels)
        self.propagation = propagation or Propagation(mean_weights)
        self.remembers = propagation is None


class FixedChebConv(_FixedLayer, ChebConv):
    """``ChebConv``."""

    weight_name = "norm"

    def __init__(self, in_channels: int, out_channels: int, K: int, propagation: Propagation | None = None) -> None:
        super().__init__(in_channels, out_channels, K)
        self.propagation = propagation or Propagation(edge_weights)
        self.remembers = propagation is None

    def forward(
        self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None, *others: Any, **options: Any
    ) -> Tensor:
        edge_index, edge_weight = edges_and_weights(edge_index, edge_weight)  # the parent takes no matrix
        return super().forward(x, edge_index, edge_weight, *others, **options)


class FixedAPPNP(_FixedLayer, APPNP):
    """``APPNP``."""

    def __init__(self, K: int, alpha: float) -> None:
        super().__init__(K, alpha, normalize=False)
        self.propagation = Propagation(gcn_weights)


class FixedPowers(FixedAPPNP):
    r""":math:`\hat A^K x`. The whole result is remembered, and none of the steps.

    Without restart, K steps of PageRank are the K-th power of the normalised adjacency matrix.
    """

    def __init__(self, K: int) -> None:
        super().__init__(K, alpha=0.0)
        self.remembered = Remembered(self.steps)

    def steps(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None) -> Tensor:
        return super().forward(x, edge_index, edge_weight)

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None) -> Tensor:
        return (self.steps if self.is_observed else self.remembered)(x, edge_index, edge_weight)
