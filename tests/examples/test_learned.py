"""What counts as a training that has learned, at the borders of the rule."""

from __future__ import annotations

from typing import Any

import pytest

from examples.results.learned import cut_short, last_epoch, perplexities, slowed, unfinished

FLAT = [(80, 2.0), (100, 2.0)]
FALLING = [(80, 2.0), (100, 1.9)]


@pytest.mark.parametrize(
    ("curves", "decisive"),
    [
        ([[(10, 4.0), (80, 2.0), (100, 1.981)]], False),  # just below 1 %
        ([[(80, 100.0), (100, 99.0)]], False),  # 1 % itself
        ([[(10, 4.0), (80, 2.0), (100, 1.979)]], True),
        ([[(10, 4.0), (80, 2.0), (90, 1.0), (100, 2.1)]], False),  # it was best before
        ([[(80, 2.0), (85, 1.98), (100, 1.97)]], True),  # from the last before 80 %
        ([[(85, 2.0), (100, 1.9)]], True),  # from the first on, where none is earlier
        ([[(50, -4.0), (100, -4.2)]], True),  # of which more is better
        ([FALLING, FALLING, [(80, 2.0), (100, 3.0)]], True),  # one that rises makes up for none that falls
        ([FALLING, FLAT], False),  # half of them
        ([FLAT, []], False),  # as far as there are curves
    ],
)
def test_trainings_that_ended_too_early(curves, decisive):
    """In the baseline as in the arm with the method."""
    for limits in (unfinished(curves), unfinished(curves, [FLAT] * 9), unfinished([FLAT] * 9, curves)):
        assert len(limits) == decisive
        assert all(limit.decisive and limit.cause == "budget" and "after update" in limit.text for limit in limits)


def test_what_is_said_of_them():
    (limit,) = unfinished([FALLING, FALLING], [FLAT])
    assert "improves by 5.0 % after update 80 of 100 in 2 of 3 trainings" in limit.text


@pytest.mark.parametrize("curves", [[], [[]], [[(100, 2.0)]]])
def test_nothing_is_taken_for_learned_without_a_curve(curves):
    for limits in (unfinished(curves), unfinished([FLAT], curves)):
        assert limits[0].decisive and limits[0].text.startswith("no validation curve was kept")


def test_bits_are_judged_by_perplexity():
    """0.02 bits are 0.2 % of 10 bits, and 1.4 % of any perplexity."""
    curve = [(80, 10.02), (100, 10.0)]
    assert not unfinished([curve]) and unfinished([perplexities(curve)])


def runs(*ends: int) -> list[dict[str, Any]]:
    return [{"epochs": end} for end in ends]


@pytest.mark.parametrize(
    ("off", "on", "decisive"),
    [
        (runs(*[50] * 10), runs(*[50] * 10), None),
        (runs(*[50] * 9, 99), runs(*[50] * 9, 99), None),  # a tenth
        (runs(*[50] * 9, 99), runs(*[50] * 8, 99, 99), False),
        (runs(*[50] * 5, *[99] * 5), runs(50), False),  # half
        (runs(*[50] * 4, *[99] * 5), runs(*[50] * 90), True),  # most of an arm
        (runs(50), runs(99), True),
        (runs(), runs(50), True),  # not known
        (runs(50), [{"f1": 0.5}], True),
    ],
)
def test_trainings_that_the_last_epoch_ended(off, on, decisive):
    limits = cut_short({"off": off, "on": on}, 99)
    assert [limit.decisive for limit in limits] == ([] if decisive is None else [decisive])


def test_what_is_said_of_those_that_were_cut():
    """The best validation so far is flat whatever has been learned, so its rise is said and does not decide."""
    flat = [{"curve": [[10, 0.5], [99, 0.5]]}] * 3
    (limit,) = cut_short({"off": flat, "on": runs(50)}, 99)
    assert limit.decisive and limit.text == (
        "epoch 99, the last allowed, ends trainings (3 of 3 off, 0 of 1 on), in whose last 20 % the best validation "
        "rises by 0.0 %: allow more"
    )
    assert last_epoch(flat[0]) == 99 and last_epoch({"epochs": 7, "curve": [[9, 0.5]]}) == 7 and last_epoch({}) is None


def best(*epochs: int) -> list[dict[str, Any]]:
    return [{"best_epoch": epoch} for epoch in epochs]


@pytest.mark.parametrize(
    ("off", "on", "decisive"),
    [
        (best(*[20] * 9, 21), best(*[20] * 10), None),  # half the rate itself, and a few below it
        (best(*[5] * 5, *[50] * 5), best(5), False),  # half
        (best(*[5] * 4, *[50] * 5), best(*[5] * 90), True),  # most of an arm
        (best(5), [{"curve": [[10, 0.4], [30, 0.5], [60, 0.5]]}], True),  # the first that is as good as the end
        ([{}], [{"curve": []}], None),  # not known
    ],
)
def test_trainings_that_learned_at_a_low_rate(off, on, decisive):
    limits = slowed({"off": off, "on": on}, lambda epoch: 10 / epoch)
    assert [limit.decisive for limit in limits] == ([] if decisive is None else [decisive])
    if decisive:
        assert "had fallen by half (" in limits[0].text
