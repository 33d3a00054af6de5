"""IAIS, by the sum of the six recalls, and how that goes with ISD."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from examples.results.iais import ARMS, gains_of, heading
from examples.results.iais_data import DATASETS
from examples.results.iais_isd import over_runs, over_training
from examples.results.learned import Limit, unfinished
from examples.results.verdicts import Claim
from vision_language.iais.options import MIRRORS

__all__ = ["claims"]


PIXELS = Limit("data", "boxes without pixels, related by their classes alone: a detector's features, as of Flickr30k")
GRIDS = Limit(
    "data", "cells of a grid over images of one thing, whose captions name few relations: scenes, as of Flickr30k"
)
ANCHORS = Limit("data", "ISD by anchors, our proxy: phrases annotated with their boxes, as of Flickr30k Entities")


def claims(contents: list[dict[str, Any]]) -> list[Claim]:
    """One for each data set and kind of alignment, and two of each data set on ISD."""
    gains = [claim for content in contents for arm in MIRRORS if (claim := _claim(content, arm))]
    return [*gains, *(claim for content in contents for claim in _relations(content))]


def _relations(content: dict[str, Any]) -> Iterator[Claim]:
    """The correlation of ISD and recall, with its sign changed: a positive one is in the direction claimed.

    That over a training needs no end that is flat.
    """
    plain = next((row for row in content["rows"] if row["system"] == ARMS["none"]), {"runs": {}})
    limits = (ANCHORS, _data(content))
    says, unit = "less ISD goes with more recall (as we understand its motivation)", "rank correlation, sign changed"
    if of_seeds := over_training(plain):
        here = f"{content['dataset']}, validations of the ranking loss alone"
        gains = [-each for each in of_seeds]
        yield Claim.of_runs("IAIS", says, here, heading(content), gains, unit, digits=2, limits=limits)
    if whole := over_runs(content["rows"]):
        turned = whole._replace(mean=-whole.mean, low=-(whole.high or 0), high=-(whole.low or 0))
        here = f"{content['dataset']}, all trained models, within the arms"
        limits = (*_short(*(row["runs"] for row in content["rows"] if row["system"] in ARMS.values())), *limits)
        yield Claim("IAIS", says, here, heading(content), turned, unit, digits=2, pairs="models", limits=limits)


def _data(content: dict[str, Any]) -> Limit:
    return GRIDS if DATASETS[content["dataset"]].language else PIXELS


def _claim(content: dict[str, Any], arm: str) -> Claim | None:
    runs = {row["system"]: row["runs"] for row in content["rows"]}
    if ARMS[arm] not in runs:
        return None
    gains, plain = gains_of(content["rows"], ARMS[arm]), runs.get(ARMS["none"], {})
    return Claim.of_runs(
        "IAIS",
        "raises recall (abstract)",
        f"{content['dataset']}, {arm}",
        heading(content),
        gains,
        "points of six recalls",
        digits=1,
        limits=(*_short(plain, runs[ARMS[arm]]), _data(content)),
    )


def _short(*arms: dict[str, Any]) -> list[Limit]:
    """Where the recall of an arm is not flat."""
    return unfinished(
        *([[(point["step"], -point["rsum"]) for point in run["history"]] for run in runs.values()] for runs in arms)
    )
