"""What ReNode gains: paired by run and by split, drawn, and set against the Totoro of the split."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from examples.plotting import Effect, forest
from examples.results.paired import Paired
from fairseq_ext.training.plotting import PALETTE, saved_figure

__all__ = [
    "BACKBONES",
    "Relation",
    "different",
    "draw_gains",
    "draw_relation",
    "gain_by_split",
    "of_the_paper",
    "paired",
    "pairs",
    "relation",
    "split_of",
    "title",
]

Row = dict[str, Any]
BACKBONES = ("gcn", "gat", "sage", "sgc", "cheb", "ppnp")
"""Of the released code."""
TWO_RECIPES = ("Computers", "Photo", "debian_deps")
"""Data sets that the released recipe ends before they are learned."""
KINDS = ("balanced", "step 5", "step 10")
METRIC = "weighted_f1"


def pairs(row: Row, score: str) -> tuple[list[float], list[float], list[float]]:
    """A score (x 100) without ReNode, with it, and what it gains, of every split and initialisation."""
    names = [name for name in row["off"] if name in row["on"]]
    off, on = ([100 * row[side][name][score] for name in names] for side in ("off", "on"))
    return off, on, [b - a for a, b in zip(off, on, strict=True)]


def split_of(run: str) -> str:
    """The split of a run, which is named after its split and its initial weights."""
    return run.split("-")[0]


def gain_by_split(row: Row, score: str) -> dict[str, float]:
    """The mean gain of each split: its initial weights share the nodes and are no independent pairs."""
    by_split: dict[str, list[float]] = {}
    names = [name for name in row["off"] if name in row["on"]]
    for name, gain in zip(names, pairs(row, score)[2], strict=True):
        by_split.setdefault(split_of(name), []).append(gain)
    return {split: statistics.fmean(gains) for split, gains in by_split.items()}


def paired(row: Row, score: str) -> Paired:
    """The gain with one pair a split."""
    return Paired.of([*gain_by_split(row, score).values()])


def of_the_paper(rows: Sequence[Row]) -> list[Row]:
    """The different rows whose backbone the released code has: APPNP, the iterative form of its PPNP, is ours."""
    return [row for row in different(rows) if row["model"] in BACKBONES]


def different(rows: Sequence[Row]) -> list[Row]:
    """The rows without those that repeat others: with equal classes re-weight and logit-adjusted are ce."""
    same = ("re-weight", "logit-adjusted")
    return [row for row in rows if row["split"] != "balanced" or row["loss"] not in same]


def title(content: dict[str, Any]) -> str:
    """Its data set; and its recipe, of data sets that have two."""
    dataset = content["rows"][0]["dataset"]
    if content["recipe"] != "released":
        return f"{dataset}, {content['recipe']} rate"
    return f"{dataset}, as released" if dataset in TWO_RECIPES else dataset


def draw_gains(content: dict[str, Any], file: Path) -> None:
    """The difference of each backbone and loss, a panel for each kind of split."""
    arms = list(dict.fromkeys((row["model"], row["loss"]) for row in content["rows"]))
    kinds = [kind for kind in KINDS if any(row["split"] == kind for row in content["rows"])]
    cells = {(row["model"], row["loss"], row["split"]): row for row in content["rows"]}
    with saved_figure(
        file, (9, 1.4 + 0.24 * len(arms)), f"ReNode on {title(content)}: weighted F1 (x 100), on minus off"
    ) as figure:
        panels = figure.subplots(1, len(kinds), sharex=True, sharey=True, squeeze=False)[0]
        for axes, kind in zip(panels, kinds, strict=True):
            effects = [
                Effect(f"{model}, {loss}", *paired(cells[model, loss, kind], METRIC)[:3])
                for model, loss in arms
                if (model, loss, kind) in cells
            ]
            forest(axes, effects, colour=PALETTE[0])
            axes.set_title(kind)
        figure.supxlabel("points of F1: mean over the splits, 95 % interval")


class Relation(NamedTuple):
    """Totoro and gain of each split, and how they go together."""

    totoro: list[float]
    gain: list[float]
    kinds: list[str]
    runs: int
    """Pairs of runs."""

    @property
    def spearman(self) -> tuple[float, float]:
        """The rank correlation over all splits and its p value."""
        test = stats.spearmanr(self.totoro, self.gain)
        return float(test.statistic), float(test.pvalue)

    @property
    def within(self) -> tuple[float, float]:
        """The correlation within each kind of split, by a permutation test within the kinds.

        Kinds differ in Totoro and in gain for many reasons, which the correlation over all splits takes for one.
        """
        places = [np.flatnonzero(np.array(self.kinds) == kind) for kind in dict.fromkeys(self.kinds)]

        def centred(values: Sequence[float]) -> np.ndarray:
            ranks = np.empty(len(values))
            for place in places:
                ranks[place] = stats.rankdata(np.array(values)[place]) - (len(place) + 1) / 2
            return ranks

        totoro, gain = centred(self.totoro), centred(self.gain)
        size = np.sqrt((totoro**2).sum() * (gain**2).sum())
        draw, shuffled = np.random.default_rng(0), np.empty((PERMUTATIONS, len(gain)))
        for place in places:
            shuffled[:, place] = draw.permuted(np.tile(gain[place], (PERMUTATIONS, 1)), axis=1)
        statistic = (totoro * gain).sum() / size
        beyond = (np.abs(shuffled @ totoro) / size >= abs(statistic) - 1e-12).sum()
        return float(statistic), float((beyond + 1) / (PERMUTATIONS + 1))


PERMUTATIONS = 9999


def relation(rows: Sequence[Row]) -> Relation:
    """Of each split its Totoro, and its gain as the mean over the released backbones, losses and initial weights."""
    gains: dict[tuple[str, str], list[float]] = {}
    totoro: dict[tuple[str, str], float] = {}
    for row in of_the_paper(rows):
        for split, gain in gain_by_split(row, METRIC).items():
            gains.setdefault((row["split"], split), []).append(gain)
        for name, run in row["on"].items():
            totoro[row["split"], split_of(name)] = run["totoro"]
    count = sum(len(pairs(row, METRIC)[2]) for row in of_the_paper(rows))
    means = {place: statistics.fmean(values) for place, values in gains.items()}
    return Relation([totoro[place] for place in means], [*means.values()], [kind for kind, _ in means], count)


def draw_relation(contents: Sequence[dict[str, Any]], file: Path) -> None:
    """The gain of each split over its Totoro, a panel for each data set and recipe."""
    columns = min(3, len(contents))
    lines = -(-len(contents) // columns)
    with saved_figure(file, (9, 0.9 + 2.7 * lines), "Does ReNode gain more where Totoro says more conflict?") as figure:
        grid = figure.subplots(lines, columns, squeeze=False).ravel()
        for axes, content in zip(grid, contents, strict=False):
            own = relation(content["rows"])
            for kind, colour, marker in zip(KINDS, PALETTE, "os^", strict=False):
                points = [(x, y) for x, y, of in zip(own.totoro, own.gain, own.kinds, strict=True) if of == kind]
                if points:
                    axes.plot(*zip(*points, strict=True), marker, color=colour, label=kind, markersize=6)
            axes.axhline(0, color="0.6", linewidth=1, zorder=0)
            rank, p_value = own.within
            axes.set_title(f"{title(content)}\n{len(own.gain)} splits: r = {rank:+.2f}, p = {p_value:.2g}")
        for axes in grid[len(contents) :]:
            axes.set_visible(False)
        handles, labels = grid[0].get_legend_handles_labels()
        figure.legend(handles, [f"{label} split" for label in labels], loc="outside lower center", ncols=len(labels))
        for axes in grid[
            max(0, len(contents) - columns) : len(contents)
        ]:  # a label of the figure would lie on the legend
            axes.set_xlabel("Totoro of the split")
        figure.supylabel("gain in weighted F1 (points)")
