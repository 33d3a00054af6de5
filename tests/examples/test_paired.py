"""Statistics of paired differences."""

from __future__ import annotations

import statistics

import pytest
from scipy import stats

from examples.results import paired
from examples.results.paired import Paired, holm

differences = pytest.mark.parametrize(
    "gains",
    [[1, 2], [3, 3], [0, 0, 0], [5, -1, 4], [-7, -9, -8, -7], [1, 2, 3, 4, 5, 6], [0] * 6, [0, 3, -1, 4, 4, 9, -2, 30]],
    ids=str,
)


@differences
def test_the_interval_is_that_of_the_paired_t_test(gains):
    paired = Paired.of(gains)
    if len(set(gains)) == 1:
        assert paired.low == paired.mean == paired.high == gains[0] and paired.p == (gains[0] == 0)
        return
    test = stats.ttest_rel(gains, [0] * len(gains))
    expected = test.confidence_interval(0.95)
    assert (paired.low, paired.high) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert paired.p == pytest.approx(test.pvalue) and paired.pairs == len(gains)
    if abs(test.pvalue - 0.05) > 1e-9:
        assert (paired.gains or paired.loses) == (test.pvalue < 0.05)
        assert not paired.gains or paired.mean > 0


def test_one_pair_has_no_interval():
    paired = Paired.of([3.0])
    assert paired == (3.0, None, None, 1, None, None)
    assert paired.text(1) == "+3.0" and not paired.gains and not paired.loses
    assert Paired.of([1.0, 2.0, 3.0]).text(2) == "+2.00 [-0.48, +4.48]"  # t(0.975; 2) = 4.303, over the root of 3


@differences
def test_the_signed_rank_test_needs_six_pairs(gains):
    p = Paired.of(gains).wilcoxon
    assert (p is None) == (len(gains) < 6)
    if p is not None:
        assert p == pytest.approx(stats.wilcoxon(gains).pvalue if any(gains) else 1)
        assert p == Paired.of([-gain for gain in gains]).wilcoxon
    assert Paired.of([1, 2, 3, 4, 5, 6]).wilcoxon == 2 / 2**6, "the least of six pairs, and below 0.05"
    assert 2 / 2**5 > 0.05, "so five can never show anything"


@differences
def test_overlapping_training_sets_widen_the_interval(gains):
    """By the variance of the mean: (1/n + test/train) s^2, with the degrees of freedom of n pairs."""
    plain, corrected = Paired.of(gains), Paired.of(gains, test_per_train=1 / 8)
    wider = ((1 / len(gains) + 1 / 8) * len(gains)) ** 0.5
    assert corrected.high - corrected.mean == pytest.approx(wider * (plain.high - plain.mean), abs=1e-9)
    assert corrected.mean == plain.mean and corrected.wilcoxon is None
    if statistics.pstdev(gains):
        by_hand = corrected.mean / ((1 / len(gains) + 1 / 8) * statistics.variance(gains)) ** 0.5
        assert corrected.p == pytest.approx(2 * stats.t(len(gains) - 1).sf(abs(by_hand)))


def test_holm_steps_down_until_one_fails():
    assert holm([0.01, 0.04, 0.03, 0.005]) == [True, False, False, True]  # 0.05 / 4, / 3, / 2: 0.03 fails and ends it
    assert holm([0.0125, 0.0166]) == [True, True] and holm([0.05]) == [True] and holm([]) == []
    assert holm([0.026, 0.026]) == [False, False]


@pytest.mark.parametrize("values", [[0.04, 0.02], [0.001, 0.2, 0.016, 0.04], [1.0, 1.0], [0.0, 0.0, 0.06]])
def test_holm_is_never_weaker_than_bonferroni_nor_stronger_than_no_correction(values):
    for value, rejected in zip(values, holm(values), strict=True):
        assert rejected or value > 0.05 / len(values)
        assert not rejected or value <= 0.05


def test_differences_are_those_of_what_both_have():
    assert paired.differences({1: 3.0, 2: 5.0, 4: 9.0}, {2: 1.0, 1: 0.5, 3: 7.0}) == [2.5, 4.0]


def test_over_another_value_is_the_test_of_what_lies_over_it():
    """Also with the variance of folds, which the interval has."""
    gains = [-0.05, 0.02, 0.1, 0.03, -0.01, 0.04]
    for ratio in (0.0, 0.125):
        moved = Paired.of(gains, ratio).over(-0.1)
        assert moved == pytest.approx(Paired.of([gain + 0.1 for gain in gains], ratio)._replace(wilcoxon=None))
    assert Paired.of([1.0]).over(0.25) == Paired.of([0.75]) and Paired.of([1.0, 1.0]).over(1.0).p == 1.0
