"""Statistics of paired differences: what stands in brackets behind a difference, and the tests behind a verdict."""

from __future__ import annotations

import statistics
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple

from scipy import stats

__all__ = ["RANKED", "Paired", "better_equal_worse", "differences", "holm", "p_value"]

LEVEL = 0.05
RANKED = 6
"""Pairs that the signed-rank test needs: of five, no outcome has a two-sided p below ``LEVEL``."""


class Paired(NamedTuple):
    """The mean of paired differences, its 95 % interval and two tests of it; of one pair only the mean.

    ``p`` is that of the paired t-test, two-sided, so it is below 0.05 where the interval excludes 0; ``wilcoxon`` is
    that of the signed-rank test, of 6 pairs and more.
    """

    mean: float
    low: float | None = None
    high: float | None = None
    pairs: int = 1
    p: float | None = None
    wilcoxon: float | None = None

    @classmethod
    def of(cls, gains: Sequence[float], test_per_train: float = 0.0) -> Paired:
        r"""From the difference :math:`d` of each of the :math:`n` pairs.

        The pairs must be independent of each other. Those of a cross-validation are not, as their training sets
        overlap: with the ratio :math:`\rho` of test to training examples the variance of the mean is taken as
        :math:`(1/n + \rho) s^2` in the place of :math:`s^2/n` (Nadeau and Bengio, Inference for the Generalization
        Error, Machine Learning 52, 2003), and the signed-rank test, which knows no such correction, is left out.

        Args:
            gains: the differences.
            test_per_train: test examples for each training example of a pair; 0: independent pairs.
        """
        mean, count = statistics.fmean(gains), len(gains)
        if count < 2:
            return cls(mean)
        error = ((1 / count + test_per_train) * statistics.variance(gains)) ** 0.5
        half = float(stats.t.ppf(1 - LEVEL / 2, count - 1)) * error
        p = 2 * float(stats.t.sf(abs(mean) / error, count - 1)) if error else float(mean == 0)
        ranked = count >= RANKED and not test_per_train
        return cls(mean, mean - half, mean + half, count, p, _signed_rank(gains) if ranked else None)

    def over(self, value: float) -> Paired:
        """The same mean by how far it lies over a value, which the t-test then asks about; no ranks are kept for it."""
        if self.low is None or self.high is None:
            return self._replace(mean=self.mean - value, wilcoxon=None)
        moved = self._replace(mean=self.mean - value, low=self.low - value, high=self.high - value, wilcoxon=None)
        freedom = self.pairs - 1
        error = (self.high - self.low) / 2 / float(stats.t.ppf(1 - LEVEL / 2, freedom))
        p = 2 * float(stats.t.sf(abs(moved.mean) / error, freedom)) if error else float(moved.mean == 0)
        return moved._replace(p=p)

    @property
    def gains(self) -> bool:
        return self.low is not None and self.low > 0

    @property
    def loses(self) -> bool:
        return self.high is not None and self.high < 0

    def text(self, digits: int) -> str:
        interval = "" if self.low is None else f" [{self.low:+.{digits}f}, {self.high:+.{digits}f}]"
        return f"{self.mean:+.{digits}f}{interval}"


def differences(values: Mapping[Hashable, float], baseline: Mapping[Hashable, float]) -> list[float]:
    """What the value of each seed or split is more than the baseline's of the same one, where it has one."""
    return [value - baseline[pair] for pair, value in values.items() if pair in baseline]


def better_equal_worse(gains: Iterable[float]) -> str:
    """How many of the differences are above 0, 0 and below it, as a cell."""
    signs = [(gain > 0) - (gain < 0) for gain in gains]
    return " / ".join(str(signs.count(sign)) for sign in (1, 0, -1))


def _signed_rank(gains: Sequence[float]) -> float:
    """Two-sided p of Wilcoxon's test, pairs without a difference left out."""
    return float(stats.wilcoxon(gains).pvalue) if any(gains) else 1.0


def holm(values: Sequence[float]) -> list[bool]:
    """Which of the tests with these p-values still reject, so that one of all errs with probability ``LEVEL``.

    Holm's step-down procedure (A Simple Sequentially Rejective Multiple Test Procedure, 1979).
    """
    rejected = [False] * len(values)
    for passed, index in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        if values[index] > LEVEL / (len(values) - passed):
            break
        rejected[index] = True
    return rejected


def p_value(value: float | None) -> str:
    """A cell; of one pair there is no p."""
    return "" if value is None else f"{value:.3f}" if value >= 0.0005 else "< 0.001"
