"""Figures of relation alignment: which word meets which region, maps that should agree, and ISD with its controls."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize, to_rgb
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike
from torch import Tensor

from fairseq_ext.training.errors import DataError
from fairseq_ext.training.files import read_json
from fairseq_ext.training.plotting import GREY, LETTERS, PALETTE, saved_figure, second_scale

__all__ = ["distinct_names", "draw_alignment", "draw_history", "draw_self_attention", "read_history"]

CROWDED = 12
"""With more columns than this, cells show no numbers, and boxes show a number in place of a name."""
WIDEST = 9.0
"""Most inches of a map's side, at 130 pixels each, so that a hundred regions make no figure of gigabytes."""
LONGEST = 16
"""Most letters of a label."""
CONTROLS = ("isd_mismatched", "map_entropy")
"""Measures that histories of newer versions hold beside ISD."""
FLATNESS = "entropy of the maps (1: flat, relations of nothing)"


def _array(values: Tensor | ArrayLike) -> np.ndarray:
    return np.asarray(values.detach().cpu().double() if isinstance(values, Tensor) else values, dtype=float)


def _literal(text: str) -> str:
    """The text with dollar signs escaped: matplotlib would take what stands between two of them for a formula."""
    return text.replace("$", r"\$")


def _label(text: str) -> str:
    return _literal(text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…")


def _inches(count: int, each: float, least: float) -> float:
    """The length of a map's side with ``count`` rows or columns of ``each`` inches, and with its labels."""
    return float(np.clip(each * count + 2, least, WIDEST))


def _points(count: int, side: float) -> float:
    """The size of letters with which the labels of ``count`` rows do not overlap."""
    return float(np.clip(72 * (side - 1.6) / count / 1.2, 2.5, LETTERS))


def _colors(count: int) -> list[tuple[float, float, float]]:
    """A colour for each region, strong enough for text on white."""
    palette = [to_rgb(color) for color in PALETTE]
    return [palette[number % len(palette)] for number in range(count)]


def distinct_names(names: Sequence[str]) -> list[str]:
    """Names that differ: person 1, person 2, dog; or, where there are many, 1 person, 2 person, 3 dog."""
    if len(names) > CROWDED:
        return [f"{number} {name}" for number, name in enumerate(names, 1)]
    seen: dict[str, int] = {}
    distinct = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        distinct.append(f"{name} {seen[name]}" if list(names).count(name) > 1 else name)
    return distinct


def _heat_map(
    axes: Axes,
    values: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    scale: Normalize,
    sides: tuple[float, float],
) -> AxesImage:
    """Draw a map, with numbers in its cells if there are few; ``sides`` are its width and height in inches."""
    image = axes.imshow(values, cmap="Blues", norm=scale, aspect="auto")
    axes.grid(visible=False)
    wide, high_points = (_points(count, side) for count, side in zip((len(columns), len(rows)), sides, strict=True))
    turned = 90 if len(columns) > 4 else 45
    axes.set_xticks(range(len(columns)), map(_label, columns), rotation=turned, fontsize=wide)
    axes.set_yticks(range(len(rows)), map(_label, rows), fontsize=high_points)
    for i, j in np.ndindex(values.shape) if max(values.shape) <= CROWDED else ():
        color = "white" if scale(values[i, j]) > 0.6 else "0.2"
        axes.text(j, i, f"{values[i, j]:.2f}", ha="center", va="center", fontsize=LETTERS, color=color)
    return image


def _boxes(axes: Axes, size: tuple[float, float], boxes: np.ndarray, names: Sequence[str]) -> None:
    """Draw regions as labelled boxes on an empty canvas of the image's size, the largest first: none is hidden."""
    width, height = size
    colors = _colors(len(names))
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    for number in np.argsort(-area):
        x1, y1, x2, y2 = boxes[number]
        color, crowded = colors[number], len(names) > CROWDED
        axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, facecolor=(*color, 0.08), edgecolor=color, linewidth=1.6))
        inside = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 1}
        label = str(number + 1) if crowded else _label(names[number])
        at_edge = not crowded and x1 > 0.85 * width  # a label to the right of x1 would leave the image
        axes.text(
            x2 - 0.006 * width if at_edge else min(x1 + 0.006 * width, 0.97 * width),
            min(y1 + 0.01 * height, 0.95 * height),
            label,
            ha="right" if at_edge else "left",
            va="top",
            fontsize=8 if crowded else LETTERS,
            color=color,
            bbox=inside,
        )
    axes.set(xlim=(0, width), ylim=(height, 0), aspect="equal", xticks=[], yticks=[])
    axes.set_title(f"regions in the image ({width:g} x {height:g})")


def draw_alignment(
    words: Sequence[str],
    region_names: Sequence[str],
    lv: Tensor | ArrayLike,
    path: str | Path,
    *,
    size: tuple[float, float] | None = None,
    boxes: Tensor | ArrayLike | None = None,
    title: str = "",
) -> None:
    """Draw the word-to-region map S_LV of one pair, and beside it the regions as labelled boxes.

    Args:
        words: the n_L word pieces.
        region_names: names of the n_V regions; equal names are numbered.
        lv: attention from words to regions, ``(n_L, n_V)``.
        path: the figure; its suffix tells the format.
        size: width and height of the image in pixels. Default: None, no boxes are drawn.
        boxes: x1, y1, x2, y2 of each region in pixels, ``(n_V, 4)``. Default: None, no boxes are drawn.
        title: text above both, such as the caption. Default: none.
    """
    names, values = distinct_names(region_names), _array(lv)
    high = _inches(len(words), 0.3, 4.5)
    wide = _inches(len(names), 0.25 if len(names) > CROWDED else 0.5, 5)
    beside = float(np.clip(0.85 * high * size[0] / size[1], 4, WIDEST)) if size and boxes is not None else 0.0
    with saved_figure(path, (wide + beside, high), title) as figure:
        if size is None or boxes is None:
            left = figure.subplots()
        else:
            left, right = figure.subplots(1, 2, gridspec_kw={"width_ratios": [wide, beside]})
            _boxes(right, size, _array(boxes), names)
        image = _heat_map(left, values, words, names, Normalize(values.min(), values.max() + 1e-9), (wide, high))
        figure.colorbar(image, ax=left, shrink=0.8, pad=0.02)
        left.set_title("attention from words to regions")
        for label, color in zip(left.get_xticklabels(), _colors(len(names)), strict=True):
            label.set_color(color)


def draw_self_attention(
    before: tuple[Tensor | ArrayLike, Tensor | ArrayLike],
    after: tuple[Tensor | ArrayLike, Tensor | ArrayLike],
    names: Sequence[str],
    path: str | Path,
    *,
    labels: tuple[str, str] = ("before training", "after training"),
    title: str = "",
) -> None:
    """Draw a self-attention map above its mirror in the other modality, for two models side by side.

    Args:
        before: the map and its mirror, such as S_LL and P_LL of
            :func:`~vision_language.iais.alignment.mirrored_maps`, ``(n, n)`` each.
        after: the same pair of maps by another model.
        names: the n words, or the n regions with names that :func:`distinct_names` made different.
        path: the figure; its suffix tells the format.
        labels: names of the two models. Default: before and after training.
        title: text above all, such as the caption. Default: none.

    All four maps have one colour scale, so that they can be compared: a mirror that went through two softmaxes has
    hardly more than one colour. The scale is logarithmic; it begins at a hundredth of the attention that each of the n
    would get if all got the same, or at the smallest value where that is larger.
    """
    side = _inches(len(names), 0.34, 3.6)
    with saved_figure(path, (2 * side + 1, 2 * side), title) as figure:
        grid = figure.subplots(2, 2)
        every = np.concatenate([_array(values).ravel() for values in (*before, *after)])
        least = 0.01 / len(names)
        scale = LogNorm(max(float(every.min()), least), max(float(every.max()), 2 * least), clip=True)
        for column, (label, maps) in enumerate(zip(labels, (before, after), strict=True)):
            for row, (kind, values) in enumerate(zip(("self-attention", "mirror"), maps, strict=True)):
                axes = grid[row, column]
                image = _heat_map(axes, _array(values), names, names, scale, (side, side))
                axes.set_title(f"{kind}, {label}")
        ticks = np.geomspace(float(scale.vmin or 0), float(scale.vmax or 0), 7).tolist()
        figure.colorbar(image, ax=grid, shrink=0.6, pad=0.02, ticks=ticks, format="%.2g").minorticks_off()


def read_history(path: Path, run: str) -> list[dict[str, Any]]:
    """The validations of a finished run, for :func:`draw_history`.

    Args:
        path: the experiment's ``results.json``.
        run: name of the run.

    Returns:
        A record for each validation; an empty list where the file does not have this run.

    Raises:
        DataError: the file does not hold the results of a training.
    """
    try:
        runs = read_json(path)["runs"]
        if run not in runs:
            return []
        history = runs[run]["history"]
        if not history or not all(
            math.isfinite(record[key])
            for record in history
            for key in ("step", "isd", "rsum", *(name for name in CONTROLS if name in record))
        ):
            raise ValueError
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise DataError(f"{path}: not the results of a training ({type(error).__name__})") from error
    return history


def draw_history(history: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Draw recall over training, ISD with its controls over training, and recall against ISD.

    ISD also falls if all maps become flat. The controls show this: the entropy of the maps then rises to 1, and the ISD
    of captions with other images falls too.

    Args:
        history: a record for each validation, with ``step``, ``isd`` and ``rsum``, and with ``isd_mismatched`` and
            ``map_entropy`` where they were measured.
        path: the figure; its suffix tells the format.
    """
    step, isd, recall = (_column(history, key) for key in ("step", "isd", "rsum"))
    label = "sum of recalls"
    with saved_figure(path, (11.5, 4.4), "IAIS: recall and the distance of relations over the training") as figure:
        left, middle, right = figure.subplots(1, 3)
        left.plot(step, recall, "o-", color=PALETTE[0])
        left.set(xlabel="optimiser step", ylabel=label, title="Recall over training")
        middle.plot(step, isd, "s-", color=PALETTE[1], label="ISD of captions and their images")
        if all("isd_mismatched" in record for record in history):
            control = _column(history, "isd_mismatched")
            middle.plot(step, control, "s--", color=PALETTE[1], label="ISD with other images (control)")
        middle.set(xlabel="optimiser step", ylabel="ISD", title="Distance of relations, and\nwhat may cause it")
        middle.set_ylim(bottom=0)
        lines = middle.get_lines()
        if all("map_entropy" in record for record in history):
            twin = second_scale(middle)
            lines += twin.plot(step, _column(history, "map_entropy"), "^:", color=GREY, label=FLATNESS)
            twin.set(ylabel="entropy of the maps", ylim=(0, 1.02))
        figure.legend(handles=lines, loc="outside lower center", ncols=3)
        for axes in (left, middle):
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        right.plot(isd, recall, color="0.8", linewidth=1, zorder=0)
        points = right.scatter(isd, recall, c=step, cmap="viridis", s=28)
        right.set(xlabel="ISD", ylabel=label, title="One against the other")
        figure.colorbar(points, ax=right, label="optimiser step")


def _column(history: Sequence[Mapping[str, Any]], key: str) -> np.ndarray:
    return np.array([float(record[key]) for record in history])
