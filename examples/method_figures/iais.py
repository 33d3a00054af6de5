"""IAIS: the four blocks of a self-attention, and the mirrors towards which one of them is pulled."""

from __future__ import annotations

from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from fairseq_ext.training.plotting import PALETTE
from vision_language.iais import AttentionBlocks, attention_blocks, mirrored_maps

__all__ = ["SIZE", "draw", "pair"]

SIZE = (9.5, 4.7)

WORDS = ("a", "dog", "left", "of", "a", "sofa")
REGIONS = ("sofa", "wall", "dog")
WIDTH = 16
VERMILION = PALETTE[1]


def pair() -> AttentionBlocks:
    """Blocks of one matched pair, whose states are drawn so that a noun and its region have a direction in common."""
    generator = torch.Generator().manual_seed(3)
    directions = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=generator)).Q
    names = (*WORDS, *REGIONS)
    states = 0.3 * torch.randn(1, len(names), WIDTH, generator=generator)
    for place, name in enumerate(names):
        if name in REGIONS:
            states[0, place] += 2.4 * directions[REGIONS.index(name)]
    states[0, names.index("dog", len(WORDS))] += 1.8 * directions[0]  # the region of the dog looks at that of the sofa
    attention: Any = nn.Module()
    attention.query = attention.key = nn.Identity()
    attention.num_attention_heads, attention.attention_head_size = 1, WIDTH
    words = torch.arange(len(names))[None] < len(WORDS)
    return attention_blocks(states, attention, words, ~words)


def draw(figure: Figure) -> None:
    """The blocks as one matrix; beside it the map of the words and what it is compared with, on one scale."""
    blocks = pair()
    grid = figure.subplots(1, 4, squeeze=False, width_ratios=(1.5, 1, 1, 1))
    whole, own, singular, distributed = grid[0]
    rows = torch.cat([torch.cat([blocks.ll, blocks.lv], 2), torch.cat([blocks.vl, blocks.vv], 2)], 1)
    _map(whole, rows[0], (*WORDS, *REGIONS), "Self-attention, by blocks")
    middle = len(WORDS) - 0.5
    whole.axhline(middle, color=VERMILION, linewidth=1.5)
    whole.axvline(middle, color=VERMILION, linewidth=1.5)
    look = {"xycoords": "axes fraction", "ha": "center", "va": "center", "color": VERMILION}
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.5}
    corners = ((0.33, 0.67, "LL"), (0.83, 0.67, "LV"), (0.33, 0.17, "VL"), (0.83, 0.06, "VV"))  # beside the dark cells
    for x, y, block in corners:
        whole.annotate(f"$S_{{{block}}}$", (x, y), bbox=box, **look)
    image = _map(own, blocks.ll[0], WORDS, "$S_{LL}$, words")
    _map(singular, mirrored_maps(blocks, "singular", "renorm")[0][0], WORDS, "singular $P_{LL}$")
    _map(distributed, mirrored_maps(blocks, "distributed")[0][0], WORDS, "distributed $P_{LL}$")
    for axes in (singular, distributed):
        axes.set_yticks([])
    figure.colorbar(image, ax=grid, shrink=0.7, label="weight", location="bottom", aspect=40)


def _map(axes: Axes, values: Tensor, names: tuple[str, ...], title: str) -> Any:
    image = axes.imshow(values.numpy(), cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.set_yticks(range(len(names)), names)
    axes.set_title(title)
    axes.grid(visible=False)
    return image
