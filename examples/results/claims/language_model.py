"""Language models by the bits of a word: the Explicit Sparse Transformer and AdaNorm beside the dense model."""

from __future__ import annotations

from typing import Any

from examples.results.language_model import BASELINE, by_system, gains, heading
from examples.results.learned import Limit, perplexities, unfinished
from examples.results.verdicts import Claim, Paper

__all__ = ["claims"]


PAPERS = (
    Paper(
        "Explicit Sparse Transformer",
        "8 keys cost nothing (enwik8, adaptive span, 1.02 bits with and without, later version)",
        ("top-k 8",),
        margin=0.01,
    ),
    Paper("AdaNorm", "as good as LayerNorm (enwik8, 1.07 bits with both, poster)", ("AdaNorm",), margin=0.01),
)
"""The published bits are those of a character: of a word, which has several, the margin is a strict one."""
WORDS = Limit("data", "words of a text of a million: characters of a hundred times as many, with a memory, as enwik8")

INSTEAD = {
    "top-k 8": (
        Limit("data", "8 keys beside plain dense attention: adaptive span with them and without, as published"),
    )
}
"""Of a system, what the paper compares in the place of what is compared here."""


def claims(contents: list[dict[str, Any]]) -> list[Claim]:
    """Those of the contents that have both models."""
    return [
        _claim(content, paper, system)
        for content in contents
        for paper in PAPERS
        for system in paper.systems
        if system in gains(by_system(content))
    ]


def _claim(content: dict[str, Any], paper: Paper, system: str) -> Claim:
    systems = by_system(content)
    return Claim.of_runs(
        paper.method,
        paper.says,
        f"Brown words, {system}",
        heading(content),
        gains(systems)[system],
        "bits per word",
        digits=3,
        published=paper.published,
        margin=paper.margin,
        limits=(
            *unfinished(*([perplexities(row["curve"]) for row in systems[name]] for name in (BASELINE, system))),
            *INSTEAD.get(system, ()),
            WORDS,
        ),
    )
