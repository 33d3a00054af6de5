"""ReNode, by weighted F1: its gain on each data set, and whether it grows with Totoro."""

from __future__ import annotations

from statistics import fmean, median, pstdev
from typing import Any

from examples.results.learned import Limit, cut_short, slowed
from examples.results.paired import Paired
from examples.results.renode import RELATION_HEADING, heading, related
from examples.results.renode_gains import (
    METRIC,
    different,
    gain_by_split,
    of_the_paper,
    pairs,
    relation,
    split_of,
    title,
)
from examples.results.renode_recipes import recipe_of, superseded
from examples.results.verdicts import Claim, Verdict

__all__ = ["claims"]

FLOORS = {"Computers": 80.0, "Photo": 90.0}
"""Weighted F1 (%) that a baseline which has learned reaches with balanced labels and cross-entropy."""
KINDS = ("balanced", "step")
"""What kinds of splits begin with: topology imbalance alone, and beside unequal classes."""
STEADY = 5.0
"""Points by which runs of a split may spread over their initial weights, if the networks have learned."""


def claims(contents: list[dict[str, Any]]) -> list[Claim]:
    """One a data set, by one recipe, and kind of split; and one of all data sets in which the baseline has learned."""
    late = {content["rows"][0]["dataset"]: content for content in superseded(contents)}
    gains = [
        _gain(content, kind, late.get(content["rows"][0]["dataset"]))
        for content in contents
        if content not in late.values()
        for kind in KINDS
        if _of_kind(content, kind)
    ]
    return [*gains, *([_more_with_totoro(those)] if (those := related(contents)) else [])]


def _of_kind(content: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [row for row in different(content["rows"]) if row["split"].startswith(kind)]


def _gain(content: dict[str, Any], kind: str, released: dict[str, Any] | None = None) -> Claim:
    """The pairs are the splits: of each the mean over initial weights, losses, backbones and ratios of a kind.

    What ``content`` takes the place of is ``released``, whose result is told beside its own.
    """
    every = _of_kind(content, kind)
    rows = of_the_paper(every)
    gains = [gain for row in rows for gain in pairs(row, METRIC)[2]]
    return Claim(
        "ReNode",
        "raises F1 (abstract)",
        f"{title(content)}, {kind}{f', {len(rows)} rows' if len(rows) > 1 else ''}{_with_ours(every)}"
        + _as_released(released, kind),
        heading(content),
        _over_splits(rows),
        "points",
        pairs="splits",
        better=(sum(gain > 0 for gain in gains), len(gains)),
        limits=(*_limits(content), *_cut(content, rows)),
    )


def _as_released(content: dict[str, Any] | None, kind: str) -> str:
    """What the released recipe gives where another takes its place, in words."""
    if content is None or not _of_kind(content, kind):
        return ""
    claim = _gain(content, kind)
    assert claim.paired
    return f" (as released: {claim.paired.text(2)}, *{claim.verdict}*)"


def _over_splits(rows: list[dict[str, Any]]) -> Paired:
    splits: dict[str, list[float]] = {}
    for row in rows:
        for split, gain in gain_by_split(row, METRIC).items():
            splits.setdefault(split, []).append(gain)
    return Paired.of([fmean(split) for split in splits.values()])


def _with_ours(every: list[dict[str, Any]]) -> str:
    """What the rows of backbones that are ours would make of it, in words."""
    if not (ours := sorted({row["model"] for row in every} - {row["model"] for row in of_the_paper(every)})):
        return ""
    paired = _over_splits(every)
    return f" (with {', '.join(ours)}: {paired.text(2)}, *{Verdict.of(paired)}*)"


def _cut(content: dict[str, Any], rows: list[dict[str, Any]]) -> list[Limit]:
    """Of trainings that should end by themselves, how many the last epoch ended, or the falling learning rate."""
    sides = {side: [run for row in rows for run in row[side].values()] for side in ("off", "on")}
    recipe = recipe_of(content["recipe"])
    return [*cut_short(sides, recipe.epochs), *slowed(sides, lambda epoch: recipe.lr_factor(epoch - 1))]


def _more_with_totoro(contents: list[dict[str, Any]]) -> Claim:
    """The pairs are the data sets: of each the rank correlation within the kinds of splits."""
    learned = [content for content in contents if not any(limit.decisive for limit in _all_limits(content))]
    ranks = [relation(content["rows"]).within[0] for content in learned]
    left = "; ".join(title(content) for content in contents if content not in learned)
    missing = Limit("recipe", f"{left}: left out, as their networks have not learned, or nothing says whether")
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


def _all_limits(content: dict[str, Any]) -> list[Limit]:
    """Of both kinds of splits together."""
    return [*_limits(content), *_cut(content, of_the_paper(content["rows"]))]


def _limits(content: dict[str, Any]) -> list[Limit]:
    rows = of_the_paper(content["rows"])
    floor = FLOORS.get(rows[0]["dataset"], 0.0)
    balanced = [row for row in rows if (row["loss"], row["split"]) == ("ce", "balanced")]
    reached = max((100 * fmean(run[METRIC] for run in row["off"].values()) for row in balanced), default=0.0)
    spread = median(map(_spread, rows))
    limits: list[Limit] = []
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
