"""The style of all figures, and the few forms that they are made of.

A figure has a white ground, letters that can be read at half its size, and colours that the colour-blind can tell
apart; baselines are grey. Means are lines, their spread a band. Up to six lines carry their names at their
ends.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.rcsetup import cycler
from matplotlib.transforms import ScaledTranslation
from PIL import Image

from fairseq_ext.fonts import fonts_for
from fairseq_ext.training.files import replacing

__all__ = [
    "BAND",
    "GREY",
    "LETTERS",
    "PALETTE",
    "Run",
    "categories",
    "legend_outside",
    "mean_and_range",
    "name_lines",
    "saved_figure",
    "second_scale",
]

BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
BLACK = "#000000"
GREY = "#555555"
PALETTE = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK, GREY)
"""In this order: Okabe and Ito, "Color Universal Design", without its light yellow."""

LETTERS = 10
"""Points of the smallest ones."""

STYLE: Any = {
    **{"figure.facecolor": "white", "axes.facecolor": "white", "savefig.facecolor": "white", "savefig.dpi": 130},
    **{"font.size": 11, "axes.titlesize": 11, "axes.labelsize": 11, "legend.fontsize": LETTERS},
    **{"figure.titlesize": 13, "figure.labelsize": 11},
    **{"xtick.labelsize": LETTERS, "ytick.labelsize": LETTERS, "axes.titlelocation": "left", "legend.frameon": False},
    **{"axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True},
    **{"axes.grid": True, "grid.color": "0.9", "lines.linewidth": 1.8, "lines.markersize": 4.5},
    "axes.prop_cycle": cycler(color=PALETTE),
}
"""Changes to matplotlib's defaults, which take the place of the user's own settings."""

BAND = 0.18
"""Opacity of a spread."""
NAMED = 6
"""So many lines carry their names; of more there is a legend."""


def categories(count: int) -> list[Any]:
    """A colour for each of ``count`` classes; more classes than the palette has colours get those of a rainbow."""
    if count <= len(PALETTE):
        return list(PALETTE[:count])
    return list(matplotlib.colormaps["gist_ncar"](np.linspace(0.03, 0.93, count)))


@contextmanager
def saved_figure(path: str | Path, size: tuple[float, float], title: str = "") -> Iterator[Figure]:
    """A figure in the common style, which is written to ``path`` at the end, unless the block fails or leaves it empty.

    Args:
        path: the file; its suffix tells the format, without one it is PNG.
        size: inches across and down. No more than 9.5 across can be read at half size.
        title: what the figure shows, and for which data; a ``$`` is an ordinary character.

    Example:
        >>> with saved_figure("losses.png", (6, 4), "Validation loss") as figure:
        ...     _ = figure.subplots().plot([3, 2, 1])
    """
    # A program may open the root logger for debugging, as importing fairseq does; it does not want a list of all fonts.
    logger = logging.getLogger("matplotlib")
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.WARNING)
    path = Path(path)
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        figure = Figure(figsize=size, layout="constrained")
        if title:
            figure.suptitle(title, x=0.01, ha="left", wrap=True, parse_math=False)
        yield figure
        if not figure.axes:
            return
        with replacing(path) as partial, fonts_for(figure):
            figure.savefig(partial, format=path.suffix[1:] or "png")
            shaded = figure.findobj(lambda artist: getattr(artist, "get_array", lambda: None)() is not None)
            if path.suffix in ("", ".png") and not shaded:
                with Image.open(partial) as image:
                    few = image.convert("RGB").quantize(256, dither=Image.Dither.NONE)
                few.save(partial, format="png", optimize=True)  # a third of the bytes


Run = Sequence[tuple[float, float]]
"""The points of a curve."""


def mean_and_range(axes: Axes, runs: Sequence[Run], label: str = "", **style: Any) -> Line2D:
    """Draw the mean of runs as a line and, if there are several, their range as a band.

    Args:
        axes: axes to draw on.
        runs: points (x, y) of each run, all at the same x; the line ends with the shortest run.
        label: name of the line.
        style: as for ``Axes.plot``.
    """
    x = [place for place, _ in min(runs, key=len)]
    values = np.array([[value for _, value in points] for points in zip(*runs, strict=False)], dtype=float)
    (line,) = axes.plot(x, values.mean(1), label=label, **style)
    if len(runs) > 1:
        axes.fill_between(x, values.min(1), values.max(1), color=line.get_color(), alpha=BAND, linewidth=0)
    return line


def name_lines(axes: Axes) -> None:
    """Write names at the right ends of the labelled lines, in their colours; for more than six, a legend beside them.

    Call it when the axes have their limits.
    """
    lines = [line for line in axes.get_lines() if not str(line.get_label()).startswith("_")]
    if len(lines) > NAMED:
        legend_outside(axes)
        return
    figure = axes.figure.canvas.figure
    figure.draw_without_rendering()  # the layout gives the axes their height
    tall = axes.get_window_extent().height
    gap = 1.25 * LETTERS * figure.dpi / 72 / tall
    to_axes = axes.transData + axes.transAxes.inverted()
    ends: list[list[float]] = [
        max(to_axes.transform(line.get_xydata()).tolist()) for line in lines
    ]  # the rightmost, on any scale
    order = sorted(range(len(lines)), key=lambda number: ends[number][1])
    places: list[float] = []
    for number in order:
        places.append(max(ends[number][1], places[-1] + gap if places else 0.0))
    for place in range(len(places))[::-1]:  # down again, from the top of the axes
        above = places[place + 1] - gap if place + 1 < len(places) else 1.0
        places[place] = min(places[place], above)
    for number, height in zip(order, places, strict=True):
        colour, (x, y) = lines[number].get_color(), ends[number]
        leader = {"arrowstyle": "-", "color": colour, "linewidth": 0.7, "relpos": (0, 0.5), "shrinkA": 1, "shrinkB": 2}
        axes.annotate(
            str(lines[number].get_label()),
            (x, min(max(y, 0.0), 1.0)),
            (1.06, height),
            xycoords="axes fraction",
            textcoords="axes fraction",
            color=colour,
            va="center",
            fontsize=LETTERS,
            arrowprops=leader,
            annotation_clip=False,
        )


def legend_outside(axes: Axes, *handles: Any, below: bool = False) -> None:
    """Draw a legend at the right of the axes or below their label: for many lines, or for anything but lines.

    ``handles`` are as for ``Axes.legend``.
    """
    if below:
        under = axes.transAxes + ScaledTranslation(0, -3.6 * LETTERS / 72, axes.figure.dpi_scale_trans)
        axes.legend(*handles, loc="upper left", bbox_to_anchor=(0, 0), bbox_transform=under, borderpad=0, frameon=False)
    else:
        axes.legend(*handles, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)


def second_scale(axes: Axes) -> Axes:
    """New axes over ``axes``, with their vertical scale at the right."""
    twin = axes.twinx()
    twin.grid(visible=False)
    twin.spines.right.set_visible(True)
    return twin
