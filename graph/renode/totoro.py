"""Totoro: how strongly other classes reach a labelled node; and ReNode: training weights by its rank."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor
from torch_geometric.utils import coalesce, remove_self_loops, scatter

from fairseq_ext.training.errors import DataError, OptionError, choose
from fairseq_ext.training.progress import progress
from graph.inputs import as_edges, as_labels, as_tensor, node_ids
from graph.renode.pagerank import BLOCK, PageRank, to_the_smallest

__all__ = [
    "SCORES",
    "TIES",
    "class_influence",
    "dataset_totoro",
    "neighbor_conflict",
    "renode_weights",
    "totoro",
    "totoro_from_rows",
]

SCORES = ("exact", "push-softmax")
TIES = ("index", "average")
# Entries of a dense block of (rows, classes): 8 MB.
OVERLAPS = 1 << 20


def totoro(
    edge_index: Tensor,
    y: Tensor,
    train_mask: Tensor,
    num_nodes: int | None = None,
    alpha: float = 0.15,
    tol: float = 1e-12,
    max_iter: int = 1000,
    method: str = "auto",
    empty_classes: str = "error",
) -> Tensor:
    r"""The Totoro score of each labelled node: how far its personalised PageRank overlaps that of other classes.

    .. math::
        T_v = \sum_x \Pi_{vx} \sum_{c \ne y_v} g_c(x),\qquad g_c(x) = \frac{1}{|C_c|} \sum_{i \in C_c} \Pi_{ix}

    with :math:`\Pi` of :class:`~graph.renode.PageRank` and :math:`C_c` the labelled nodes of class :math:`c`. A node
    near the border of its class scores high; one in whose component no other class is labelled scores exactly 0.
    Chen et al., `Topology-Imbalance Learning for Semi-Supervised Node Classification` (NeurIPS 2021, arXiv:2110.04099).

    The scores are exact and need neither :math:`\Pi` nor its labelled rows. With the :math:`(n, C)` matrix
    :math:`M_{ic} = [i \in C_c] / |C_c|`, :math:`G = \Pi^\top M` holds the :math:`g_c` and
    :math:`T_v = \sum_{c \ne y_v} (\Pi G)_{vc}`: a sparse solve of :math:`C` columns (two on a directed graph), done a
    few columns at a time, so that the memory is :math:`O(n + E)` for any number of classes. A score below ``tol``, such
    as that of a node dozens of steps from the other classes, is lost in the norms that conjugate gradient looks at; it
    is summed up by the power iteration, so that scores rank down to 1e-290.

    Args:
        edge_index, num_nodes, alpha, tol, max_iter, method: The graph and the solver, as in
            :class:`~graph.renode.PageRank`; ``num_nodes`` is the length of ``y`` by default.
        y: Labels of all nodes. Those of unlabelled nodes only tell which classes there are.
        train_mask: Mask of the labelled nodes, or their ids.
        empty_classes: What to do about a class below the largest label of ``y`` that has no labelled node: ``"error"``
            refuses it, since no training could learn it; ``"skip"`` lets it add nothing, since it has no influence.
            Default: ``"error"`` (the released code divides by zero).

    Shape:
        - edge_index: :math:`(2, E)`
        - y: :math:`(n)`
        - train_mask: :math:`(n)`, or :math:`(L)` for ids
        - output: :math:`(L)`, float64, in the order of the ids (ascending for a mask)

    Raises:
        DataError: there is no labelled node, one has a negative label, a class has none, or ``edge_index`` or
            ``train_mask`` does not fit the graph.
        OptionError: an option is out of range, or the solver did not converge.
    """
    nodes, labels, size = _labelled(y, train_mask, num_nodes, empty_classes)
    pagerank = PageRank(edge_index, size, alpha, tol, max_iter, method)
    # A block of classes at a time: the memory does not grow with their number.
    blocks = torch.arange(int(labels.max()) + 1).split(BLOCK)

    def solve(entrywise: bool) -> Tensor:
        scores = torch.zeros(len(nodes), dtype=torch.float64, device=nodes.device)
        for classes in progress(blocks, "Totoro", unit=" blocks of classes", leave=False):
            overlap = pagerank.overlap(_class_means(nodes, labels, size, classes), nodes, entrywise)
            scores += _of_other_classes(overlap, labels, classes)
        return scores

    def in_reach(part: Tensor) -> Tensor:
        part = part[nodes]
        return (scatter(labels, part, reduce="min") != scatter(labels, part, reduce="max"))[part]

    return to_the_smallest(pagerank, solve, in_reach, least=tol)


def class_influence(
    edge_index: Tensor,
    y: Tensor,
    train_mask: Tensor,
    num_nodes: int | None = None,
    empty_classes: str = "error",
    **solver: Any,
) -> Tensor:
    r"""The influence :math:`g_c(x)` of each class on each node; see :func:`totoro` for the formula and the arguments.

    Its largest column is the label that propagation with restart, balanced by the sizes of the classes, would give; as
    in :func:`totoro`, nodes far from all labelled ones have theirs too.

    Args:
        **solver: Options of :class:`~graph.renode.PageRank`.

    Shape:
        - output: :math:`(n, C)`, float64, where :math:`C` is one more than the largest label of a labelled node
    """
    nodes, labels, size = _labelled(y, train_mask, num_nodes, empty_classes)
    means = _class_means(nodes, labels, size, torch.arange(int(labels.max()) + 1))
    pagerank = PageRank(edge_index, size, **solver)
    return to_the_smallest(
        pagerank,
        lambda entrywise: pagerank.matmul(means, True, entrywise),
        lambda part: torch.isin(part, part[nodes]),
        least=1000 * pagerank.tol,
    )


def totoro_from_rows(rows: sparse.sparray, y: Tensor, softmax: bool = True) -> Tensor:
    r"""Totoro scores from given rows of PageRank, such as those of :func:`~graph.renode.push_pagerank`.

    The formula is that of :func:`totoro`, with the given rows :math:`P` for the labelled rows of :math:`\Pi`. The
    released code for large graphs first takes a softmax over the stored entries of each row. On an undirected graph
    they lie in :math:`[0, 1]`, and it makes them nearly equal: the score then measures how far supports overlap rather
    than how much mass they share. On a directed graph an entry far above 1 takes all. The rows stay sparse, where the
    released code makes them dense, and memory grows with their entries, not with the number of classes.

    Args:
        rows: Rows of the labelled nodes. Stored zeros count as absent.
        y: Labels of these nodes. A class that none of them has adds nothing.
        softmax: Whether to take the softmax. Default: ``True`` (as the released code).

    Shape:
        - rows: :math:`(L, n)`
        - y: :math:`(L)`
        - output: :math:`(L)`, float64

    Raises:
        DataError: there is no row, a label is negative, or ``rows`` and ``y`` differ in length.
    """
    y = as_labels(y)
    if rows.shape[0] != len(y):
        raise DataError(f"y: got {len(y)} labels for {rows.shape[0]} rows")
    _, labels, _ = _labelled(y, torch.arange(len(y)), len(y), "skip")
    rows = sparse.csr_array(rows, dtype=np.float64, copy=True)
    rows.eliminate_zeros()
    if softmax:
        stored = np.diff(rows.indptr)
        rows.data = np.exp(rows.data - np.repeat(rows.max(axis=1).toarray(), stored))
        rows.data /= np.repeat(rows.sum(axis=1), stored)
    labels = labels.cpu()
    classes = torch.arange(int(labels.max()) + 1)
    means = (_shares(labels).numpy(), labels.numpy(), np.arange(len(labels) + 1))
    influence = (sparse.csr_array(means, shape=(len(labels), len(classes))).T @ rows).T.tocsr()
    scores = torch.zeros(len(labels), dtype=torch.float64)
    # The rows and classes of all would make a dense matrix.
    step = max(1, OVERLAPS // len(classes))
    for start in range(0, len(labels), step):
        block = slice(start, start + step)
        overlap = torch.from_numpy((rows[block] @ influence).toarray())
        scores[block] = _of_other_classes(overlap, labels[block], classes)
    return scores


def dataset_totoro(totoro: Tensor) -> float:
    """Topology imbalance of a whole data set: the sum of its labelled nodes' scores. Higher means more conflict.

    Args:
        totoro: Scores of :func:`totoro`, or the attribute that :class:`~graph.renode.ReNode` writes.
    """
    return float(as_tensor(totoro, "totoro").sum())


def renode_weights(totoro: Tensor, w_min: float = 0.5, w_max: float = 1.5, ties: str = "index") -> Tensor:
    r"""Training weights of labelled nodes: a cosine over the rank of their Totoro scores.

    .. math::
        w_v = w_{\min} + \tfrac12\,(w_{\max} - w_{\min})\,\bigl(1 + \cos(\pi\,r_v / (L - 1))\bigr)

    where :math:`r_v \in \{0, \dots, L-1\}` is the ascending rank of :math:`T_v`. The node with the least conflict
    weighs :math:`w_{\max}`, the one with the most :math:`w_{\min}`; the mean is :math:`(w_{\min} + w_{\max}) / 2`.
    Chen et al., `Topology-Imbalance Learning for Semi-Supervised Node Classification` (NeurIPS 2021, arXiv:2110.04099).

    Args:
        totoro: Scores of the labelled nodes.
        w_min: Smallest weight. Default: 0.5 (the released code: the same).
        w_max: Largest weight. Default: 1.5 (the released code: the same).
        ties: How nodes of equal score share their ranks. ``"index"``: the earlier node comes first, as in the released
            code. ``"average"``: each gets the mean of their weights (our choice), which treats alike the nodes of
            components with one labelled class, all of score 0. Default: ``"index"``.

    Shape:
        - totoro: :math:`(L)`
        - output: :math:`(L)`, of the type of ``totoro``. A single node weighs ``w_max`` (our choice: the formula has
          no value there).

    Raises:
        DataError: there is no score.
        OptionError: not ``0 <= w_min <= w_max``, or ``ties`` is unknown.
    """
    check_weights(w_min, w_max, ties)
    totoro = as_tensor(totoro, "totoro")
    if totoro.dim() != 1:
        raise DataError(f"totoro must be one score a labelled node, got shape {tuple(totoro.shape)}")
    if not len(totoro):
        raise DataError("totoro: there is no labelled node")
    if totoro.isnan().any():
        raise DataError("totoro: a score is NaN, which has no rank")
    steps = torch.arange(len(totoro), dtype=torch.float64, device=totoro.device) / max(len(totoro) - 1, 1)
    by_rank = w_min + 0.5 * (w_max - w_min) * (1 + torch.cos(math.pi * steps))
    weights = torch.empty_like(by_rank)
    weights[totoro.argsort(stable=True)] = by_rank
    if ties == "average":
        group = totoro.unique(return_inverse=True)[1]
        weights = scatter(weights, group, reduce="mean")[group]
    return weights.to(totoro.dtype if totoro.is_floating_point() else torch.get_default_dtype())


def check_weights(w_min: float, w_max: float, ties: str) -> None:
    """Refuses options of :func:`renode_weights` that are out of range."""
    if not 0 <= w_min <= w_max < math.inf:
        raise OptionError(f"w_min and w_max must satisfy 0 <= w_min <= w_max, got {w_min} and {w_max}")
    choose("ties", ties, TIES)


def neighbor_conflict(edge_index: Tensor, y: Tensor) -> Tensor:
    """Share of a node's neighbours that have another label: what Totoro looks like one step away.

    Neighbours are the targets of a node's edges; duplicates count once, self-loops and neighbours without label (below
    0) not at all.

    Shape:
        - edge_index: :math:`(2, E)`
        - y: :math:`(n)`
        - output: :math:`(n)`, float32; NaN where a node has no neighbour with a label, or no label itself
    """
    y = as_labels(y)
    edges = coalesce(remove_self_loops(as_edges(edge_index, num_nodes=len(y)))[0], num_nodes=len(y))
    source, target = edges[:, (y[edges] >= 0).all(0)]
    other = scatter((y[source] != y[target]).float(), source, dim_size=len(y))
    return other / scatter(torch.ones_like(source), source, dim_size=len(y))


def _labelled(y: Tensor, train_mask: Tensor, num_nodes: int | None, empty_classes: str) -> tuple[Tensor, Tensor, int]:
    """Ids and labels of the labelled nodes, checked, and the number of all nodes."""
    choose("empty_classes", empty_classes, ("error", "skip"))
    y = as_labels(y, num_nodes)
    nodes = node_ids(train_mask, len(y), "train_mask").to(y.device)
    if not len(nodes):
        raise DataError("train_mask: there is no labelled node")
    labels = y[nodes]
    if labels.min() < 0:
        raise DataError(f"y must be at least 0 where a node is labelled, got {labels.min()}")
    empty = (labels.bincount(minlength=int(y.max()) + 1) == 0).nonzero().view(-1).tolist()
    if empty and empty_classes == "error":
        classes = ", ".join(map(str, empty))
        raise DataError(f"train_mask: no labelled node of class {classes}; empty_classes='skip' scores without it")
    return nodes, labels, len(y)


def _class_means(nodes: Tensor, labels: Tensor, num_nodes: int, classes: Tensor) -> Tensor:
    """The matrix that averages over the labelled nodes of each of ``classes``, which follow one another.

    Shape:
        - output: (n, len(classes)); a class without labelled nodes has zeros
    """
    means = torch.zeros(num_nodes, len(classes), dtype=torch.float64, device=labels.device)
    among = (labels >= classes[0]) & (labels <= classes[-1])
    means[nodes[among], labels[among] - int(classes[0])] = _shares(labels)[among]
    return means


def _shares(labels: Tensor) -> Tensor:
    """What each labelled node adds to the mean over those of its class."""
    return 1 / labels.bincount()[labels].double()


def _of_other_classes(influence: Tensor, labels: Tensor, classes: Tensor) -> Tensor:
    """Sums each row but the entry of the row's own class."""
    # Zeroed, not subtracted: the own class has most of the sum, whose rounding would swamp the rest.
    return influence.masked_fill(labels[:, None] == classes.to(labels.device), 0).sum(1)
