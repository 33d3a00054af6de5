"""Which claims of the papers hold here: the rule of the verdicts, and the page that RESULTS.md starts with."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Any, Literal, NamedTuple, Self

from examples.results.paired import Paired, holm, p_value

__all__ = ["Claim", "Limit", "Paper", "Verdict", "anchor", "page", "perplexities", "unfinished"]

PAIRS = 3
"""Independent pairs that a verdict needs."""
FLAT = 0.01
"""Share by which a validation metric may still improve at the end of a training that has converged."""
END = 0.8
"""Share of a training after which its end begins."""

PAGE = """## Verdicts

What the papers claim and what the tables below say of it; a verdict leads to its table. {summary}

| method | claim | tested on | verdict | evidence | [limits](#limits-of-the-verdicts) |
|---|---|---|---|---|---|
{rows}

**The rule.** Evidence is the mean of paired differences in the direction that is claimed, with its 95 % interval. With
the interval above 0 a claim is *reproduced*, below 0 *not reproduced*, and with 0 inside it is *in the spread*. It is
*not testable here* with fewer than {pairs} independent pairs, or where the baseline has not learned, since the table
then says nothing about the method: its validation metric (of a likelihood, the perplexity) still improves by more than
{flat} % after the last validation before {end} % of the training, or it stays below a floor, such as a linear model.
Every claim that compares trained models has one of the two, or both; the floors and what a claim is pooled over are our
choice, made after the first measurements.

**The limits** say why there is no better answer: *method*, it does not help here, or not by what is said; *budget*, too
few pairs or too short a training; *recipe*, the networks have not learned what they should, which settings or code have
to mend first; *data*, what is at hand lacks what the claim is about. Whether the code computes what the paper says is
not judged here: the tests compare it with values of the released code where there is one. Claimed numbers are those on
the papers' own data and at their size; *better* counts runs.

### Limits of the verdicts

What limits each test, and after the colon what it would take.

{notes}
"""


class Verdict(StrEnum):
    """What the tables say of a claim."""

    REPRODUCED = "reproduced"
    SPREAD = "in the spread"
    NOT_REPRODUCED = "not reproduced"
    NOT_TESTABLE = "not testable here"


class Limit(NamedTuple):
    """What keeps a table from being a better test and what that would take; after a ``decisive`` one it is none."""

    cause: Literal["method", "budget", "recipe", "data"]
    text: str
    decisive: bool = False


class Paper(NamedTuple):
    """What a paper claims of its method, which rows of a table are the method, and its gain in the table's metric."""

    method: str
    says: str
    systems: tuple[str, ...]
    published: float | None = None


class Claim(NamedTuple):
    """What a paper says of its method, and what was measured.

    Args:
        method: the paper's method.
        says: its claim in words, with the source of any number.
        here: what it is tested on.
        heading: of the section of RESULTS.md that has the table.
        paired: the differences in the direction claimed, of independent pairs; None: nothing is measured.
        unit: of the differences.
        digits: of the differences.
        pairs: what a pair is.
        better: of how many runs how many are better with the method.
        published: gain of the paper, in the same unit.
        limits: what else stands in the way.
        ours: whether it is our question and no claim of the paper, among which it is not counted.
    """

    method: str
    says: str
    here: str
    heading: str
    paired: Paired | None
    unit: str
    digits: int = 2
    pairs: str = "seeds"
    better: tuple[int, int] | None = None
    published: float | None = None
    limits: tuple[Limit, ...] = ()
    ours: bool = False

    @classmethod
    def of_runs(
        cls, method: str, says: str, here: str, heading: str, gains: Sequence[float], unit: str, **about: Any
    ) -> Self:
        """A claim whose independent pairs are the runs, from the gain of each; of none, nothing is measured."""
        better = sum(gain > 0 for gain in gains), len(gains)
        return cls(method, says, here, heading, Paired.of(gains) if gains else None, unit, better=better, **about)

    @property
    def verdict(self) -> Verdict:
        """By the rule."""
        few = self.paired is None or self.paired.pairs < PAIRS
        if self.paired is None or few or any(limit.decisive for limit in self.limits):
            return Verdict.NOT_TESTABLE
        if self.paired.gains:
            return Verdict.REPRODUCED
        return Verdict.NOT_REPRODUCED if self.paired.loses else Verdict.SPREAD

    def evidence(self) -> str:
        """The statistic, in one cell."""
        if self.paired is None:
            return "none"
        parts = [f"{self.paired.text(self.digits)} {self.unit}", _count(self.paired.pairs, self.pairs)]
        if self.better:
            parts.append(f"{self.better[0]}/{self.better[1]} better")
        parts += [f"signed ranks p {p_value(self.paired.wilcoxon)}"] if self.paired.wilcoxon is not None else []
        return ", ".join(parts)

    def reasons(self) -> list[Limit]:
        """The limits, the decisive ones first, and what follows from the verdict."""
        pairs = self.paired.pairs if self.paired else 0
        few = [Limit("budget", f"{_count(pairs, self.pairs)}; {PAIRS} are needed", True)] if pairs < PAIRS else []
        limits = sorted([*few, *self.limits], key=lambda limit: not limit.decisive)
        return [*self._consequence(), *limits]

    def _consequence(self) -> list[Limit]:
        if self.verdict is Verdict.NOT_REPRODUCED:
            return [Limit("method", "worse than the baseline")]
        if self.verdict is not Verdict.SPREAD or self.paired is None or self.paired.high is None:
            return []
        high = f"{self.paired.high:+.{self.digits}f}"
        if self.published is None:
            return [Limit("budget", f"gains of up to {high} fit the interval: more {self.pairs} would narrow it")]
        gain = f"{self.published:+g}"
        if self.published > self.paired.high:
            return [Limit("method", f"a gain as large as the published {gain} is excluded")]
        return [Limit("budget", f"the published gain of {gain} fits the interval: more {self.pairs} would narrow it")]


def _count(number: int, things: str) -> str:
    return f"{number} {things if number != 1 else things.removesuffix('s')}"


def unfinished(curves: Iterable[Sequence[tuple[float, float]]]) -> list[Limit]:
    """A decisive limit where trainings of the baseline ended before their validation loss was flat, else none.

    It is one as well where no training has a curve, since nothing then says that they had learned.

    Args:
        curves: of each training the pairs (update, loss); of a metric of which more is better, its negative; of a
            likelihood its :func:`perplexities`, as a share of bits depends on what a bit is counted for.
    """
    ends = [(_before_the_end(curve), curve[-1]) for curve in curves if len(curve) > 1]
    if not ends:
        return [Limit("budget", "no validation curve was kept: measure it again, with one", True)]
    move = statistics.fmean((loss - last) / abs(loss) for (_, loss), (_, last) in ends)
    if move <= FLAT:
        return []
    (start, _), (end, _) = ends[0]
    still = f"validation still improves by {100 * move:.1f} % after update {start:,} of {end:,}"
    return [Limit("budget", f"{still}: train until it is flat", True)]


def perplexities(curve: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Of the pairs (update, bits) the pairs (update, perplexity)."""
    return [(update, 2.0**bits) for update, bits in curve]


def _before_the_end(curve: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The last validation before the end of a training, or the first of all."""
    return [point for point in curve if point is curve[0] or point[0] <= END * curve[-1][0]][-1]


def anchor(heading: str) -> str:
    """What GitHub and MkDocs call a heading in links."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def page(claims: Sequence[Claim]) -> str:
    """The table of the verdicts, in the order of the claims."""
    rule = {"pairs": PAIRS, "flat": f"{100 * FLAT:g}", "end": f"{100 * END:g}"}
    notes: dict[str, int] = {}  # by their texts, so that claims share them
    rows = "\n".join(_row(claim, notes) for claim in claims)
    listed = "\n".join(f"{number}. {text}" for text, number in notes.items())
    return PAGE.format(summary=_summary(claims), rows=rows, notes=listed, **rule)


def _row(claim: Claim, notes: dict[str, int]) -> str:
    """A line of the table; the texts of its limits go into ``notes``."""
    numbers: dict[str, list[int]] = {}
    for cause, text, _ in claim.reasons():
        numbers.setdefault(cause, []).append(notes.setdefault(f"*{cause}*, {text}", len(notes) + 1))
    limits = "; ".join(f"{cause} {', '.join(map(str, sorted(own)))}" for cause, own in numbers.items())
    verdict = f"[{claim.verdict}](#{anchor(claim.heading)})"
    says = f"{claim.says} (our question)" if claim.ours else claim.says
    return f"| {claim.method} | {says} | {claim.here} | {verdict} | {claim.evidence()} | {limits} |"


def _summary(claims: Sequence[Claim]) -> str:
    """How many claims have each verdict, and how many verdicts hold when all tests are taken together."""
    papers = [claim for claim in claims if not claim.ours]
    of = {verdict: [claim for claim in papers if claim.verdict is verdict] for verdict in Verdict}
    counts = ", ".join(f"{len(those)} {verdict}{_by_method(those)}" for verdict, those in of.items())
    others = f"; the other {len(claims) - len(papers)} are our questions" if len(papers) < len(claims) else ""
    tested = [claim for claim in claims if claim.verdict is not Verdict.NOT_TESTABLE]
    holds = holm([claim.paired.p for claim in tested if claim.paired and claim.paired.p is not None])
    kept = [claim.verdict for claim, held in zip(tested, holds, strict=True) if held]
    return (
        f"Of {len(papers)} claims: {counts}{others}. With Holm's correction over the {len(tested)} that are tested, "
        f"{kept.count(Verdict.REPRODUCED)} of those reproduced and {kept.count(Verdict.NOT_REPRODUCED)} of those "
        "not reproduced remain."
    )


def _by_method(claims: Sequence[Claim]) -> str:
    """Of those reproduced, how many are not so by what the paper says they are."""
    causes = [{limit.cause for limit in claim.limits} for claim in claims if claim.verdict is Verdict.REPRODUCED]
    limited = sum("method" in each for each in causes)
    return f" ({limited} of them with a limit of *method*)" if limited else ""
