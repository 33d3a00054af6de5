"""MUKA: two teachers that know two classes each, how certain each is where, and what the student learns from them."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from torch import Tensor, nn

from fairseq_ext.training.plotting import PALETTE
from vision_language.muka import (
    LabelUnion,
    amalgamation_targets,
    mc_dropout_probabilities,
    teacher_scores,
)

__all__ = ["SIZE", "draw", "train_teacher"]

SIZE = (9.5, 4.3)

COLOURS, MARKERS = PALETTE[:4], ("o", "s", "^", "D")
CENTRES = torch.tensor([[0.0, 2.3], [0.2, -2.2], [-2.3, 0.1], [2.2, -0.1]])
"""Centres of the classes. The classes of one teacher lie on the border between those of the other, who is therefore
unsure there: this is the case that the method is for."""
EXAMPLES = 50
SIDE = 80
PASSES = 64


def train_teacher(x: Tensor, y: Tensor, steps: int = 200) -> nn.Module:
    """A small perceptron with dropout, on two classes."""
    teacher = nn.Sequential(
        nn.Linear(2, 32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 2)
    )
    optimizer = torch.optim.Adam(teacher.parameters(), lr=0.01, weight_decay=1e-3)
    for _ in range(steps):
        loss = F.cross_entropy(teacher(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return teacher.eval()


def draw(figure: Figure) -> None:
    """Three maps of the plane: each teacher's score, and the classes of the target."""
    generator = torch.Generator().manual_seed(0)
    x = CENTRES.repeat_interleave(EXAMPLES, 0) + 0.55 * torch.randn(4 * EXAMPLES, 2, generator=generator)
    y = torch.arange(4).repeat_interleave(EXAMPLES)
    axis = torch.linspace(-4, 4, SIDE)
    plane = torch.cartesian_prod(axis, axis)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        teachers = [train_teacher(x[y // 2 == part], y[y // 2 == part] % 2) for part in (0, 1)]
    passes = [
        mc_dropout_probabilities(teacher, {"input": plane}, PASSES, chunk_size=PASSES * len(plane), seed=1)
        for teacher in teachers
    ]
    scores = torch.stack([teacher_scores(each) for each in passes], -1)
    with torch.no_grad():
        target = amalgamation_targets([teacher(plane) for teacher in teachers], scores, LabelUnion.disjoint([2, 2]))

    grid = figure.subplots(1, 3, squeeze=False, sharex=True, sharey=True)
    extent = (-4, 4, -4, 4)
    for part, axes in enumerate(grid[0, :2]):
        image = axes.imshow(_as_image(scores[:, part]), extent=extent, cmap="Blues", vmin=0, vmax=1)
        _scatter(axes, x, y, (2 * part, 2 * part + 1))
        axes.set_title(f"Teacher {part + 1}: certainty $s_{part + 1}$")
    bar = figure.colorbar(image, ax=grid, location="bottom", shrink=0.6, aspect=30, ticks=(0, 0.5, 1))
    bar.set_label("certainty of a teacher")
    colours = torch.tensor([to_rgb(colour) for colour in COLOURS])
    mixed = target @ colours  # a certain target has the colour of its class, a mixture one between
    grid[0, 2].imshow(_as_image(0.45 + 0.55 * mixed), extent=extent)
    _scatter(grid[0, 2], x, y, range(4))
    grid[0, 2].set_title("Target $q$ of the student")
    for axes in grid[0]:
        axes.grid(visible=False)
        axes.set(xticks=[], yticks=[], xlim=extent[:2], ylim=extent[2:])


def _as_image(values: Tensor) -> np.ndarray:
    """Values over the plane, (x, y), as rows from the top."""
    return values.unflatten(0, (SIDE, SIDE)).transpose(0, 1).flip(0).numpy()


def _scatter(axes: Axes, x: Tensor, y: Tensor, classes: Iterable[int]) -> None:
    for label in classes:
        look = {"color": COLOURS[label], "marker": MARKERS[label], "edgecolors": "white", "linewidths": 0.3}
        axes.scatter(*x[y == label].T.numpy(), s=9, **look)
