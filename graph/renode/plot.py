"""Figures of topology imbalance: which nodes are contested, how this changes their weights, and where they lie."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import networkx
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import BoundaryNorm, ListedColormap, to_rgba
from matplotlib.ticker import MaxNLocator
from scipy.stats import spearmanr
from torch_geometric.data import Data
from torch_geometric.utils import subgraph, to_undirected

from fairseq_ext.training.errors import DataError
from fairseq_ext.training.files import output_folder, writing_to
from fairseq_ext.training.plotting import PALETTE, categories, legend_outside, saved_figure, second_scale
from graph.renode.options import PlotFiles, ScoreOptions
from graph.renode.score import score_table, scored_graph
from graph.renode.totoro import neighbor_conflict

__all__ = ["draw", "plot_classes", "plot_layout", "plot_neighbors", "plot_weights"]

LEGEND_CLASSES = 12
# How many of the most contested nodes the layout always shows and numbers.
CONTESTED = 10


def class_colors(data: Data) -> np.ndarray:
    """A colour for each class and, last, grey for nodes without label (-1), (C + 1, 4)."""
    classes = int(data.y.max()) + 1
    return np.array([to_rgba(color) for color in (*categories(classes), "0.85")])


def class_legend(data: Data, labels: np.ndarray, axes: Axes) -> None:
    """Draw the legend of the colours beside the axes: the ``labels`` or, where these are many, a bar of all classes."""
    colors, shown = class_colors(data), np.unique(labels)
    if len(shown) <= LEGEND_CLASSES:
        handles = [axes.scatter([], [], s=30, color=colors[label]) for label in shown]
        names = [f"class {label}" if label >= 0 else "no label" for label in shown]
        legend_outside(axes, handles, names)
        return
    classes = len(colors) - 1
    scale = BoundaryNorm(np.arange(classes + 1) - 0.5, classes)
    bar = axes.figure.colorbar(ScalarMappable(scale, ListedColormap(colors[:classes])), ax=axes, label="class")
    bar.set_ticks(range(0, classes, 1 + classes // 24))
    bar.minorticks_off()


def plot_classes(data: Data, axes: Axes) -> None:
    """Draw the Totoro scores of the labelled nodes of each class, as points over a box."""
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
    """Draw the weight of each labelled node, and its score, over the rank of the score."""
    table = score_table(data)
    order = table["rank"].argsort()
    weights, scores = PALETTE[:2]
    axes.plot(table["rank"][order], table["weight"][order], ".-", color=weights)
    axes.set(xlabel="rank of the Totoro score (0: least conflict)", title="From rank to weight")
    axes.set_ylim(0, 1.05 * table["weight"].max())
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    twin = second_scale(axes)
    twin.plot(table["rank"][order], table["totoro"][order], color=scores, linestyle="--")
    twin.set_ylim(bottom=0)
    for own, label, color in ((axes, "ReNode weight (line)", weights), (twin, "Totoro score (dashes)", scores)):
        own.set_ylabel(label, color=color)


def plot_neighbors(data: Data, axes: Axes) -> None:
    """Draw the Totoro score over the share of neighbours with another label, for labelled nodes with neighbours."""
    table, colors = score_table(data), class_colors(data)
    share = neighbor_conflict(data.edge_index, data.y).numpy()[table["node"]]
    beside_others = ~np.isnan(share)
    if not beside_others.any():
        raise DataError("no labelled node has a neighbour")
    label, totoro, share = table["label"][beside_others], table["totoro"][beside_others], share[beside_others]
    axes.scatter(share, totoro, s=18, color=colors[label], alpha=0.8, linewidths=0)
    class_legend(data, label, axes)
    axes.set(xlabel="share of neighbours of another class", ylabel="Totoro score", title="Conflict, seen from nearby")
    axes.set_ylim(bottom=0)
    if np.ptp(share) and np.ptp(totoro):
        axes.annotate(f"Spearman {spearmanr(share, totoro).statistic:.2f}", (0.03, 0.94), xycoords="axes fraction")


def plot_layout(data: Data, axes: Axes, max_nodes: int = 400) -> None:
    """Draw the graph in two dimensions: labelled nodes are sized by their weights, the most contested are numbered.

    If the graph has more than ``max_nodes`` nodes, only so many are drawn: the most contested ones, and the nodes that
    are nearest to them.
    """
    contested = score_table(data)["node"][score_table(data)["rank"].argsort()[::-1]][: min(CONTESTED, max_nodes)]
    nodes = torch.arange(len(data.y)) if len(data.y) <= max_nodes else region(data, contested.tolist(), max_nodes)
    edges = subgraph(nodes, data.edge_index, relabel_nodes=False, num_nodes=len(data.y))[0]
    graph = networkx.Graph()
    graph.add_nodes_from(nodes.tolist())
    graph.add_edges_from((u, v) for u, v in edges.T.tolist() if u != v)
    place = networkx.spring_layout(graph, seed=0, iterations=100, k=1.6 / len(nodes) ** 0.5)
    x, y = np.array([place[node] for node in nodes.tolist()]).T
    ends = [(place[u], place[v]) for u, v in graph.edges]
    faint = min(1.0, 1500 / max(len(ends), 1))  # many edges would be one blot
    axes.add_collection(LineCollection(ends, colors="0.75", linewidths=0.6, alpha=faint, zorder=0))
    colors, labelled = class_colors(data)[data.y[nodes]], data.train_mask[nodes].numpy()
    axes.scatter(x[~labelled], y[~labelled], s=12, color=colors[~labelled], alpha=0.45, linewidths=0)
    weight = data.renode_weight[nodes].numpy()[labelled]
    size, color = 90 * weight**2, colors[labelled]
    axes.scatter(x[labelled], y[labelled], s=size, color=color, edgecolors="black", linewidths=0.8)
    for number, node in enumerate(contested.tolist(), start=1):
        axes.annotate(str(number), place[node], (4, 4), textcoords="offset points", fontsize=10, fontweight="bold")
    around = "" if len(nodes) == len(data.y) else ", with what is around them"
    axes.set_title(f"Labelled nodes, sized by ReNode weight\n1 to {len(contested)}: the most contested{around}")
    axes.set_axis_off()
    class_legend(data, data.y[nodes].numpy(), axes)


def region(data: Data, seeds: Sequence[int], max_nodes: int) -> torch.Tensor:
    """Ids of at most ``max_nodes`` nodes: the ``seeds``, then for each seed in turn the nearest node not yet chosen."""
    neighbors: dict[int, list[int]] = {}
    for source, target in to_undirected(data.edge_index, num_nodes=len(data.y)).T.tolist():
        neighbors.setdefault(source, []).append(target)
    graph = networkx.from_dict_of_lists(neighbors)
    graph.add_nodes_from(seeds)
    chosen = set(seeds)
    walks = [(target for _, target in networkx.bfs_edges(graph, seed)) for seed in seeds]
    while walks and len(chosen) < max_nodes:
        for walk in walks[:]:
            new = next((node for node in walk if node not in chosen), None)
            if new is None:
                walks.remove(walk)
            elif len(chosen) < max_nodes:
                chosen.add(new)
    return torch.tensor(sorted(chosen))


FIGURES: dict[str, Callable[..., None]] = {
    "totoro_by_class.png": plot_classes,
    "rank_to_weight.png": plot_weights,
    "layout.png": plot_layout,
    "totoro_by_neighbors.png": plot_neighbors,
}


def draw(options: ScoreOptions, files: PlotFiles) -> list[Path]:
    """Draw all figures of one split; returns their paths."""
    folder, data = output_folder(files.out), scored_graph(options, files.split_seed)
    paths = []
    title = Path(options.dataset).stem
    for name, function in FIGURES.items():
        paths.append(folder / name)
        size = (8.5, 7) if function is plot_layout else (7, 4.5)
        with writing_to(folder), saved_figure(paths[-1], size, f"{title}, split seed {files.split_seed}") as figure:
            function(data, figure.subplots(), *([files.layout_nodes] if function is plot_layout else []))
    return paths
