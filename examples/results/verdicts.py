"""Which claims of the papers hold here: the rule of the verdicts, and the page that RESULTS.md starts with."""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import StrEnum
from typing import Any, NamedTuple, Self

from examples.results.learned import CUT, END, FLAT, SLOW, Limit
from examples.results.paired import Paired, holm, p_value

__all__ = ["Claim", "Paper", "Verdict", "anchor", "page"]

PAIRS = 3
"""Independent pairs that a verdict needs."""

PAGE = """## Verdicts

What the papers claim and what the tables below say of it; a verdict leads to its table. {summary}

| method | claim | tested on | verdict | evidence | [limits](#limits-of-the-verdicts) |
|---|---|---|---|---|---|
{rows}

**The rule.** Evidence is the mean of paired differences in the direction that is claimed, with its 95 % interval. With
the interval above 0 a claim is *reproduced*, below 0 *not reproduced*, and with 0 inside it is *in the spread*. Where
the claim is that nothing is lost, a margin takes the place of 0: a loss of 1 in the last digit that the paper gives
counts as none. Where one claim is tested on several data sets each is a row, and in the first sentence a test.

**Having learned.** A claim is *not testable here* with fewer than {pairs} independent pairs, or where the baseline or
the arm with the method has not learned, since the table then says nothing about the method. Most trainings of an arm
must have ended by themselves: where patience ends trainings, before the last epoch that is allowed, and with a best
epoch before the learning rate has fallen below {slow} % (more than {cut} % that do not are named); elsewhere their
validation metric (of a likelihood, the perplexity) must improve by no more than {flat} % after the last validation
before {end} % of the training. Where neither was kept, nothing says that they have learned, and the claim is not
testable either; but for tables without such curves, where it is a floor that the networks must reach: a linear model, a
published level, or on images also a number of steps. ReNode's baseline has floors beside its curves: 80 and 90 weighted
F1 on Computers and Photo, and runs of a split within 5 points of each other. *Most*, the shares, the floors and what a
claim is pooled over are our choice, made after the first measurements; which verdict hinges on one is seen from its
limits.

**Which rows.** Of ReNode, the backbones of the released code, in the verdicts as in the relation to Totoro: APPNP is
ours, and the row says what it would change; and the recipe with a constant learning rate, where it was measured: the
row says what the released one gives. Of translation and images, the longest training that has both arms with more than
one seed. Of an artefact of float32, the published procedure is the test of the claim and the corrected one a question
of ours. Of speed the interval is that from the smallest to the largest pair of alternating samples, which is wider than
one of 95 %.

**The limits** say why there is no better answer: *method*, it does not help here, or not by what is said, or less than
is said; *budget*, too few pairs or too short a training; *recipe*, the networks have not learned what they should,
which settings or code have to mend first; *data*, what is at hand lacks what the claim is about. Whether the code
computes what the paper says is not judged here: the tests compare it with values of the released code where there is
one. Claimed numbers are those on the papers' own data and at their size; *better* counts runs.

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

    @classmethod
    def of(cls, paired: Paired) -> Verdict:
        """By the interval alone."""
        if paired.gains:
            return cls.REPRODUCED
        return cls.NOT_REPRODUCED if paired.loses else cls.SPREAD


class Paper(NamedTuple):
    """What a paper claims of its method, which rows of a table are the method, and its gain in the table's metric.

    One that claims no loss has a ``margin`` instead, as :class:`Claim` has it.
    """

    method: str
    says: str
    systems: tuple[str, ...]
    published: float | None = None
    margin: float | None = None


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
        margin: of a claim that nothing is lost, the loss that counts as none: 1 in the last digit that is published.
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
    margin: float | None = None
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
    def tested(self) -> Paired | None:
        """What must lie above 0: the differences, or by how much they lie over the loss that counts as none."""
        return self.paired.over(-self.margin) if self.paired and self.margin is not None else self.paired

    @property
    def verdict(self) -> Verdict:
        """By the rule."""
        few = self.paired is None or self.paired.pairs < PAIRS
        if self.tested is None or few or any(limit.decisive for limit in self.limits):
            return Verdict.NOT_TESTABLE
        return Verdict.of(self.tested)

    def evidence(self) -> str:
        """The statistic, in one cell."""
        if self.paired is None:
            return "none"
        parts = [f"{self.paired.text(self.digits)} {self.unit}", _count(self.paired.pairs, self.pairs)]
        if self.margin is not None:
            parts.append(f"a loss of {self.margin:g} counts as none")
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
        verdict, high = self.verdict, self.paired.high if self.paired else None
        if verdict is Verdict.NOT_TESTABLE or high is None:
            return []
        narrow = f"more {self.pairs} would narrow it"
        if self.margin is not None:
            return self._of_no_loss(verdict, f"{self.margin:g} {self.unit}", narrow)
        if verdict is Verdict.NOT_REPRODUCED:
            return [Limit("method", "worse than the baseline")]
        if self.published is not None and self.published > high:
            return [Limit("method", f"a gain as large as the published {self.published:+g} is excluded")]
        if verdict is Verdict.REPRODUCED:
            return []
        if self.published is not None:
            return [Limit("budget", f"the published gain of {self.published:+g} fits the interval: {narrow}")]
        return [Limit("budget", f"gains of up to {high:+.{self.digits}f} fit the interval: {narrow}")]

    @staticmethod
    def _of_no_loss(verdict: Verdict, margin: str, narrow: str) -> list[Limit]:
        if verdict is Verdict.NOT_REPRODUCED:
            return [Limit("method", f"it loses more than {margin}")]
        return [Limit("budget", f"losses of more than {margin} fit the interval: {narrow}")] * (
            verdict is Verdict.SPREAD
        )


def _count(number: int, things: str) -> str:
    return f"{number} {things if number != 1 else things.removesuffix('s')}"


def anchor(heading: str) -> str:
    """What GitHub and MkDocs call a heading in links."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def page(claims: Sequence[Claim]) -> str:
    """The table of the verdicts, in the order of the claims."""
    rule = {
        "pairs": PAIRS,
        "flat": f"{100 * FLAT:g}",
        "end": f"{100 * END:g}",
        "cut": f"{100 * CUT:g}",
        "slow": f"{100 * SLOW:g}",
    }
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
    """How many tests of claims have each verdict, and how many hold when all tests are taken together."""
    papers = [claim for claim in claims if not claim.ours]
    of = {verdict: [claim for claim in papers if claim.verdict is verdict] for verdict in Verdict}
    counts = ", ".join(f"{len(those)} {verdict}{_by_method(those)}" for verdict, those in of.items())
    others = f"; the other {len(claims) - len(papers)} are our questions" if len(papers) < len(claims) else ""
    tested = [claim for claim in claims if claim.verdict is not Verdict.NOT_TESTABLE]
    holds = holm([claim.tested.p for claim in tested if claim.tested and claim.tested.p is not None])
    kept = [claim.verdict for claim, held in zip(tested, holds, strict=True) if held]
    distinct = len({(claim.method, claim.says) for claim in papers})
    return (
        f"Of {len(papers)} tests of {distinct} claims: {counts}{others}. With Holm's correction over the "
        f"{len(tested)} that could be made, {kept.count(Verdict.REPRODUCED)} of those reproduced and "
        f"{kept.count(Verdict.NOT_REPRODUCED)} of those not reproduced remain."
    )


def _by_method(claims: Sequence[Claim]) -> str:
    """Of those reproduced, how many are not so by what the paper says they are."""
    causes = [{limit.cause for limit in claim.reasons()} for claim in claims if claim.verdict is Verdict.REPRODUCED]
    limited = sum("method" in each for each in causes)
    return f" ({limited} of them with a limit of *method*)" if limited else ""
