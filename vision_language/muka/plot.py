"""Figures of the teachers' scores: do they choose the right teacher, and tell when it is right?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from fairseq_ext.training.plotting import PALETTE, legend_outside, saved_figure
from vision_language.calibration import reliability
from vision_language.muka.diagnostics import selected_right, specialty
from vision_language.muka.targets import LabelUnion

__all__ = ["draw_scores", "plot_confidence", "plot_reliability", "plot_selection", "score_range"]

INSIDE, OUTSIDE = PALETTE[:2]


def plot_selection(scores: Tensor, labels: Tensor, union: LabelUnion, axes: Axes, groups: int = 10) -> None:
    """Selection accuracy by the margin between the two best scores, in groups of equally many examples.

    The margin is what margin re-weighting trusts: accuracy should rise with it.

    Args:
        scores: ``(B, T)``, two teachers or more.
        labels: gold classes as numbers of the union, ``(B)``.
        union: the classes of the teachers.
        axes: to draw on.
        groups: at most.
    """
    first, second = scores.detach().cpu().double().topk(2, dim=-1).values.unbind(-1)
    margin, right = (first - second).numpy(), selected_right(scores, labels, union).cpu().numpy()
    # Fewer groups where there are few examples: a share of less than 20 is noise.
    parts = np.array_split(margin.argsort(kind="stable"), max(1, min(groups, len(margin) // 20)))
    accuracy = np.array([right[part].mean() for part in parts])
    error = np.sqrt(accuracy * (1 - accuracy) / [len(part) for part in parts])
    chance, overall = float(specialty(labels, union).double().mean()), float(right.mean())
    axes.axhline(chance, color="0.5", linestyle=":", label=f"a teacher at random: {chance:.2f}")
    axes.axhline(overall, color=PALETTE[2], linestyle="--", label=f"all examples: {overall:.2f}")
    share = f"{len(parts)} groups by margin (± std. error)"
    axes.errorbar(
        [margin[part].mean() for part in parts], accuracy, error, fmt="o-", color=INSIDE, elinewidth=2.2, label=share
    )
    axes.set(xlabel="margin between the two best scores", ylabel="selection accuracy", ylim=(-0.02, 1.04))
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_title("Does the best-scored teacher\nknow the class?")
    legend_outside(axes, below=True)


def score_range(scores: Tensor) -> tuple[float, float]:
    """The range of an axis of scores: 0 to 1, but the variance and the mutual information give scores of 0 at most."""
    least = float(scores.min())
    return (0.0, 1.0) if least > -1e-6 else (least, 0.0)  # not by rounding alone


def plot_confidence(
    scores: Tensor, inside: Tensor, axes: Axes, title: str, bins: int = 20, limits: tuple[float, float] | None = None
) -> None:
    """Histograms of one teacher's score on examples of its classes (``inside``) and on the others; each sums to 1.

    Args:
        limits: of the scores, equal for teachers that are compared. Default: :func:`score_range`.
    """
    values, rows = scores.detach().cpu().double().numpy(), inside.cpu().numpy()
    edges = np.linspace(*(limits or score_range(scores)), bins + 1).tolist()
    for part, colour, name in ((rows, INSIDE, "its classes"), (~rows, OUTSIDE, "other classes")):
        if part.any():
            weights = np.full(part.sum(), 1 / part.sum())
            label = f"{name} (median {np.median(values[part]):.2g})"
            axes.hist(
                values[part].clip(edges[0], edges[-1]), edges, weights=weights, color=colour, alpha=0.55, label=label
            )
    axes.set(xlabel="score", ylabel="share of examples", title=title, xlim=(edges[0], edges[-1]))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    legend_outside(axes, below=True)


def plot_reliability(
    scores: Tensor, right: Tensor, axes: Axes, title: str, limits: tuple[float, float] | None = None
) -> None:
    """Reliability diagram: how often a teacher is right by its score.

    A score that is a probability is on the diagonal. One that is below 0, as of the variance and the mutual
    information, is none, and has neither a diagonal nor a calibration error.

    Args:
        scores: ``(B)``.
        right: whether the teacher was right, ``(B)``.
        axes: to draw on.
        title: of the diagram.
        limits: of the scores, equal for teachers that are compared. Default: :func:`score_range`.
    """
    low, high = limits or score_range(scores)
    table = reliability((scores - low) / (high - low), right)
    edges = low + (high - low) * table.edges
    middle, width = (edges[:-1] + edges[1:]) / 2, np.diff(edges)
    filled = table.examples > 0
    probability = low == 0
    error = f", calibration error {table.calibration_error:.2f}" if probability else ""
    axes.bar(middle[filled], table.accuracy[filled], 0.94 * width[filled], color=INSIDE, alpha=0.55)
    if probability:
        axes.plot([0, 1], [0, 1], color="0.5", linestyle="--")
    for place, height, count in zip(middle[filled], table.accuracy[filled], table.examples[filled], strict=True):
        axes.annotate(str(count), (place, height), (0, 2), textcoords="offset points", ha="center")
    axes.set(xlabel="score", ylabel="accuracy", xlim=(low, high), ylim=(0, 1.12))
    axes.set_title(f"{title}\ncounts{error}")
    axes.set_yticks(np.linspace(0, 1, 6))
    axes.xaxis.set_major_locator(MaxNLocator(5))


def draw_scores(
    scores: Tensor,
    right: Tensor,
    labels: Tensor,
    union: LabelUnion,
    path: str | Path,
    names: Sequence[str] | None = None,
) -> None:
    """One figure: :func:`plot_selection`; :func:`plot_confidence` and :func:`plot_reliability` of each teacher.

    A row for each teacher; beside them the selection, by its margin and by the score of the teacher that is selected.

    Args:
        scores: ``(B, T)``, two teachers or more.
        right: whether each teacher is right, ``(B, T)``, see
            :func:`~vision_language.muka.diagnostics.teachers_right`.
        labels: gold classes as numbers of the union, ``(B)``.
        union: the classes of the teachers.
        path: of the figure; its ending gives the format.
        names: of the teachers. Default: their numbers.
    """
    path, teachers = Path(path), scores.size(-1)
    inside = specialty(labels, union)
    names = names or [f"teacher {teacher}" for teacher in range(teachers)]
    with saved_figure(path, (10.8, 3.8 * teachers), "Scores of the teachers") as figure:
        grid = figure.subplots(teachers, 3)
        plot_selection(scores, labels, union, grid[0, 0])
        best, chosen = scores.max(-1, keepdim=True)
        limits = score_range(scores)
        plot_reliability(
            best[:, 0], right.gather(1, chosen)[:, 0], grid[1, 0], "The best-scored teacher is right", limits
        )
        for axes in grid[2:, 0]:
            axes.set_axis_off()
        for teacher, (name, (histogram, diagram)) in enumerate(zip(names, grid[:, 1:], strict=True)):
            heading = f"{name}: {len(union.index[teacher])} of {len(union)} classes"
            plot_confidence(scores[:, teacher], inside[:, teacher], histogram, heading, limits=limits)
            plot_reliability(scores[:, teacher], right[:, teacher], diagram, f"{name} is right", limits)
        highest = max(axes.get_ylim()[1] for axes in grid[:, 1])
        for axes in grid[:, 1]:
            axes.set_ylim(0, highest)
