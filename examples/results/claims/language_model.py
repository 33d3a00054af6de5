"""Language models by the bits of a word: the Explicit Sparse Transformer and AdaNorm beside the dense model."""

from __future__ import annotations

from typing import Any, NamedTuple

from examples.results.language_model import BASELINE, by_system, gains, heading
from examples.results.verdicts import Claim, Limit, perplexities, unfinished

__all__ = ["claims"]


class Paper(NamedTuple):
    """A method's claim, and the row that is the method; the published figures are bits of another unit."""

    method: str
    says: str
    system: str


PAPERS = (
    Paper(
        "Explicit Sparse Transformer",
        "8 keys cost nothing (enwik8, 1.02 bits with and without, later version)",
        "top-k 8",
    ),
    Paper("AdaNorm", "as good as LayerNorm (enwik8, 1.07 bits with both, poster)", "AdaNorm"),
)
WORDS = Limit("data", "words of a text of a million: characters of a hundred times as many, with a memory, as enwik8")


def claims(contents: list[dict[str, Any]]) -> list[Claim]:
    """Those of the contents that have both models."""
    return [
        _claim(content, paper) for content in contents for paper in PAPERS if paper.system in gains(by_system(content))
    ]


def _claim(content: dict[str, Any], paper: Paper) -> Claim:
    systems = by_system(content)
    short = unfinished(perplexities(row["curve"]) for row in systems[BASELINE])
    return Claim.of_runs(
        paper.method,
        paper.says,
        f"Brown words, {paper.system}",
        heading(content),
        gains(systems)[paper.system],
        "bits a word",
        digits=3,
        published=0.0,
        limits=(*([short] if short else []), WORDS),
    )
