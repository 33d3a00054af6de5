"""Pictures of topology imbalance: who is contested, what that does to the weights, and where it happens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import matplotlib
import networkx
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy.stats import spearmanr
from torch_geometric.data import Data
from torch_geometric.utils import k_hop_subgraph, subgraph

from fairseq_ext.errors import DataError
from fairseq_ext.files import output_folder, replacing, writing_to
from graph.renode.options import ScoreOptions
from graph.renode.score import score_table, scored_graph
from graph.renode.totoro import neighbor_conflict

__all__ = ["plot_classes", "plot_layout", "plot_neighbors", "plot_weights", "run"]

LEGEND_CLASSES = 12


def class_colors(data: Data) -> np.ndarray:
    """A colour for each class, (C, 4)."""
    classes = int(data.y.max()) + 1
    return (
        matplotlib.colormaps["tab10"](np.arange(classes))
        if classes <= 10
        else (matplotlib.colormaps["gist_ncar"](np.linspace(0.03, 0.93, classes)))
    )


def plot_classes(data: Data, axes: Axes) -> None:
    """Totoro scores of the labelled nodes of each class, as points over a box."""
    table, colors = score_table(data), class_colors(data)
    labels = np.unique(table["label"])
    groups = [table["totoro"][table["label"] == label] for label in labels]
    axes.boxplot(groups, positions=labels, widths=0.6, showfliers=False, medianprops={"color": "black"})
    jitter = np.random.default_rng(0).uniform(-0.18, 0.18, len(table["node"]))
    axes.scatter(table["label"] + jitter, table["totoro"], s=14, color=colors[table["label"]], alpha=0.8, linewidths=0)
    axes.set(xlabel="class", ylabel="Totoro score", title="Conflict of the labelled nodes, by class")
    ticks = labels[:: 1 + len(labels) // 24]
    axes.set_xticks(ticks, [str(label) for label in ticks])
    axes.set_ylim(bottom=0)


def plot_weights(data: Data, axes: Axes) -> None:
    """The weight of each labelled node over the rank of its score, and the scores themselves."""
    table = score_table(data)
    order = table["rank"].argsort()
    (curve,) = axes.plot(table["rank"][order], table["weight"][order], ".-", color="tab:blue", markersize=4)
    axes.set(xlabel="rank of the Totoro score (0: least conflict)", ylabel="ReNode weight", title="From rank to weight")
    axes.set_ylim(0, 1.05 * table["weight"].max())
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    twin = axes.twinx()
    (scores,) = twin.plot(table["rank"][order], table["totoro"][order], color="tab:orange", linewidth=1)
    twin.set_ylabel("Totoro score")
    twin.set_ylim(bottom=0)
    axes.legend([curve, scores], ["weight", "Totoro score"], loc="center left", frameon=False)


def plot_neighbors(data: Data, axes: Axes) -> None:
    """Totoro over the share of neighbours with another label, for the labelled nodes that have neighbours."""
    table, colors = score_table(data), class_colors(data)
    share = neighbor_conflict(data.edge_index, data.y).numpy()[table["node"]]
    known = ~np.isnan(share)
    if not known.any():
        raise DataError("no labelled node has a neighbour")
    label, totoro, share = table["label"][known], table["totoro"][known], share[known]
    axes.scatter(share, totoro, s=18, color=colors[label], alpha=0.8, linewidths=0)
    axes.set(xlabel="share of neighbours of another class", ylabel="Totoro score", title="Conflict, seen from nearby")
    axes.set_ylim(bottom=0)
    if np.ptp(share) and np.ptp(totoro):
        axes.annotate(f"Spearman {spearmanr(share, totoro).statistic:.2f}", (0.03, 0.94), xycoords="axes fraction")


def plot_layout(data: Data, axes: Axes, max_nodes: int = 400) -> None:
    """The graph in two dimensions, its labelled nodes sized by their weights.

    Of a graph with more than ``max_nodes`` nodes it shows those around the most contested labelled nodes.
    """
    nodes = torch.arange(len(data.y)) if len(data.y) <= max_nodes else _contested_region(data, max_nodes)
    edges = subgraph(nodes, data.edge_index, relabel_nodes=False, num_nodes=len(data.y))[0]
    graph = networkx.Graph()
    graph.add_nodes_from(nodes.tolist())
    graph.add_edges_from((u, v) for u, v in edges.T.tolist() if u != v)
    place = networkx.spring_layout(graph, seed=0, iterations=100, k=1.6 / len(nodes) ** 0.5)
    x, y = np.array([place[node] for node in nodes.tolist()]).T
    ends = [(place[u], place[v]) for u, v in graph.edges]
    axes.add_collection(LineCollection(ends, colors="0.8", linewidths=0.6, zorder=0))
    colors, labelled = class_colors(data)[data.y[nodes]], data.train_mask[nodes].numpy()
    axes.scatter(x[~labelled], y[~labelled], s=12, color=colors[~labelled], alpha=0.45, linewidths=0)
    weight = data.renode_weight[nodes].numpy()[labelled]
    size, color = 90 * weight**2, colors[labelled]
    axes.scatter(x[labelled], y[labelled], s=size, color=color, edgecolors="black", linewidths=0.8)
    title = "Labelled nodes, sized by ReNode weight"
    axes.set_title(title if len(nodes) == len(data.y) else f"{title}: around the most contested")
    axes.set_axis_off()
    shown = np.unique(data.y[nodes])
    if len(shown) <= LEGEND_CLASSES:
        handles = [axes.scatter([], [], s=30, color=class_colors(data)[label]) for label in shown]
        axes.legend(
            handles, [f"class {label}" for label in shown], loc="upper left", bbox_to_anchor=(1, 1), frameon=False
        )


def _contested_region(data: Data, max_nodes: int) -> torch.Tensor:
    """Labelled nodes by falling Totoro score with their neighbourhoods of two hops, until there are enough nodes."""
    region: set[int] = set()
    for node in (data.totoro - (~data.train_mask).double()).argsort(descending=True)[: int(data.train_mask.sum())]:
        around = set(k_hop_subgraph(int(node), 2, data.edge_index, num_nodes=len(data.y))[0].tolist())
        if region and len(region | around) > max_nodes:
            break
        region |= around
    return torch.tensor(sorted(region))[:max_nodes]


def run(options: ScoreOptions, out: str | Path, split_seed: int = 0, layout_nodes: int = 400) -> list[Path]:
    """``python -m graph.renode plot``: the paths of the pictures."""
    out, data = output_folder(out), scored_graph(options, split_seed)
    pictures: dict[str, Callable[[Data, Axes], None]] = {
        "totoro_by_class.png": plot_classes,
        "rank_to_weight.png": plot_weights,
        "layout.png": lambda data, axes: plot_layout(data, axes, layout_nodes),
        "totoro_by_neighbors.png": plot_neighbors,
    }
    paths = []
    for name, draw in pictures.items():
        figure = Figure(figsize=(8, 7) if name == "layout.png" else (7, 4.5), layout="constrained")
        draw(data, figure.subplots())
        paths.append(out / name)
        with writing_to(out), replacing(paths[-1]) as partial:
            figure.savefig(partial, format="png", dpi=150)
    return paths
