"""ReNode: Totoro over a small graph, and the weights that come of its ranks."""

from __future__ import annotations

import networkx
import torch
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from torch_geometric.data import Data
from torch_geometric.datasets import KarateClub

from fairseq_ext.training.plotting import PALETTE
from graph.renode import ReNode

__all__ = ["SIZE", "draw"]

SIZE = (9.5, 4.8)

COLOURS = PALETTE[:4]
MARKERS = ("o", "s", "^", "D")
LABELLED = 5


def karate_club() -> Data:
    """Zachary's karate club with up to five labelled members of each of its four communities, scored."""
    data = KarateClub()[0]
    data.train_mask = torch.zeros(data.num_nodes, dtype=torch.bool)
    generator = torch.Generator().manual_seed(1)
    for label in range(4):
        members = (data.y == label).nonzero()[:, 0]
        data.train_mask[members[torch.randperm(len(members), generator=generator)[:LABELLED]]] = True
    return ReNode()(data)


def draw(figure: Figure) -> None:
    """Left, the graph, its labelled nodes as large as their weights; right, the weight of each by its score."""
    data = karate_club()
    grid = figure.subplots(1, 2, squeeze=False, width_ratios=(1.25, 1))
    left, right = grid[0]
    graph = networkx.Graph(data.edge_index.T.tolist())
    place = networkx.kamada_kawai_layout(graph)
    ends = [(place[u], place[v]) for u, v in graph.edges]
    left.add_collection(LineCollection(ends, colors="0.82", linewidths=0.7, zorder=0))
    for label, (colour, marker) in enumerate(zip(COLOURS, MARKERS, strict=True)):
        of_class = data.y == label
        for labelled in (False, True):
            nodes = (of_class & (data.train_mask == labelled)).nonzero()[:, 0].tolist()
            x, y = zip(*(place[node] for node in nodes), strict=True) if nodes else ((), ())
            size = 75 * data.renode_weight[nodes] ** 2 if labelled else 16
            look = {"edgecolors": "black", "linewidths": 0.9} if labelled else {"alpha": 0.4, "linewidths": 0}
            left.scatter(x, y, s=size, color=colour, marker=marker, **look)
        nodes = (of_class & data.train_mask).nonzero()[:, 0]
        look = {"edgecolors": "black", "linewidths": 0.9, "s": 30}
        right.scatter(
            data.totoro[nodes], data.renode_weight[nodes], color=colour, marker=marker, label=f"class {label}", **look
        )
    left.set_axis_off()
    left.set_title("Outlined: labelled, as large as its weight")
    right.axhline(1, color="0.8", linewidth=0.8, zorder=0)
    right.set(
        xlabel="Totoro, the conflict with other classes",
        ylabel="weight in the training loss",
        title="From score to weight, by rank",
        ylim=(0.4, 1.6),
    )
    right.legend()
