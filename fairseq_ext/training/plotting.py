"""The style of all pictures, and the few forms that they are made of.

A picture has a white ground, letters that can be read at half its size, and colours that the colour-blind can tell
apart. A method has the same colour everywhere, and what it is compared with is grey. Means are lines or points, their
spread a band or a bar, and a point without spread is hollow. Up to six lines carry their names at their ends.
"""

from __future__ import annotations

import logging
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.rcsetup import cycler
from matplotlib.transforms import ScaledTranslation
from PIL import Image

from fairseq_ext.fonts import fonts_for
from fairseq_ext.training.files import replacing

__all__ = [
    *("GREY", "LETTERS", "PALETTE", "STYLE", "Effect", "categories", "colour_of", "forest", "legend_outside"),
    *("limits_after_first", "mean_and_range", "name_lines", "picture", "second_scale", "small_multiples"),
]

BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
BLACK = "#000000"
GREY = "#555555"
PALETTE = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK, GREY)
"""Colours of what is no method, in this order: Okabe and Ito, "Color Universal Design", without its light yellow."""

METHODS = {
    **dict.fromkeys(("top-k", "sparsemax", "ReNode"), BLUE),
    **dict.fromkeys(("AdaNorm", "LayerNorm-simple", "DRW", "label graph", "+ label graph"), GREEN),
    **dict.fromkeys(("MUSE", "Transformer, km", "MUKA", "+ IAIS"), ORANGE),
    **dict.fromkeys(("GCA", "MUKI", "+ soft training"), PURPLE),
    **dict.fromkeys(("encouraging", "class-weighted bonus", "aggressive"), VERMILION),
    **dict.fromkeys(("all combined", "top-k 4, AdaNorm", "DRW + bonus"), SKY),
}
"""The colour of a method, by what the names of its arms begin with; the longest fitting beginning counts."""

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


def colour_of(arm: str, default: str = GREY) -> str:
    """The colour of the method that an arm belongs to; ``default`` of one that is no method, as a baseline.

    Example:
        >>> colour_of("GCA, gate") == colour_of("GCA, mean"), colour_of("Transformer") == GREY
        (True, True)
    """
    fitting = [start for start in METHODS if arm.startswith(start)]
    return METHODS[max(fitting, key=len)] if fitting else default


def categories(count: int) -> list[Any]:
    """A colour for each of ``count`` classes; those of more than the palette has follow a rainbow."""
    if count <= len(PALETTE):
        return list(PALETTE[:count])
    return list(matplotlib.colormaps["gist_ncar"](np.linspace(0.03, 0.93, count)))


@contextmanager
def picture(path: str | Path, size: tuple[float, float], title: str = "") -> Iterator[Figure]:
    """A figure in the common style, which is written to ``path`` at the end, unless the block fails or leaves it empty.

    Args:
        path: its suffix tells the format; without one it is PNG.
        size: inches across and down. No more than 9.5 across can be read at half size.
        title: what the picture shows, and of which data; a ``$`` is a character.

    Example:
        >>> with picture("losses.png", (6, 4), "Validation loss") as figure:
        ...     _ = figure.subplots().plot([3, 2, 1])
    """
    # A program that opened the root logger for debugging, as importing fairseq does, asked for no list of all fonts.
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
    """The mean of runs as a line and, of several, their range as a band.

    Args:
        axes: to draw on.
        runs: points (x, y) of each, at the same places; a shorter run ends the line.
        label: its name.
        style: as of ``Axes.plot``.
    """
    x = [place for place, _ in min(runs, key=len)]
    values = np.array([[value for _, value in points] for points in zip(*runs, strict=False)], dtype=float)
    (line,) = axes.plot(x, values.mean(1), label=label, **style)
    if len(runs) > 1:
        axes.fill_between(x, values.min(1), values.max(1), color=line.get_color(), alpha=BAND, linewidth=0)
    return line


def name_lines(axes: Axes) -> None:
    """Names at the right ends of the labelled lines, in their colours; of more than six a legend beside the axes.

    It is called when the axes have their limits.
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
    """The legend of what is no line, or of many lines, at the right of the axes or below their label.

    ``handles`` are as of ``Axes.legend``.
    """
    if below:
        under = axes.transAxes + ScaledTranslation(0, -3.6 * LETTERS / 72, axes.figure.dpi_scale_trans)
        axes.legend(*handles, loc="upper left", bbox_to_anchor=(0, 0), bbox_transform=under, borderpad=0, frameon=False)
    else:
        axes.legend(*handles, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)


def second_scale(axes: Axes) -> Axes:
    """Axes over ``axes`` whose upright scale is at the right."""
    twin = axes.twinx()
    twin.grid(visible=False)
    twin.spines.right.set_visible(True)
    return twin


class Effect(NamedTuple):
    """A mean difference with its interval; what has one value has none."""

    label: str
    mean: float
    low: float | None = None
    high: float | None = None


def forest(
    axes: Axes, effects: Sequence[Effect], colour: str | None = None, limits: tuple[float, float] | None = None
) -> None:
    """Differences with their intervals, a row each from the top, beside the line of no difference.

    Args:
        axes: to draw on.
        effects: the rows. Without an interval a point is hollow.
        colour: of all rows. Default: that of the method that the row's label names.
        limits: of the axis. What lies outside is an arrow at the edge with its number. Default: all is inside.
    """
    axes.axvline(0, color=GREY, linewidth=1)
    for row, effect in enumerate(effects):
        own = colour or colour_of(effect.label)
        if effect.low is not None and effect.high is not None:
            axes.plot([effect.low, effect.high], [row, row], color=own, linewidth=2.2, solid_capstyle="butt")
        beyond = limits and (effect.mean < limits[0]) - (effect.mean > limits[1])
        if limits and beyond:
            edge = limits[0] if beyond > 0 else limits[1]
            axes.plot(edge, row, "<" if beyond > 0 else ">", color=own, markersize=8, clip_on=False)
            at: dict[str, Any] = {"xytext": (8 * beyond, 0), "ha": "left" if beyond > 0 else "right"}
            axes.annotate(
                f"{effect.mean:+.1f}", (edge, row), textcoords="offset points", va="center", fontsize=10, **at
            )
        else:
            face = own if effect.low is not None else "white"
            axes.plot(effect.mean, row, "o", color=own, markerfacecolor=face, markersize=6.5, markeredgewidth=1.6)
    axes.set_yticks(range(len(effects)), [effect.label for effect in effects])
    axes.set_ylim(len(effects) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    if limits:
        axes.set_xlim(*limits)


def small_multiples(
    figure: Figure | SubFigure,
    curves: Mapping[str, Sequence[Run]],
    baseline: str,
    columns: int = 4,
    limits: tuple[float, float] | None = None,
    **style: Any,
) -> dict[str, Axes]:
    """A panel for each system, beside the baseline in grey; all on the same scales.

    Args:
        figure: to draw on, or a part of it.
        curves: the runs of each system.
        baseline: the system that every panel shows. It has a panel of its own only where it is the only one.
        columns: panels of a row.
        limits: of the upright axes, see :func:`limits_after_first`.
        style: as of ``Axes.plot``.

    Returns:
        The panel of each system.
    """
    systems = [name for name in curves if name != baseline] or list(curves)
    columns = min(columns, len(systems))
    rows = -(-len(systems) // columns)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    letters = int(9 * figure.bbox.width / figure.canvas.figure.dpi / columns)
    for place, axes in enumerate(grid):
        if place >= len(systems):
            axes.set_visible(False)
            continue
        name = systems[place]
        colour = colour_of(name, BLUE)
        if baseline in curves:
            mean_and_range(axes, curves[baseline], color=GREY, **style)
        if name != baseline:
            mean_and_range(axes, curves[name], color=colour, **style)
        axes.set_title(textwrap.fill(name, letters), color=colour, fontweight="bold", loc="left", parse_math=False)
        axes.xaxis.set_tick_params(labelbottom=place + columns >= len(systems))
    if limits:
        grid[0].set_ylim(*limits)
    return dict(zip(systems, grid, strict=False))


def limits_after_first(curves: Mapping[str, Sequence[Run]]) -> tuple[float, float]:
    """Limits of an axis for learning curves from their second points on.

    The first is so far from the others that with it on the axis all curves are one.
    """
    values = [value for runs in curves.values() for run in runs for _, value in run[min(1, len(run) - 1) :]]
    margin = 0.08 * (max(values) - min(values)) + 1e-3
    return min(values) - margin, max(values) + margin
