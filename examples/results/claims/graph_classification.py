"""Encouraging loss on graphs, by test accuracy."""

from __future__ import annotations

from statistics import fmean
from typing import Any, NamedTuple

from examples.results.graph_classification import HEADING, accuracies, epochs_allowed, paired
from examples.results.learned import Limit, cut_short
from examples.results.verdicts import Claim

__all__ = ["behind", "claims"]


class Published(NamedTuple):
    """Accuracies (%) of the poster."""

    plain: float
    encouraging: float


PUBLISHED = {"PROTEINS": Published(72.32, 72.76), "NCI1": Published(70.53, 71.04)}
BEHIND = 2.0
"""Points by which a baseline that has learned may stay behind the published one, of the same data and network."""


def claims(contents: list[dict[str, Any]]) -> list[Claim]:
    """One a data set."""
    return [_claim(content) for content in contents]


def behind(reached: float, published: float) -> list[Limit]:
    """A decisive limit where cross-entropy has not learned, by what it reaches in the publication."""
    what = f"cross-entropy reaches {reached:.1f} of the published {published}: within {BEHIND:g} points is needed"
    return [Limit("recipe", what, True)] if reached < published - BEHIND else []


def _claim(content: dict[str, Any]) -> Claim:
    plain, encouraging = accuracies(content)
    published = PUBLISHED.get(content["dataset"])
    runs = content["runs_of"]["encouraging"].values()
    before = sum(run["best_epoch"] <= run["epochs"] - run["bonus_epochs"] for run in runs)
    equal = f"{before} of {len(runs)} models are of an epoch before the bonus starts"
    limits = [Limit("recipe", f"{equal}: an earlier start than published")] if before else []
    limits += behind(fmean(plain), published.plain) if published else []
    limits += cut_short({name: list(own.values()) for name, own in content["runs_of"].items()}, epochs_allowed(content))
    gain = round(published.encouraging - published.plain, 2) if published else None
    return Claim(
        "Encouraging loss, graphs",
        f"{gain:+g} accuracy ({content['dataset']}, poster)" if gain else "higher accuracy",
        content["dataset"],
        HEADING,
        paired(content),
        "points",
        pairs="folds",
        better=(sum(own > other for other, own in zip(plain, encouraging, strict=True)), len(plain)),
        published=gain,
        limits=tuple(limits),
    )
