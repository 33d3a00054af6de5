"""Labelled nodes of a large graph as mini-batches: their rows of personalised PageRank, and their ReNode weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from scipy import sparse

from fairseq_ext.training.errors import choose
from fairseq_ext.training.options import OptionSet, option
from graph.inputs import node_ids
from graph.renode.large_graph import LargeGraph
from graph.renode.pagerank import LEAST_ALPHA
from graph.renode.pprgo import RowBatches
from graph.renode.push import NORMALIZATIONS, push_pagerank
from graph.renode.totoro import SCORES, TIES, check_weights, renode_weights, totoro, totoro_from_rows

__all__ = ["RowOptions", "labelled_weights"]


def labelled_weights(
    graph: LargeGraph,
    nodes: np.ndarray,
    rows: sparse.csr_array,
    *,
    alpha: float = 0.15,
    w_min: float = 0.75,
    w_max: float = 1.25,
    ties: str = "index",
    score: str = "exact",
) -> np.ndarray:
    """ReNode weights of labelled nodes.

    Args:
        graph: holds the nodes.
        nodes: (L,) ids of the labelled nodes, in the order of ``rows``, or a mask over all nodes.
        rows: (L, n) pushed rows of these nodes, which only ``score="push-softmax"`` reads.
        alpha: restart probability. Default 0.15, as released.
        w_min, w_max: least and largest weight. Default 0.75 and 1.25, as released for large graphs. If both are equal,
            all nodes have the same weight.
        ties: how equal scores rank; default ``"index"``, as released. See :func:`~graph.renode.renode_weights`.
        score: ``"exact"``, the default and our choice, is :func:`~graph.renode.totoro`, by sparse solves;
            ``"push-softmax"`` is :func:`~graph.renode.totoro_from_rows`, as released.

    Returns:
        Weights, (L,) float32.
    """
    choose("--totoro", score, SCORES)
    labels = torch.from_numpy(graph.y)
    ids = node_ids(nodes, len(labels), "nodes")
    if score == "exact":
        scores = totoro(graph.edge_index, labels, ids, alpha=alpha)
    else:
        scores = totoro_from_rows(rows, labels[ids])
    return renode_weights(scores, w_min, w_max, ties).float().numpy()


OFF = {"renode": ("off",)}


@dataclass(frozen=True, kw_only=True)
class RowOptions(OptionSet):
    """Rows of PageRank, and weights of their nodes."""

    alpha: float = option(0.15, "restart probability (released: 0.15)", least=LEAST_ALPHA, below=1)
    eps: float = option(1e-4, "threshold of a push (released: 1e-4)", above=0, below=1)
    topk: int = option(0, "entries kept of a row, the largest; 0: all (released: 0)", least=0)
    normalization: str = option("sym", "normalisation of the rows (released: sym)", tuple(NORMALIZATIONS))
    batch_size: int = option(4200, "rows of a batch, over all processes (released: 4200)", least=1)
    renode: str = option("on", "weight the loss of each labelled node by the rank of its conflict", ("off", "on"))
    totoro: str = option("exact", "scores behind the weights (released: push-softmax)", SCORES, idle=OFF)
    w_min: float = option(0.75, "weight of the most contested node (released: 0.75)", above=0, idle=OFF)
    w_max: float = option(1.25, "weight of the least contested node (released: 1.25)", above=0, idle=OFF)
    ties: str = option(
        "index", "equal scores rank by node id (index) or share their mean weight (released: index)", TIES, idle=OFF
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_weights(self.w_min, self.w_max, self.ties)
        if self.w_min == self.w_max:
            self.refuse_idle("with equal --w-min and --w-max", "totoro", "ties")

    def make_batches(
        self, graph: LargeGraph, nodes: np.ndarray, accelerator: Accelerator, *, weighted: bool = False
    ) -> RowBatches:
        """Batches of the PageRank rows of ``nodes``.

        Args:
            graph: holds the nodes.
            nodes: ids of the nodes.
            accelerator: each process gets its share of a batch.
            weighted: whether the rows get ReNode's weights (not with ``--renode off``), for nodes to train on. Default
                False.
        """
        rows = push_pagerank(
            graph.edge_index,
            torch.from_numpy(nodes),
            len(graph.y),
            self.alpha,
            self.eps,
            self.topk,
            self.normalization,
        )
        weight = None
        if weighted and self.renode == "on":
            weight = labelled_weights(
                graph,
                nodes,
                rows,
                alpha=self.alpha,
                w_min=self.w_min,
                w_max=self.w_max,
                ties=self.ties,
                score=self.totoro,
            )
        return RowBatches(
            rows,
            graph.x,
            graph.y[nodes],
            weight,
            self.batch_size,
            rank=accelerator.process_index,
            world=accelerator.num_processes,
            device=accelerator.device,
        )
