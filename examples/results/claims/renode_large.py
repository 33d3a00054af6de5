"""ReNode with PPRGo, by weighted F1."""

from __future__ import annotations

from typing import Any

from examples.results.renode_large import HEADING, gains
from examples.results.verdicts import Claim, unfinished

__all__ = ["claims"]

ARM = "exact"
"""Our default; the other arms are shown beside it."""


def claims(contents: list[dict[str, Any]]) -> list[Claim]:
    """One a data set."""
    return [_claim(content) for content in contents]


def _claim(content: dict[str, Any]) -> Claim:
    plain = next(row["runs"] for row in content["rows"] if row["system"] == "off")
    return Claim.of_runs(
        "ReNode",
        "raises F1 (abstract)",
        f"{content['dataset']}, PPRGo",
        HEADING,
        gains(content, ARM),
        "points",
        pairs="splits",
        limits=tuple(unfinished([(epoch, -f1) for epoch, f1 in run["curve"]] for run in plain.values())),
    )
