"""Captions with the Explicit Sparse Transformer, by CIDEr-D."""

from __future__ import annotations

from statistics import fmean
from typing import Any

from examples.results.captioning.baselines import BASELINES
from examples.results.captioning.table import heading, same_for_all
from examples.results.learned import Limit, perplexities, unfinished
from examples.results.paired import differences
from examples.results.verdicts import Claim

__all__ = ["claims"]

ARMS = ("top-k 4", "top-k 8")
WITHOUT_PIXELS = Limit(
    "data", "boxes with a class and no pixels, at most 4 in half of the images: a detector's features"
)
STAMPS = Limit("data", "one caption an image, and a few hundred images: a set such as COCO")


def claims(contents: list[dict[str, Any]]) -> list[Claim]:
    """One for each data set and number of keys."""
    return [
        _claim(content, arm, runs)
        for content in contents
        for arm, runs in ((row["system"], row["runs"]) for row in content["rows"])
        if arm in ARMS
    ]


def _below_untrained(content: dict[str, Any], dense: dict[str, dict[str, Any]]) -> list[Limit]:
    """Where captions that need no training, which are those of training images, have more CIDEr-D than the baseline."""
    untrained = [row for row in content["rows"] if row["system"] in BASELINES]
    scores = {row["system"]: 100 * row["runs"][""]["cider_d"] for row in untrained}
    name, best = max(scores.items(), key=lambda row: row[1], default=("", 0.0))
    score = 100 * fmean(run["cider_d"] for run in dense.values()) if dense else 0.0
    if score >= best:
        return []
    return [Limit("recipe", f"dense has {score:.1f}, captions of the {name} {best:.1f}: models above it", True)]


def _claim(content: dict[str, Any], arm: str, runs: dict[str, dict[str, Any]]) -> Claim:
    dense = next((row["runs"] for row in content["rows"] if row["system"] == "dense"), {})
    scores, dense_scores = ({seed: 100 * run["cider_d"] for seed, run in each.items()} for each in (runs, dense))
    same = sum(len(same_for_all(trained)) for trained in (dense, runs))
    selection = Limit(
        "recipe",
        f"{same} of {len(dense) + len(runs)} trainings choose an epoch with hardly more than one caption for all "
        "images: more and longer captions to choose by",
        decisive=True,
    )
    return Claim.of_runs(
        "Explicit Sparse Transformer",
        "better captions",
        f"{content['dataset']}, {arm}",
        heading(content),
        differences(scores, dense_scores),
        "CIDEr-D",
        digits=1,
        ours=True,
        limits=(
            *([selection] if same else []),
            *unfinished(*([perplexities(run["curves"]["nll_loss"]) for run in own.values()] for own in (dense, runs))),
            *_below_untrained(content, dense),
            STAMPS if "stamps" in content["dataset"] else WITHOUT_PIXELS,
        ),
    )
