"""The figures of results: a colour for each method, and the forms that compare methods with a baseline.

A method has the same colour everywhere, and what it is compared with is grey. A point without spread is hollow.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from fairseq_ext.training.plotting import GREY, PALETTE, Run, mean_and_range

__all__ = ["METHODS", "Effect", "colour_of", "forest", "limits_after_first", "small_multiples"]

BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, *_ = PALETTE

METHODS = {
    **dict.fromkeys(("top-k", "sparsemax", "ReNode"), BLUE),
    **dict.fromkeys(("AdaNorm", "LayerNorm-simple", "DRW", "label graph", "+ label graph"), GREEN),
    **dict.fromkeys(("MUSE", "Transformer, km", "MUKA", "+ IAIS"), ORANGE),
    **dict.fromkeys(("GCA", "MUKI", "+ soft training"), PURPLE),
    **dict.fromkeys(("encouraging", "class-weighted bonus", "aggressive"), VERMILION),
    **dict.fromkeys(("all combined", "top-k 4, AdaNorm", "DRW + bonus"), SKY),
}
"""The colour of each method, by the beginning of its arms' names; the longest beginning that fits counts."""


def colour_of(arm: str, default: str = GREY) -> str:
    """The colour of the method that an arm belongs to; ``default`` for an arm of no method, such as a baseline.

    Example:
        >>> colour_of("GCA, gate") == colour_of("GCA, mean"), colour_of("Transformer") == GREY
        (True, True)
    """
    fitting = [start for start in METHODS if arm.startswith(start)]
    return METHODS[max(fitting, key=len)] if fitting else default


class Effect(NamedTuple):
    """A mean difference with its interval; a difference of single values has no interval."""

    label: str
    mean: float
    low: float | None = None
    high: float | None = None


def forest(
    axes: Axes, effects: Sequence[Effect], colour: str | None = None, limits: tuple[float, float] | None = None
) -> None:
    """Draw differences with their intervals, one per row from the top, beside the line of no difference.

    Args:
        axes: to draw on.
        effects: the rows. Without an interval a point is hollow.
        colour: colour of all rows. Default: for each row the colour of the method that its label names.
        limits: limits of the axis. A value outside is drawn as an arrow at the edge with its number. Default: limits
            that hold all values.
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
    axes.locator_params(axis="x", nbins=6)
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

    Where a system has fewer or more runs than the baseline, the name of its panel says how many.

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
        runs, others = (len(curves.get(one, curves[name])) for one in (name, baseline))
        title = name if runs == others else f"{name}: {runs} runs beside {others}"
        axes.set_title(textwrap.fill(title, letters), color=colour, fontweight="bold", loc="left", parse_math=False)
        axes.xaxis.set_tick_params(labelbottom=place + columns >= len(systems))
    if limits:
        grid[0].set_ylim(*limits)
    return dict(zip(systems, grid, strict=False))


def limits_after_first(curves: Mapping[str, Sequence[Run]]) -> tuple[float, float]:
    """Limits of an axis for learning curves from their second points on.

    The first point is so far from the others that, with it on the axis, all curves would look like one.
    """
    values = [value for runs in curves.values() for run in runs for _, value in run[min(1, len(run) - 1) :]]
    margin = 0.08 * (max(values) - min(values)) + 1e-3
    return min(values) - margin, max(values) + margin
