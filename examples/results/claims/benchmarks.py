"""Speed: what the papers say of it, by the ratios of neighbouring samples."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from examples.results.learned import Limit
from examples.results.paired import RANKED, Paired
from examples.results.verdicts import Claim

__all__ = ["claims"]

HEADING = "Speed and memory"


class Speed(NamedTuple):
    """A claim, how the cases begin that test it, the gain in percent, and whether a ratio is one of times."""

    method: str
    says: str
    case: str
    published: float
    times: bool
    limit: Limit


SPEEDS = (
    Speed(
        *("MUSE-simple", "+31 % tokens a second, fused, at batch 1 (later version)"),
        *("decoding, MUSE-simple fused / Transformer, beam 5, batch 1", 31.0, False),
        Limit("data", "a CPU: a GPU, as in the paper"),
    ),
    Speed(
        *("Explicit Sparse Transformer", "inference twice as fast as sparsemax's (abstract)"),
        *("topk_softmax / sparsemax, decoding, ", 100.0, True),
        Limit("data", "the function of the attention alone, rows x queries x keys: a whole model on a GPU"),
    ),
)


def claims(contents: list[dict[str, Any]]) -> list[Claim]:
    """One for each case that was measured with its pairs."""
    return [claim for speed in SPEEDS for content in contents for claim in _claims(content, speed)]


def _claims(content: dict[str, Any], speed: Speed) -> Iterator[Claim]:
    for row in content["rows"]:
        if not row["case"].startswith(speed.case) or row.get("low") is None:
            continue
        limits = [speed.limit]
        if row["pairs"] < RANKED:
            limits.append(Limit("budget", f"{row['pairs']} pairs of samples: {RANKED} have an interval of 95 %", True))
        if content.get("busy"):
            limits.append(Limit("budget", "the machine was busy: measure it again on a quiet one"))
        yield Claim(
            speed.method,
            speed.says,
            f"{row['case']}, {row.get('device', 'CPU')}",
            HEADING,
            _gain(row, speed.times),
            "% faster",
            digits=1,
            pairs="pairs",
            published=speed.published,
            limits=tuple(limits),
        )


def _gain(row: dict[str, Any], times: bool) -> Paired:
    """Percent faster: the median, the smallest and the largest pair, and p of the sign test.

    Where pairs lie on both sides of 0, how many on which is not kept: 1 stands for p, as the test then rejects nothing
    that the interval does not.
    """
    ratios = [row[key] for key in ("ratio", "low", "high")]
    middle, *ends = (100 * ((1 / ratio if times else ratio) - 1) for ratio in ratios)
    low, high = sorted(ends)
    p = min(1.0, 2 * 0.5 ** row["pairs"]) if low > 0 or high < 0 else 1.0
    return Paired(middle, low, high, row["pairs"], p)
