"""IAIS, by the sum of the six recalls."""

from __future__ import annotations

from typing import Any

from examples.results.iais import ARMS, gains_of, heading
from examples.results.verdicts import Claim, Limit, unfinished
from vision_language.iais.options import MIRRORS

__all__ = ["claims"]


def claims(contents: list[dict[str, Any]]) -> list[Claim]:
    """One for each data set and kind of alignment."""
    return [claim for content in contents for arm in MIRRORS if (claim := _claim(content, arm))]


def _claim(content: dict[str, Any], arm: str) -> Claim | None:
    runs = {row["system"]: row["runs"] for row in content["rows"]}
    if ARMS[arm] not in runs:
        return None
    gains, plain = gains_of(content["rows"], ARMS[arm]), runs.get(ARMS["none"], {})
    short = unfinished([(point["step"], -point["rsum"]) for point in run["history"]] for run in plain.values())
    return Claim.of_runs(
        "IAIS",
        "raises recall (abstract)",
        f"{content['dataset']}, {arm}",
        heading(content),
        gains,
        "points of six recalls",
        digits=1,
        limits=(
            *([short] if short else []),
            Limit(
                "data", "boxes without pixels, related by their classes alone: a detector's features, as of Flickr30k"
            ),
        ),
    )
