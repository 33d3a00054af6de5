"""ReNode with PPRGo, by weighted F1."""

from __future__ import annotations

from typing import Any

from examples.results.learned import cut_short
from examples.results.renode_large import HEADING, gains
from examples.results.verdicts import Claim

__all__ = ["claims"]

ARM = "exact"
"""Our default; the other arms are shown beside it."""


def claims(contents: list[dict[str, Any]]) -> list[Claim]:
    """One a data set."""
    return [_claim(content) for content in contents]


def _claim(content: dict[str, Any]) -> Claim:
    arms = {row["system"]: list(row["runs"].values()) for row in content["rows"] if row["system"] in ("off", ARM)}
    epochs = int(content["options"].partition("--epochs ")[2].split()[0])
    return Claim.of_runs(
        "ReNode",
        "raises F1 (abstract)",
        f"{content['dataset']}, PPRGo",
        HEADING,
        gains(content, ARM),
        "points",
        pairs="splits",
        limits=tuple(cut_short(arms, epochs)),
    )
