"""Language models with the Explicit Sparse Transformer, by the bits of a word."""

from __future__ import annotations

from typing import Any

from examples.results.language_model import BASELINE, by_system, gains, heading
from examples.results.verdicts import Claim, Limit, unfinished

__all__ = ["claims"]

TOP_K = "top-k 8"
WORDS = Limit("data", "words of a text of a million: characters of a hundred times as many, with a memory, as enwik8")


def claims(contents: list[dict[str, Any]]) -> list[Claim]:
    """That fewer keys cost nothing: of the contents that have both models."""
    return [_claim(content) for content in contents if TOP_K in gains(by_system(content))]


def _claim(content: dict[str, Any]) -> Claim:
    systems = by_system(content)
    short = unfinished(row["curve"] for row in systems[BASELINE])
    return Claim.of_runs(
        "Explicit Sparse Transformer",
        "fewer bits a character (enwik8, 1.07 to 1.05, later version)",
        f"Brown words, {TOP_K}",
        heading(content),
        gains(systems)[TOP_K],
        "bits a word",
        digits=3,
        limits=(*([short] if short else []), WORDS),
    )
