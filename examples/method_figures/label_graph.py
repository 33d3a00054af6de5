"""Label graph: which labels go together in the data, what the learned graph says of it, and the targets it softens."""

from __future__ import annotations

import re

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from fairseq_ext.training.plotting import PALETTE
from graph.label_graph import LabelGraph, label_graph_loss, soft_targets
from graph.label_graph.synthetic import STYLE_COUNTS, make_albums

__all__ = ["SIZE", "draw", "learned_graph"]

SIZE = (9.5, 4.1)

STYLES = tuple(STYLE_COUNTS)
BLUE, VERMILION, *_ = PALETTE
SHOWN = ("rock", "alternative", "britpop", "pop", "r&b", "soul", "piano", "classical", "newage")
ALBUM = ("rock", "alternative")


def albums() -> tuple[Tensor, Tensor]:
    """How often an album's reviews use the words of each style, and its styles."""
    records = make_albums(1000, reviews=4)
    words = {style.replace("&", ""): number for number, style in enumerate(STYLES)}
    counts, gold = torch.zeros(2, len(records), len(STYLES))
    for row, album in enumerate(records):
        gold[row, [STYLES.index(tag) for tag in album["tags"]]] = 1
        for comment in album["all_short_comments"]:
            for word in re.findall(r"[a-z]+", comment["comment"]):
                if word in words:
                    counts[row, words[word]] += 1
    return counts, gold


def learned_graph(counts: Tensor, gold: Tensor, steps: int = 100) -> Tensor:
    """G after a short training with soft targets; each style's score depends only on that style's own words.

    So relations between styles can only be learned by G; a network before it would learn a part of them, too.
    """
    slope, bias = torch.ones(len(STYLES)).requires_grad_(), torch.full((len(STYLES),), -2.0).requires_grad_()
    graph = LabelGraph(len(STYLES))
    optimizer = torch.optim.Adam([slope, bias, *graph.parameters()], lr=0.02)
    for _ in range(steps):
        logits = graph(slope * counts.log1p() + bias)
        loss = label_graph_loss(logits, gold, graph.weight, soft_target_clip=True)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return graph.weight.detach()


def draw(figure: Figure) -> None:
    """Two maps of the same labels on scales of their own, and the targets of one album."""
    counts, gold = albums()
    graph = learned_graph(counts, gold)
    together = gold.T @ gold / gold.sum(0)[:, None]
    grid = figure.subplots(1, 3, squeeze=False, width_ratios=(1, 1, 0.9))
    first, second, third = grid[0]
    shown = [STYLES.index(style) for style in SHOWN]
    _map(first, together[shown][:, shown], "Blues", 0, "Share of the row's albums\nthat have the column")
    _map(second, graph[shown][:, shown], "RdBu_r", None, "Learned graph $G$: what the\nrow adds to the column")
    second.set_yticks([])
    soft = soft_targets(gold.new_tensor([[style in ALBUM for style in STYLES]]), graph, clip=True)[0, shown]
    places = range(len(SHOWN))
    third.barh(places, soft.numpy(), 0.7, color=[VERMILION if style in ALBUM else BLUE for style in SHOWN])
    third.set(yticks=places, yticklabels=SHOWN, xlim=(0, 1.02), xlabel="target")
    third.grid(visible=False, axis="y")
    third.invert_yaxis()
    third.set_title(f"Soft targets of an album\nof {' and '.join(ALBUM)}")


def _map(axes: Axes, values: Tensor, colours: str, least: float | None, title: str) -> None:
    values = values.clone().fill_diagonal_(torch.nan)
    limit = float(values.nan_to_num().abs().max())
    axes.set_facecolor("0.88")  # shows through the diagonal
    image = axes.imshow(values.numpy(), cmap=colours, vmin=-limit if least is None else least, vmax=limit)
    axes.set_xticks(range(len(SHOWN)), SHOWN, rotation=90)
    axes.set_yticks(range(len(SHOWN)), SHOWN)
    axes.set_title(title)
    axes.grid(visible=False)
    axes.figure.colorbar(image, ax=axes, location="bottom", shrink=0.9, aspect=25)
