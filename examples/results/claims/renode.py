"""ReNode, by weighted F1: its gain on each data set, and whether it grows with Totoro."""

from __future__ import annotations

from statistics import fmean, median, pstdev
from typing import Any

from examples.results.paired import Paired
from examples.results.renode import BACKBONES, RELATION_HEADING, heading, related
from examples.results.renode_gains import METRIC, different, gain_by_split, pairs, relation, split_of, title
from examples.results.renode_recipes import superseded
from examples.results.verdicts import Claim, Limit, unfinished

__all__ = ["claims"]

FLOORS = {"Computers": 80.0, "Photo": 90.0}
"""Weighted F1 (%) that a baseline which has learned reaches with balanced labels and cross-entropy."""
KINDS = ("balanced", "step")
"""What kinds of splits begin with: topology imbalance alone, and beside unequal classes."""
CUT = 0.1
"""Share of the trainings that the last epoch may end without a word."""
STEADY = 5.0
"""Points by which runs of a split may spread over their initial weights, if the networks have learned."""


def claims(contents: list[dict[str, Any]]) -> list[Claim]:
    """One a data set, by one recipe, and kind of split; and one of all data sets in which the baseline has learned."""
    late = superseded(contents)
    gains = [
        _gain(content, rows, kind)
        for content in contents
        if content not in late
        for kind in KINDS
        if (rows := [row for row in _of_the_paper(content) if row["split"].startswith(kind)])
    ]
    return [*gains, *([_more_with_totoro(those)] if (those := related(contents)) else [])]


def _of_the_paper(content: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows whose backbone the paper has."""
    return [row for row in different(content["rows"]) if row["model"] in BACKBONES]


def _gain(content: dict[str, Any], rows: list[dict[str, Any]], kind: str) -> Claim:
    """The pairs are the splits: of each the mean over initial weights, losses, backbones and ratios of a kind."""
    splits: dict[str, list[float]] = {}
    for row in rows:
        for split, gain in gain_by_split(row, METRIC).items():
            splits.setdefault(split, []).append(gain)
    gains = [gain for row in rows for gain in pairs(row, METRIC)[2]]
    return Claim(
        "ReNode",
        "raises F1 (abstract)",
        f"{title(content)}, {kind}{f', {len(rows)} rows' if len(rows) > 1 else ''}",
        heading(content),
        Paired.of([fmean(split) for split in splits.values()]),
        "points",
        pairs="splits",
        better=(sum(gain > 0 for gain in gains), len(gains)),
        limits=(*_limits(content), *_cut(rows)),
    )


def _cut(rows: list[dict[str, Any]]) -> list[Limit]:
    """Of trainings that should end by themselves, how many the last epoch ended."""
    runs = [run for row in rows for side in ("off", "on") for run in row[side].values()]
    ends = [run["curve"][-1][0] for run in runs if "curve" in run]
    cut = ends.count(max(ends)) if ends else 0
    if cut <= CUT * len(ends):
        return []
    return [Limit("budget", f"{cut} of {len(ends)} runs end at epoch {max(ends)}, the last allowed: allow more")]


def _more_with_totoro(contents: list[dict[str, Any]]) -> Claim:
    """The pairs are the data sets: of each the rank correlation within the kinds of splits."""
    learned = [content for content in contents if not any(limit.decisive for limit in _limits(content))]
    ranks = [relation(content["rows"]).within[0] for content in learned]
    left = "; ".join(title(content) for content in contents if content not in learned)
    missing = Limit("recipe", f"{left}: left out, as nothing says that their baselines have learned")
    return Claim(
        "ReNode",
        "more so where Totoro says more conflict",
        ", ".join(map(title, learned)),
        RELATION_HEADING,
        Paired.of(ranks) if ranks else None,
        "of rank correlation",
        pairs="data sets",
        ours=True,
        limits=(missing,) if left else (),
    )


def _limits(content: dict[str, Any]) -> list[Limit]:
    rows = different(content["rows"])
    floor = FLOORS.get(rows[0]["dataset"], 0.0)
    balanced = [row for row in rows if (row["loss"], row["split"]) == ("ce", "balanced")]
    reached = max((100 * fmean(run[METRIC] for run in row["off"].values()) for row in balanced), default=0.0)
    spread = median(map(_spread, rows))
    curves = [run["curve"] for row in rows for run in row["off"].values() if "curve" in run]
    limits = unfinished([(epoch, -f1) for epoch, f1 in curve] for curve in curves) if curves or not floor else []
    if reached < floor:
        what = f"the baseline reaches {reached:.1f} F1 on balanced labels"
        limits.append(Limit("recipe", f"{what}: one that reaches {floor:g} is needed", True))
    if spread > STEADY:
        what = f"runs of a split lie {spread:.0f} points (one standard deviation) apart without ReNode"
        limits.append(Limit("recipe", f"{what}: trainings that end alike, within {STEADY:g}, are needed", True))
    if len(rows) == 1:
        limits.append(Limit("recipe", "one backbone and one loss, with settings for citation graphs: others untried"))
    return limits


def _spread(row: dict[str, Any]) -> float:
    """Of the baseline's runs of one split over their initial weights, the mean over the splits."""
    splits: dict[str, list[float]] = {}
    for name, run in row["off"].items():
        splits.setdefault(split_of(name), []).append(100 * run[METRIC])
    return fmean(map(pstdev, splits.values()))
