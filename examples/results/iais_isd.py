"""How ISD and recall go together: over the validations of a training, and over trainings."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import LogLocator, NullFormatter
from scipy import stats

from examples.plotting import colour_of
from examples.results.paired import LEVEL, Paired
from fairseq_ext.training.plotting import saved_figure

__all__ = ["draw_relation", "over_runs", "over_training", "reading", "sum_of_recalls", "trained"]

RECALLS = ("ir_r1", "ir_r5", "ir_r10", "tr_r1", "tr_r5", "tr_r10")
LEAST = 5
"""Points that a correlation needs."""

Run = Mapping[str, Any]
Row = Mapping[str, Any]


def sum_of_recalls(run: Run) -> float:
    """In points."""
    return 100 * sum(run[metric] for metric in RECALLS)


def over_training(row: Row) -> list[float]:
    """Of each training with enough validations the rank correlation of ISD and sum of recalls over these."""
    histories = [run.get("history", ()) for run in row["runs"].values()]
    curves = [[(point["isd"], point["rsum"]) for point in history] for history in histories if len(history) >= LEAST]
    return [_rank_correlation(curve) for curve in curves]


def over_runs(rows: Sequence[Row]) -> Paired | None:
    r"""The rank correlation of the trained models on the test split within their arms, with an interval; None of few.

    Arms differ in ISD as they train on it, and in recall for other reasons, so each has ranks of its own, about their
    mean. The interval is by Fisher's transformation, with the standard error :math:`1.06 / \sqrt{n - 3}` of ranks
    (Fieller, Hartley and Pearson, Tests for Rank Correlation Coefficients, 1957), where each arm but one takes a model
    from :math:`n`.
    """
    arms = [[(run["isd"], sum_of_recalls(run)) for run in row["runs"].values() if "isd" in run] for row in rows]
    arms = [points for points in arms if len(points) > 1]
    count = sum(map(len, arms))
    if count < LEAST or count - len(arms) < 3:
        return None
    correlation = _within(arms)
    place = math.atanh(max(-0.999, min(0.999, correlation)))
    error = 1.06 / math.sqrt(count - len(arms) - 2)
    half = float(stats.norm.ppf(1 - LEVEL / 2)) * error
    p = 2 * float(stats.norm.sf(abs(place) / error))
    return Paired(correlation, math.tanh(place - half), math.tanh(place + half), count, p)


def _within(arms: Sequence[Sequence[tuple[float, float]]]) -> float:
    """The rank correlation over all arms."""
    ranks = np.concatenate([stats.rankdata(points, axis=0) - (len(points) + 1) / 2 for points in arms])
    size = np.sqrt((ranks**2).sum(axis=0).prod())
    return float(ranks.prod(axis=1).sum() / size) if size else 0.0


def _rank_correlation(points: Sequence[tuple[float, float]]) -> float:
    """Spearman's; 0 where one of the two never changes."""
    isd, recall = zip(*points, strict=True)
    if len(set(isd)) < 2 or len(set(recall)) < 2:
        return 0.0
    return float(stats.spearmanr(isd, recall).statistic)


def trained(content: Mapping[str, Any]) -> list[Row]:
    """The rows with networks that validated often enough for a correlation."""
    return [row for row in content["rows"] if over_training(row)]


def reading(content: Mapping[str, Any]) -> str:
    """The correlations in words; empty where there is none."""
    rows = content["rows"]
    parts = [f"{row['system']}, {Paired.of(over_training(row)).text(2)}" for row in trained(content)]
    text = f"over the validations of a training, mean of the seeds: {'; '.join(parts)}" if parts else ""
    if whole := over_runs(rows):
        text += f"{'; ' if text else ''}of the {whole.pairs} trained models on the test split, within the arms: "
        text += whole.text(2)
    return f"Rank correlation of ISD and sum of recalls, {text}." if text else ""


def draw_relation(content: Mapping[str, Any], file: Path) -> None:
    """Sum of recalls by ISD: a panel for the validations of each arm's trainings, and one of the trained models.

    A line is a training, its last validation the large point.
    """
    rows = trained(content)
    title = f"IAIS on {content['dataset']}: recall by distance of the relations (ISD)"
    with saved_figure(file, (9.5, 3.6), title) as figure:
        *panels, last = figure.subplots(1, len(rows) + 1)
        for axes, row, marker in zip(panels, rows, "os^", strict=False):
            style = {"color": colour_of(row["system"]), "marker": marker}
            for run in row["runs"].values():
                isd, recall = zip(*[(point["isd"], 100 * point["rsum"]) for point in run["history"]], strict=True)
                axes.plot(isd, recall, linewidth=1, markersize=3, **style)
                axes.plot(isd[-1:], recall[-1:], markersize=8, **style)
            axes.set_title(f"{row['system']}\nvalidation, ρ = {statistics.fmean(over_training(row)):+.2f}")
            tests = [(run["isd"], sum_of_recalls(run)) for run in row["runs"].values()]
            last.plot(*zip(*tests, strict=True), linestyle="", markersize=8, **style)
        whole = over_runs(rows)
        last.set_title("trained models\ntest" + (f", ρ = {whole.mean:+.2f}" if whole else ""))
        for axes in (*panels, last):
            axes.set_xscale("log")
            low, high = axes.get_xlim()
            axes.xaxis.set_major_locator(LogLocator(subs=(1,) if high > 30 * low else (1, 2, 3, 5)))
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.set_xlabel("ISD")
        panels[0].set_ylabel("sum of six recalls (points)")
