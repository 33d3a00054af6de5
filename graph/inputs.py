"""Turns arguments in the forms that users have (arrays, columns, masks of any type, ``adj_t``) into tensors.

Input that can mean only one thing is converted; all other input is refused in one line that names the argument.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.utils import to_edge_index
from torch_geometric.utils.sparse import is_sparse

from fairseq_ext.training.errors import DataError, OptionError

__all__ = [
    "as_edges",
    "as_labels",
    "as_tensor",
    "as_weights",
    "edges_and_weights",
    "edges_of",
    "edges_of_matrix",
    "node_ids",
    "refuse_weights",
    "select_split",
]


def as_tensor(values: Any, name: str) -> Tensor:
    """The tensor that holds a tensor's, an array's or a list's values.

    Raises:
        DataError: no tensor can be made of ``values``; the message calls them ``name``.
    """
    if isinstance(values, Tensor):
        return values.as_tensor() if isinstance(values, EdgeIndex) else values
    try:
        with warnings.catch_warnings():  # torch warns of read-only arrays, but nothing here writes to its arguments
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            return torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        kind = f"an array of {values.dtype}" if hasattr(values, "dtype") else type(values).__name__
        raise DataError(f"{name} must be a tensor or an array, got {kind}") from error


def as_edges(edge_index: Any, name: str = "edge_index", num_nodes: int | None = None) -> Tensor:
    """Edges as int64 of shape (2, E).

    Raises:
        DataError: the edges have another shape, are no integers, or name a node beyond ``num_nodes``.
    """
    edges = as_tensor(edge_index, name)
    if edges.numel() == 0 and edges.dim() == 2 and edges.size(0) == 2:
        return edges.long()  # torch makes floats of an empty list
    if edges.dim() != 2 or edges.size(0) != 2 or not _holds_integers(edges):
        raise DataError(f"{name} must be integers of shape (2, E), got {_described(edges)}")
    edges = edges.long()
    if num_nodes is not None and edges.numel() and not 0 <= int(edges.min()) <= int(edges.max()) < num_nodes:
        raise DataError(f"{name}: it names nodes {edges.min()} to {edges.max()}, the graph has {num_nodes}, from 0 on")
    return edges


def edges_of(store: Any, name: str) -> Tensor:
    """The edges of a graph, or of one type of them, from ``edge_index`` or ``adj_t``.

    Raises:
        DataError: the graph has neither, or weights of edges other than 1; the message puts ``name`` before the
            attribute.
    """
    if (weight := store.get("edge_weight")) is not None:
        refuse_weights(weight, f"{name}edge_weight")
    if (edge_index := store.get("edge_index")) is not None:
        return as_edges(edge_index, f"{name}edge_index")
    adj_t = store.get("adj_t")
    if adj_t is None:
        raise DataError(f"{name}edge_index: the graph has none")
    if not is_sparse(adj_t):
        raise DataError(f"{name}adj_t must be a sparse matrix, got {type(adj_t).__name__}")
    edges, values = edges_of_matrix(adj_t)
    if weight is None and values.dim() == 1:  # values with more dimensions are attributes of edges
        refuse_weights(values, f"{name}adj_t")
    return edges


def edges_of_matrix(adj_t: Any) -> tuple[Tensor, Tensor]:
    """Edges (2, E) and their weights (E,) in a sparse matrix of any layout with ``adj_t[target, source] = weight``."""
    if isinstance(adj_t, Tensor) and adj_t.layout == torch.sparse_coo:
        adj_t = adj_t.coalesce()  # torch_geometric would only mark it as coalesced
    edge_index, weight = to_edge_index(adj_t)
    return edge_index.flip(0), weight  # a row holds the sources of its target


def edges_and_weights(edge_index: Tensor, weight: Tensor | None, weighted: bool = True) -> tuple[Tensor, Tensor | None]:
    """Edges and their weights as they are; where ``edge_index`` is a matrix ``adj_t``, its edges and weights.

    Raises:
        DataError: ``weight`` is given beside ``adj_t``; or ``adj_t`` has weights other than 1, and ``weighted`` is
            False, as nothing reads them.
    """
    if not is_sparse(edge_index):
        return edge_index, weight
    if weight is not None:
        raise DataError("edge_weight: those of adj_t are its values; give one of the two")
    edges, values = edges_of_matrix(edge_index)
    if weighted:
        return edges, values
    refuse_weights(values, "adj_t")
    return edges, None


def refuse_weights(weight: Any, name: str) -> None:
    """Refuse weights of edges other than 1, where nothing reads them.

    Raises:
        DataError: a weight is not 1; the message names the first such weight, and calls them ``name``.
    """
    weights = as_tensor(weight, name)
    if not bool((weights == 1).all()):
        found = weights.reshape(-1)[(weights != 1).reshape(-1)][0].item()
        raise DataError(f"{name} must hold only 1, as weights of edges are not read here, got {found}")


def as_labels(y: Any, num_nodes: int | None = None, name: str = "y") -> Tensor:
    """One class number per node, int64 of shape (n,); NaN, which marks a node without label, becomes -1.

    Raises:
        DataError: the labels are not one whole number per node.
    """
    labels = as_tensor(y, name)
    if labels.dim() == 2 and labels.size(1) == 1:
        labels = labels.squeeze(1)
    form = f"class numbers of shape ({'n' if num_nodes is None else num_nodes},)"
    if labels.dim() != 1 or num_nodes not in (None, len(labels)):
        raise DataError(f"{name} must be {form}, got {_described(labels)}")
    if labels.is_floating_point():
        labels = torch.where(labels.isnan(), -1, labels)
        if not bool(((labels == labels.trunc()) & labels.isfinite()).all()):
            raise DataError(f"{name} must be {form}, got fractions or infinite ones")
    elif not (_holds_integers(labels) or labels.dtype == torch.bool):
        raise DataError(f"{name} must be {form}, got {_described(labels)}")
    return labels.long()


def node_ids(nodes: Any, num_nodes: int, name: str, split: int | None = None, *, of: str = "node") -> Tensor:
    """Ids of nodes, from ids or from a mask over all nodes. Messages call the nodes ``of``, such as ``"graph"``.

    A mask holds bools, or zeros and ones of any type: no id is listed twice, so that zeros and ones for more than two
    nodes can only be a mask. In a mask with several columns, ``split`` chooses one (:func:`select_split`).

    Raises:
        DataError: ``nodes`` is neither, or an id is out of range or listed twice; the message calls it ``name``.
    """
    nodes = select_split(nodes, num_nodes, name, split)
    if nodes.dim() == 1 and _is_mask(nodes, num_nodes):
        return nodes.nonzero().view(-1)
    if nodes.dim() != 1 or (nodes.numel() and not _holds_integers(nodes)):
        raise DataError(
            f"{name} must be {of} ids of shape (L,) or a mask of shape ({num_nodes},), got {_described(nodes)}"
        )
    nodes = nodes.long()
    if nodes.numel() and (nodes.min() < 0 or nodes.max() >= num_nodes):
        raise DataError(f"{name}: ids {nodes.min()} to {nodes.max()} do not fit {num_nodes} {of}s")
    if len(nodes.unique()) < len(nodes):
        raise DataError(f"{name}: a {of} is listed twice")
    return nodes


def _is_mask(nodes: Tensor, num_nodes: int) -> bool:
    clear = num_nodes > 2 or nodes.dtype in (torch.bool, torch.uint8) or nodes.is_floating_point()
    return clear and len(nodes) == num_nodes and bool(((nodes == 0) | (nodes == 1)).all())


def select_split(mask: Any, num_nodes: int, name: str, split: int | None = None) -> Tensor:
    """The column ``split`` of a mask over all nodes with a column for each split; anything else is returned as it is.

    Raises:
        DataError: the mask has several columns, and ``split`` chooses none.
        OptionError: there is no such split.
    """
    mask = as_tensor(mask, name)
    columns = mask.size(1) if mask.dim() == 2 and mask.size(0) == num_nodes else 1
    if split is not None and not 0 <= split < columns:
        raise OptionError(f"split: {name} holds {columns} split{'s' * (columns > 1)}, counted from 0; got {split}")
    if mask.dim() != 2 or mask.size(0) != num_nodes:
        return mask
    if split is None and columns != 1:
        raise DataError(f"{name}: holds {columns} splits, one a column; choose one with split=")
    return mask[:, split or 0]


def as_weights(weight: Any, count: int, name: str = "weight") -> Tensor:
    """Training weights of ``count`` labelled nodes, each above 0.

    Raises:
        DataError: there are more or fewer weights, or one is NaN, infinite, negative or 0.
            :class:`~graph.renode.ReNode` gives 0 to nodes without label, so a weight of 0 was made for another mask.
    """
    weights = as_tensor(weight, name)
    if weights.shape == (count, 1):
        weights = weights.squeeze(1)
    if weights.shape != (count,):
        raise DataError(f"{name} must have one value for each of {count} labelled nodes, got {_described(weights)}")
    if not bool((weights.isfinite() & (weights >= 0)).all()):
        raise DataError(f"{name} must be numbers above 0, got {weights[~(weights >= 0) | weights.isinf()][0]}")
    if zeros := int((weights == 0).sum()):
        raise DataError(
            f"{name}: {zeros} of {count} labelled nodes weigh 0: the weights are of another mask; "
            "apply ReNode after the split is made"
        )
    return weights


def _holds_integers(values: Tensor) -> bool:
    return not (values.is_floating_point() or values.is_complex() or values.dtype == torch.bool)


def _described(values: Tensor) -> str:
    return f"{values.dtype} of shape {tuple(values.shape)}"
