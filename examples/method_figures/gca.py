"""GCA: which encoder layers each decoder layer reads, strategy by strategy."""

from __future__ import annotations

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from fairseq_ext.modules import view_schedule
from fairseq_ext.training.plotting import GREY, PALETTE

__all__ = ["SIZE", "draw"]

SIZE = (9.5, 6.5)

STRATEGIES = {
    "none": "none (Transformer)",
    "gca": "gca: coarse to fine",
    "gpa": "gpa: same index",
    "fga": "fga: the finest",
    "fma": "fma: all",
    "ama": "ama: all, weighted",
}
BLUE, VERMILION, *_ = PALETTE
GLOBAL, SECOND, ONE_OF_ALL = 1, 2, 3
LAYERS = 6


def draw(figure: Figure) -> None:
    """Six grids of decoder layer by encoder layer."""
    grid = figure.subplots(2, 3, squeeze=False, sharex=True, sharey=True)
    for axes, (strategy, title) in zip(grid.flat, STRATEGIES.items(), strict=True):
        cells = np.zeros((LAYERS, LAYERS))
        for layer, views in enumerate(view_schedule(strategy, LAYERS, LAYERS)):
            for number, view in enumerate(views):
                kind = ONE_OF_ALL if len(views) > 2 else (GLOBAL, SECOND)[number]
                cells[layer, view - 1] = kind
        edges = np.arange(LAYERS + 1) + 0.5
        axes.pcolormesh(
            *(edges, edges, cells),
            cmap=ListedColormap(["white", BLUE, VERMILION, GREY]),
            vmin=0,
            vmax=ONE_OF_ALL,
            edgecolors="0.8",
            linewidth=0.8,
        )
        axes.set(title=title, aspect="equal", xticks=range(1, LAYERS + 1), yticks=range(1, LAYERS + 1))
        axes.tick_params(length=0)
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
    for axes in grid[-1]:
        axes.set_xlabel("encoder layer (fine to coarse)")
    for axes in grid[:, 0]:
        axes.set_ylabel("decoder layer (1: bottom)")
    names = {"global view, the last encoder layer": BLUE, "second view": VERMILION, "one of all views": GREY}
    figure.legend(
        handles=[Patch(color=colour, label=name) for name, colour in names.items()], loc="outside lower center", ncols=3
    )
