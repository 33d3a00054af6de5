"""Personalised PageRank, local and approximate, by pushing."""

from __future__ import annotations

import numba
import numpy as np
from scipy import sparse
from torch import Tensor

from fairseq_ext.training.errors import OptionError, choose
from fairseq_ext.training.progress import progress
from graph.inputs import node_ids
from graph.renode.pagerank import binary_adjacency, check_alpha

__all__ = ["NORMALIZATIONS", "push_pagerank"]

# An entry is scaled by the ratio of two degrees to this power.
NORMALIZATIONS = {"row": 0.0, "sym": 0.5, "col": 1.0}


def push_pagerank(
    edge_index: Tensor,
    nodes: Tensor,
    num_nodes: int | None = None,
    alpha: float = 0.15,
    eps: float = 1e-4,
    topk: int = 0,
    normalization: str = "sym",
) -> sparse.csr_array:
    r"""Approximate rows of personalised PageRank, each at a cost of :math:`O(1 / (\alpha\,\epsilon))` on any graph.

    At first all mass is the residual of the row's node. While a node :math:`u` has a residual
    :math:`r_u \ge \alpha\,\epsilon\,d_u`, it adds :math:`r_u` to its estimate and passes
    :math:`(1-\alpha)\,r_u / d_u` to the residual of each of its :math:`d_u` neighbours; of several such nodes, the one
    that crossed the threshold last goes first. On an undirected graph, the estimates approach the rows of
    :math:`\alpha\,(I - (1-\alpha) D^{-1} A)^{-1}` from below, to within :math:`\epsilon\,d`. Unlike in
    :class:`~graph.renode.PageRank` no self-loop is added.

    The local algorithm is by Andersen, Chung and Lang, `Local Graph Partitioning using PageRank Vectors` (FOCS 2006);
    Bojchevski et al. use it for GNNs, `Scaling Graph Neural Networks with Approximate PageRank` (KDD 2020,
    arXiv:2007.01570).

    Args:
        edge_index, num_nodes: The graph, as in :class:`~graph.renode.PageRank`; a directed one is walked along its
            edges.
        nodes: Ids of the nodes whose rows are wanted, or a mask over all nodes.
        alpha: Restart probability, in [1e-6, 1). Default: 0.15 (the released ReNode code: the same).
        eps: Threshold of the residual, in (0, 1). Default: 1e-4 (the released ReNode code: the same).
        topk: How many estimates of a row are kept, the largest; among equal ones, those of the nodes reached first. 0
            keeps all. Default: 0 (the released ReNode code: the same).
        normalization: What to do with the estimate :math:`p_j` of node :math:`j` in the row of :math:`s`: ``"row"``
            keeps it, ``"sym"`` gives :math:`p_j\sqrt{d_s / d_j}`, ``"col"`` gives :math:`p_j\,d_s / d_j`; a degree of 0
            counts as 1. Default: ``"sym"`` (the released ReNode code: the same).

    Returns:
        A float32 matrix of :math:`(L, n)` with sorted indices.

    Raises:
        OptionError: an option is out of range.
        DataError: ``edge_index`` or ``nodes`` does not fit the graph.
    """
    check_alpha(alpha)
    if not 0 < eps < 1:
        raise OptionError(f"eps must be greater than 0 and less than 1, got {eps}")
    if not np.float32(alpha) * np.float32(eps) > 0:
        raise OptionError(f"eps: {eps} times alpha is 0 in single precision, a push would never end")
    if topk < 0:
        raise OptionError(f"topk must be at least 0, got {topk}")
    choose("normalization", normalization, NORMALIZATIONS)

    adjacency = binary_adjacency(edge_index, num_nodes)
    size = adjacency.shape[0]
    sources = node_ids(nodes, size, "nodes").cpu().numpy()
    estimate, residual = np.zeros((2, size), np.float32)
    stack, touched = np.empty((2, size), np.int64)
    scratch = estimate, residual, np.zeros(size, np.bool_), stack, touched
    # The options are float32 too, as in the released code: one push more or less moves an estimate by the threshold.
    options = np.float32(alpha), np.float32(eps)
    columns, values = [], []
    for source in progress(sources, "rows of PageRank", unit=" rows", leave=False):
        reached = touched[: _push(adjacency.indptr, adjacency.indices, source, *options, *scratch)]
        kept = reached[estimate[reached] > 0]
        if 0 < topk < len(kept):
            kept = kept[np.argsort(-estimate[kept], kind="stable")[:topk]]
        kept.sort()
        columns.append(kept)
        values.append(estimate[kept])
        # Only the entries that this row touched are cleared: its cost must not depend on the size of the graph.
        estimate[reached] = residual[reached] = 0

    lengths = [len(row) for row in columns]
    indptr, indices = np.cumsum([0, *lengths]), np.concatenate([np.empty(0, np.int64), *columns])
    degree = np.maximum(np.diff(adjacency.indptr), 1)
    ratio = np.repeat(degree[sources], lengths) / degree[indices]
    data = np.concatenate([np.empty(0, np.float32), *values]) * ratio ** NORMALIZATIONS[normalization]
    return sparse.csr_array((data.astype(np.float32), indices, indptr), shape=(len(sources), size))


@numba.njit(nogil=True)
def _push(indptr, indices, source, alpha, eps, estimate, residual, waiting, stack, touched):
    """Pushes from ``source`` until nothing is above the threshold; returns how many nodes it listed in ``touched``."""
    residual[source] = alpha
    stack[0] = touched[0] = source
    height = reached = 1
    while height:
        height -= 1
        node = stack[height]
        waiting[node] = False
        mass = residual[node]
        estimate[node] += mass
        residual[node] = 0
        degree = indptr[node + 1] - indptr[node]
        for edge in range(indptr[node], indptr[node + 1]):
            neighbor = indices[edge]
            if residual[neighbor] == 0 and estimate[neighbor] == 0:
                touched[reached] = neighbor
                reached += 1
            residual[neighbor] += np.float32((1 - alpha) * mass / degree)
            threshold = alpha * eps * (indptr[neighbor + 1] - indptr[neighbor])
            if residual[neighbor] >= threshold and not waiting[neighbor]:
                waiting[neighbor] = True
                stack[height] = neighbor
                height += 1
    return reached
