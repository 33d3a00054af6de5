"""Totoro scores and ReNode weights as a transform of torch_geometric."""

from __future__ import annotations

import torch
from torch_geometric.data import Data
from torch_geometric.data.datapipes import functional_transform
from torch_geometric.transforms import BaseTransform

from fairseq_ext.errors import DataError, choose
from graph.renode.pagerank import check_solver, node_ids
from graph.renode.totoro import check_weights, renode_weights, totoro

__all__ = ["ReNode"]


@functional_transform("renode")
class ReNode(BaseTransform):
    r"""Writes how contested each labelled node is, ``data.totoro``, and what it should weigh in the training loss,
    ``data.renode_weight`` (functional name: ``renode``).

    The scores are those of :func:`~graph.renode.totoro`, the weights those of :func:`~graph.renode.renode_weights`, of
    Chen et al., `Topology-Imbalance Learning for Semi-Supervised Node Classification` (NeurIPS 2021, arXiv:2110.04099).
    Both attributes cover all nodes and are 0 for unlabelled ones: ``data.totoro.sum()`` is the score of the data set,
    ``(data.renode_weight * loss).sum() / data.train_mask.sum()`` the weighted training loss.

    The graph is read from ``data.edge_index`` as it is: duplicates count once, weights are ignored, self-loops may be
    there or not, and a graph with an edge without its reverse is a directed one (apply
    :class:`~torch_geometric.transforms.ToUndirected` before, where that is not meant).

    Args:
        w_min: Weight of the labelled node with the most conflict. Default: 0.5 (the released code: the same).
        w_max: Weight of the labelled node with the least conflict. Default: 1.5 (the released code: the same).
        alpha: Restart probability of PageRank. Default: 0.15 (the released code: the same).
        ties: ``"index"`` or ``"average"``: ranks of nodes of equal score. Default: ``"index"`` (as the released code).
        tol: Relative residual at which the solver stops. Default: 1e-12.
        max_iter: Steps after which the solver gives up. Default: 1000.
        empty_classes: ``"error"`` or ``"skip"``: classes of ``data.y`` without labelled nodes. Default: ``"error"``.

    Shape:
        - data.totoro: :math:`(n)`, float64
        - data.renode_weight: :math:`(n)`, float32

    Raises:
        OptionError: an option is out of range, or the solver did not converge.
        DataError: an attribute is missing or does not fit the graph.

    Example:
        >>> transform = T.Compose([T.NormalizeFeatures(), ReNode()])
        >>> data = Planetoid("data", "Cora", transform=transform)[0]
        >>> loss = F.cross_entropy(model(data.x, data.edge_index), data.y, reduction="none")
        >>> loss = (data.renode_weight * loss).sum() / data.train_mask.sum()
    """

    def __init__(
        self,
        w_min: float = 0.5,
        w_max: float = 1.5,
        alpha: float = 0.15,
        ties: str = "index",
        tol: float = 1e-12,
        max_iter: int = 1000,
        empty_classes: str = "error",
    ) -> None:
        check_solver(alpha, tol, max_iter)
        check_weights(w_min, w_max, ties)
        choose("empty_classes", empty_classes, ("error", "skip"))
        self.w_min, self.w_max, self.ties = w_min, w_max, ties
        self.alpha, self.tol, self.max_iter = alpha, tol, max_iter
        self.empty_classes = empty_classes

    @torch.no_grad()
    def forward(self, data: Data) -> Data:
        for name in ("edge_index", "y", "train_mask"):
            if data.get(name) is None:
                raise DataError(f"data.{name}: ReNode needs it, and this graph has none")
        nodes = node_ids(data.train_mask, data.num_nodes, "data.train_mask")
        scores = totoro(
            data.edge_index,
            data.y,
            nodes,
            data.num_nodes,
            alpha=self.alpha,
            tol=self.tol,
            max_iter=self.max_iter,
            empty_classes=self.empty_classes,
        )
        weights = renode_weights(scores, self.w_min, self.w_max, self.ties).float()
        data.totoro = scores.new_zeros(data.num_nodes).index_copy(0, nodes, scores)
        data.renode_weight = weights.new_zeros(data.num_nodes).index_copy(0, nodes, weights)
        return data

    def __repr__(self) -> str:
        return f"{type(self).__name__}(w_min={self.w_min}, w_max={self.w_max}, alpha={self.alpha}, ties={self.ties!r})"
