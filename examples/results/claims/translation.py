"""Translation: every method against the Transformer, by BLEU."""

from __future__ import annotations

import statistics
from typing import Any

from examples.results.learned import Limit, perplexities, unfinished
from examples.results.paired import differences
from examples.results.translation.experiments import BASELINE, DATA, SIZES, SYSTEMS
from examples.results.translation.figures import best_bits
from examples.results.translation.table import dataset, heading
from examples.results.verdicts import Claim, Paper

__all__ = ["claims"]


PAPERS = (
    Paper(
        "GCA",
        "raises BLEU (abstract: the most effective of its strategies; comment: state of the art)",
        ("GCA, mean", "GCA, gate", "GCA, concat", "GCA, sequential"),
    ),
    Paper("MUSE-simple", "+0.5 BLEU (IWSLT De-En, journal version)", ("MUSE-simple",), 0.5),
    Paper("MUSE", "+1.0 BLEU (IWSLT De-En, journal version)", ("MUSE",), 1.0),
    Paper("Explicit Sparse Transformer", "+0.54 BLEU (IWSLT17 Fr-En, later version)", ("top-k (k = 8)",), 0.54),
    Paper("AdaNorm", "+0.1 BLEU over LayerNorm (IWSLT De-En, poster)", ("AdaNorm",), 0.1),
    Paper(
        "LayerNorm-simple",
        "as good as LayerNorm (IWSLT De-En, 35.5 BLEU with both, poster)",
        ("LayerNorm-simple",),
        margin=0.1,
    ),
    Paper("Encouraging loss, text", "+0.41 BLEU (IWSLT De-En, poster)", ("encouraging loss, log_end 0.5",), 0.41),
)
"""Gains in BLEU."""

KM = "Transformer, km"
SHORT = Limit("data", "short captions: longer sentences, as in IWSLT and WMT")
ONE_DOMAIN = Limit("data", "23,463 pairs of one domain: a larger set, as IWSLT and WMT")


def claims(contents: list[dict[str, Any]]) -> list[Claim]:
    """One a method and data set, of the table that says most about it; and one against equal initial weights."""
    chosen = []
    for paper in PAPERS:
        for text in DATA.values():
            own = [content for content in contents if dataset(content) is text and _rows(content, paper.systems)]
            if own:
                content = max(own, key=lambda content: _weight(content, paper.systems))
                chosen.append(_claim(paper, content))
                if _with_km(_rows(content, paper.systems)) and _rows(content, (KM,)):
                    chosen.append(_claim(paper, content, KM))
    return chosen


def _weight(content: dict[str, Any], systems: tuple[str, ...]) -> tuple[bool, int, bool]:
    """Seeds that have a spread count before a longer training, and that before a tuned one."""
    updates = max(row["updates"] for row in content["rows"])
    return len(_rows(content, systems)) > 1, updates * SIZES[content["size"]].tokens, content.get("tuned", False)


def _rows(content: dict[str, Any], systems: tuple[str, ...]) -> list[dict[str, Any]]:
    """Those of the candidate with the best validation likelihood."""
    return min(_candidates(content, systems), key=lambda own: statistics.fmean(map(best_bits, own)), default=[])


def _candidates(content: dict[str, Any], systems: tuple[str, ...]) -> list[list[dict[str, Any]]]:
    """The rows of each system that is measured, of those with the most seeds."""
    every = [[row for row in content["rows"] if row["system"] == system] for system in systems]
    return [own for own in every if own and len(own) == max(map(len, every))]


def _with_km(rows: list[dict[str, Any]]) -> bool:
    """Whether they have other initial weights than the Transformer's."""
    return "km" in SYSTEMS[rows[0]["system"]]


def _claim(paper: Paper, content: dict[str, Any], baseline: str = BASELINE) -> Claim:
    rows = _rows(content, paper.systems)
    plain = {row["seed"]: row for row in _rows(content, (baseline,))}
    bleu, plain_bleu = ({row["seed"]: row["sacrebleu"] for row in of} for of in (rows, plain.values()))
    among = " (best on valid)" if len(_candidates(content, paper.systems)) > 1 else ""
    chosen = f", {rows[0]['system']}{among}" if len(paper.systems) > 1 else ""
    measured = bool(_rows(content, (KM,)))
    same = "the row below has a Transformer with them" if measured else "a Transformer with them, not measured yet"
    weights = Limit("method", f"other initial weights than the Transformer's, `--init km`: {same}")
    return Claim.of_runs(
        paper.method,
        paper.says if baseline == BASELINE else "the same over a Transformer with `--init km`",
        f"{dataset(content).name}, {rows[0]['updates']:,} updates{chosen}",
        heading(content),
        differences(bleu, plain_bleu),
        "BLEU",
        published=paper.published,
        margin=paper.margin,
        limits=(
            *unfinished(*([perplexities(row["curve"]) for row in own] for own in (plain.values(), rows))),
            *([weights] if baseline == BASELINE and _with_km(rows) else []),
            SHORT if dataset(content) is DATA["multi30k"] else ONE_DOMAIN,
        ),
        ours=baseline != BASELINE,
    )
