"""Encouraging loss on graphs by where its bonus turns linear: that all the way hurts."""

from __future__ import annotations

from statistics import fmean
from typing import Any

from examples.results.claims.graph_classification import behind
from examples.results.graph_classification import epochs_allowed
from examples.results.graph_log_end import HEADING, PUBLISHED, paired
from examples.results.learned import cut_short
from examples.results.verdicts import Claim

__all__ = ["claims"]


def claims(contents: list[dict[str, Any]]) -> list[Claim]:
    """One a data set in which log_end 1 is measured."""
    return [_claim(content) for content in contents if "1" in content["runs_of"]]


def _claim(content: dict[str, Any]) -> Claim:
    of = PUBLISHED[content["dataset"]]
    gain = round(of["0.5"] - of["1"], 2)
    reached = 100 * fmean(run["test_accuracy"] for run in content["runs_of"]["cross-entropy"].values())
    arms = {f"of {arm}": list(content["runs_of"][arm].values()) for arm in ("0.5", "1")}
    return Claim(
        "Encouraging loss, graphs",
        f"log_end 0.5 over 1: {gain:+g} accuracy (plot)",
        content["dataset"],
        HEADING,
        paired(content, "0.5", "1"),
        "points",
        pairs="folds",
        published=gain,
        limits=(*behind(reached, of["cross-entropy"]), *cut_short(arms, epochs_allowed(content))),
    )
