"""Totoro scores and ReNode weights as a transform of torch_geometric."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Data, HeteroData
from torch_geometric.data.datapipes import functional_transform
from torch_geometric.transforms import BaseTransform

from fairseq_ext.losses import reduce_weighted
from fairseq_ext.training.errors import DataError, OptionError, choose
from fairseq_ext.training.options import OptionSet, option
from graph.inputs import as_labels, as_weights, edges_of, node_ids
from graph.renode.pagerank import LEAST_ALPHA, check_solver
from graph.renode.totoro import TIES, check_weights, renode_weights, totoro

__all__ = ["ReNode", "WeightOptions", "renode_loss"]

EdgeType = tuple[str, str, str]


@functional_transform("renode")
class ReNode(BaseTransform):
    r"""Writes how contested each labelled node is, ``data.totoro``, and what it should weigh in the training loss,
    ``data.renode_weight`` (functional name: ``renode``).

    The scores are those of :func:`~graph.renode.totoro`, the weights those of :func:`~graph.renode.renode_weights`, of
    Chen et al., `Topology-Imbalance Learning for Semi-Supervised Node Classification` (NeurIPS 2021, arXiv:2110.04099).
    Both attributes cover all nodes and are 0 for unlabelled ones: ``data.totoro.sum()`` is the score of the data set,
    :func:`renode_loss` the weighted training loss.

    The graph is read as it is, from ``data.edge_index`` or from a ``data.adj_t`` in its place: duplicate edges count
    once, weights other than 1 are refused, self-loops are allowed, and a graph in which an edge has no reverse is
    directed (apply :class:`~torch_geometric.transforms.ToUndirected` before, if that is not meant).

    The weights belong to the present ``data.train_mask``: apply the transform after the one that makes the split, and
    before a loader that samples neighbours (:class:`~torch_geometric.loader.NeighborLoader`), as its batches hold only
    a part of the graph.

    Args:
        w_min: Weight of the labelled node with the most conflict, above 0, which marks nodes without label. Default:
            0.5 (the released code: the same).
        w_max: Weight of the labelled node with the least conflict. Default: 1.5 (the released code: the same).
        alpha: Restart probability of PageRank. Default: 0.15 (the released code: the same).
        ties: ``"index"`` or ``"average"``: ranks of nodes of equal score. Default: ``"index"`` (as the released code).
        tol: Relative residual at which the solver stops. Default: 1e-12.
        max_iter: Steps after which the solver gives up. Default: 1000.
        empty_classes: What to do with classes of ``data.y`` without labelled nodes: ``"error"`` (the default) or
            ``"skip"``.
        split: The column of a ``data.train_mask`` that holds several splits, one per column. Default: None, which
            refuses such a mask.
        node_type: The nodes of a :class:`~torch_geometric.data.HeteroData` that are labelled; the others are left out.
            Default: None, for a graph with one type of nodes.
        edge_type: The edges between them, as ``(node_type, relation, node_type)``. Default: None, where there is one
            such type.

    Shape:
        - data.totoro: :math:`(n)`, float64
        - data.renode_weight: :math:`(n)`, float32

    Raises:
        OptionError: an option is out of range, or the solver did not converge.
        DataError: an attribute is missing or does not fit the graph, or a weight of an edge is not 1.

    Example:
        >>> transform = T.Compose([T.NormalizeFeatures(), ReNode()])
        >>> data = Planetoid("data", "Cora", transform=transform)[0]
        >>> loss = F.cross_entropy(model(data.x, data.edge_index), data.y, reduction="none")
        >>> loss = renode_loss(loss, data)
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
        split: int | None = None,
        node_type: str | None = None,
        edge_type: EdgeType | None = None,
    ) -> None:
        check_solver(alpha, tol, max_iter)
        check_weights(w_min, w_max, ties)
        if w_min == 0:
            raise OptionError("w_min: 0 is the weight of nodes without label; choose a value above it")
        choose("empty_classes", empty_classes, ("error", "skip"))
        if edge_type is not None and {edge_type[0], edge_type[-1]} != {node_type}:
            raise OptionError(f"edge_type: {edge_type} does not join nodes of node_type {node_type!r}")
        self.w_min, self.w_max, self.alpha = w_min, w_max, alpha
        self.ties, self.tol, self.max_iter = ties, tol, max_iter
        self.empty_classes, self.split = empty_classes, split
        self.node_type, self.edge_type = node_type, edge_type

    @torch.no_grad()
    def forward(self, data: Data | HeteroData) -> Data | HeteroData:
        nodes, edges, name = self._stores(data)
        if "n_id" in nodes:
            raise DataError(f"{name}n_id: this is a sampled part of a graph; apply ReNode to the graph, then sample")
        if nodes.get("y") is None:
            raise DataError(f"{name}y: the graph has none")
        y = as_labels(nodes.y, name=f"{name}y")
        size = len(y)
        labelled = _labelled(nodes, size, name, self.split)
        scores = totoro(
            edges_of(edges, name),
            y,
            labelled,
            size,
            alpha=self.alpha,
            tol=self.tol,
            max_iter=self.max_iter,
            empty_classes=self.empty_classes,
        )
        weights = renode_weights(scores, self.w_min, self.w_max, self.ties).float()
        nodes.totoro = scores.new_zeros(size).index_copy(0, labelled, scores)
        nodes.renode_weight = weights.new_zeros(size).index_copy(0, labelled, weights)
        return data

    def _stores(self, data: Data | HeteroData) -> tuple[Any, Any, str]:
        """The parts of ``data`` that hold the nodes and the edges, and the prefix of their names in messages."""
        if isinstance(data, Data):
            if self.node_type is not None:
                raise OptionError(
                    f"node_type: {self.node_type!r} is for a HeteroData, this graph has one type of nodes"
                )
            return data, data, "data."
        if self.node_type is None:
            raise OptionError(f"node_type: a HeteroData needs one of {', '.join(data.node_types)}")
        choose("node_type", self.node_type, data.node_types)
        among = [kind for kind in data.edge_types if {kind[0], kind[-1]} == {self.node_type}]
        shown = " or ".join(map(str, among)) or "none"
        if self.edge_type is None and len(among) != 1:
            raise OptionError(f"edge_type must be one that joins {self.node_type!r} to itself, got {shown}")
        edge_type = self.edge_type or among[0]
        if edge_type not in among:
            raise OptionError(f"edge_type: {edge_type} is not in the graph, which has {shown}")
        return data[self.node_type], data[edge_type], f"data[{self.node_type!r}]."

    def __repr__(self) -> str:
        # All options: torch_geometric compares this text to see whether a data set was made by an equal transform.
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"


@dataclass(frozen=True, kw_only=True)
class WeightOptions(OptionSet):
    """How conflict becomes a weight."""

    w_min: float = option(0.5, "weight of the most contested node (released: 0.5)", above=0)
    w_max: float = option(1.5, "weight of the least contested node (released: 1.5)", above=0)
    alpha: float = option(
        0.15, "restart probability of PageRank, here and in appnp and ppnp (released: 0.15)", least=LEAST_ALPHA, below=1
    )
    ties: str = option(
        "index", "equal scores rank by node id (index) or share their mean weight (released: index)", TIES
    )
    tol: float = option(1e-12, "relative residual at which the solver stops", above=0, below=1)
    max_iter: int = option(1000, "steps after which the solver gives up", least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.w_min == self.w_max:
            self.refuse_idle("with equal --w-min and --w-max", "ties")

    def make_transform(self) -> ReNode:
        """The transform that weighs the labelled nodes."""
        return ReNode(self.w_min, self.w_max, self.alpha, self.ties, self.tol, self.max_iter)


def renode_loss(loss: Tensor, data: Any, split: int | None = None) -> Tensor:
    r"""The mean of the labelled nodes' losses, each times its weight: :math:`\frac1L \sum_v w_v \ell_v`.

    In a batch that was sampled around seed nodes, as by :class:`~torch_geometric.loader.NeighborLoader`, only labelled
    seeds count, which are among the first ``batch_size`` nodes: a labelled neighbour is a seed of another batch.

    :math:`L` is counted in ``data``: of a part of a graph (``data.subgraph``, ``RandomNodeLoader``) the loss is the
    mean of its own labelled nodes. That of the graph is the sum over parts, each times its share of the labelled nodes.

    Args:
        loss: Loss of each node of ``data``, or of each seed; losses of nodes without label are not read.
        data: The graph that :class:`ReNode` was applied to, or a batch of it with its ``train_mask`` and
            ``renode_weight``; for a :class:`~torch_geometric.data.HeteroData` the nodes of one type, as
            ``data["paper"]``.
        split: As in :class:`ReNode`.

    Shape:
        - loss: :math:`(n)`, or of a sampled batch :math:`(\text{batch\_size})`
        - output: scalar

    Raises:
        DataError: there are no weights, they were made for another mask, or the loss has another length.
    """
    if data.get("renode_weight") is None:
        raise DataError("data.renode_weight: the graph has none; apply ReNode first")
    size = len(data.renode_weight)
    if "n_id" in data and len(data.train_mask) != size:
        raise DataError("data.train_mask: to be sampled with the nodes it has to be a mask, got ids")
    labelled = _labelled(data, size, "data.", split)
    if not len(labelled):
        raise DataError("data.train_mask: there is no labelled node")
    weight = as_weights(data.renode_weight[labelled], len(labelled), "data.renode_weight")
    if others := int((data.renode_weight > 0).sum()) - len(labelled):
        raise DataError(
            f"data.renode_weight: {others} nodes outside of train_mask weigh more than 0: the weights are of another "
            "mask; apply ReNode after the split is made"
        )
    seeds = _seeds(data, size)
    labelled, weight = labelled[labelled < seeds], weight[labelled < seeds]
    if not len(labelled):
        raise DataError(
            "data.train_mask: no seed node of the batch is labelled; sample around input_nodes=data.train_mask"
        )
    if len(loss) not in (size, seeds):
        nodes = f"{size}" if seeds == size else f"{size} or, for the seeds, {seeds}"
        raise DataError(f"loss must have one value for each of the {nodes} nodes, got shape {tuple(loss.shape)}")
    return reduce_weighted(loss[labelled], weight.to(loss.device))


def _seeds(nodes: Any, size: int) -> int:
    """How many of the first nodes have a loss: the seeds in a sampled batch, else all nodes."""
    if "n_id" not in nodes:
        return size
    if nodes.get("batch_size") is None:
        raise DataError("data.batch_size: the batch was sampled around nodes of another type")
    return int(nodes.batch_size)


def _labelled(nodes: Any, size: int, name: str, split: int | None) -> Tensor:
    if nodes.get("train_mask") is None:
        raise DataError(f"{name}train_mask: the graph has none")
    # Sorted, so that nodes of equal score rank by their ids, whatever the order in which these are listed.
    return node_ids(nodes.train_mask, size, f"{name}train_mask", split).sort().values
