"""Pictures of the teachers' scores: do they choose the right teacher, and tell what one knows from what it does not?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from fairseq_ext.files import replacing
from vision_language.muka.diagnostics import selected_right, specialty
from vision_language.muka.targets import LabelUnion

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_scores", "plot_confidence", "plot_selection"]

INSIDE, OUTSIDE = "tab:blue", "tab:orange"


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
    axes.axhline(overall, color="tab:green", linestyle="--", label=f"all examples: {overall:.2f}")
    share = f"by margin, {len(parts)} groups of about {len(parts[0])} (± std. error)"
    axes.errorbar(
        [margin[part].mean() for part in parts], accuracy, error, fmt="o-", color=INSIDE, capsize=2, label=share
    )
    axes.set(xlabel="margin between the two best scores", ylabel="selection accuracy", ylim=(-0.02, 1.04))
    axes.set_xlim(left=0)
    axes.set_title("Does the best-scored teacher know the class?")
    axes.legend(fontsize=8)


def plot_confidence(scores: Tensor, inside: Tensor, axes: Axes, title: str, bins: int = 20) -> None:
    """Histograms of one teacher's score on examples of its classes (``inside``) and on the others; each sums to 1."""
    values, known = scores.detach().cpu().double().numpy(), inside.cpu().numpy()
    # The variance and the mutual information give scores of 0 at most.
    low, high = (0.0, 1.0) if values.min() >= 0 else (float(values.min()), max(float(values.max()), 0.0))
    edges = np.linspace(low, high, bins + 1).tolist()
    for part, colour, name in ((known, INSIDE, "its classes"), (~known, OUTSIDE, "other classes")):
        if part.any():
            weights = np.full(part.sum(), 1 / part.sum())
            label = f"{name} (median {np.median(values[part]):.2f})"
            axes.hist(values[part], edges, weights=weights, color=colour, alpha=0.55, label=label)
    axes.set(xlabel="score", ylabel="share of examples", title=title, xlim=(edges[0], edges[-1]))
    axes.legend(fontsize=8)


def draw_scores(
    scores: Tensor,
    labels: Tensor,
    union: LabelUnion,
    path: str | Path,
    names: Sequence[str] | None = None,
    title: str = "Scores of the teachers",
) -> None:
    """One picture: :func:`plot_selection`, and :func:`plot_confidence` of each teacher.

    Args:
        scores: ``(B, T)``, two teachers or more.
        labels: gold classes as numbers of the union, ``(B)``.
        union: the classes of the teachers.
        path: of the picture; its ending gives the format.
        names: of the teachers. Default: their numbers.
        title: of the picture.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    path, teachers = Path(path), scores.size(-1)
    inside = specialty(labels, union)
    names = names or [f"teacher {teacher}" for teacher in range(teachers)]
    columns = min(teachers + 1, 3)
    rows = -(-(teachers + 1) // columns)
    figure, grid = plt.subplots(rows, columns, figsize=(4.6 * columns, 3.6 * rows), layout="constrained", squeeze=False)
    first, *others = grid.flat
    plot_selection(scores, labels, union, first)
    for teacher, axes in enumerate(others):
        if teacher < teachers:
            known = f"{names[teacher]}: {len(union.index[teacher])} of {len(union)} classes"
            plot_confidence(scores[:, teacher], inside[:, teacher], axes, known)
        else:
            axes.set_axis_off()
    figure.suptitle(title)
    with replacing(path) as partial:
        figure.savefig(partial, dpi=150, format=path.suffix[1:] or "png")
    plt.close(figure)
