from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import load_golden
from vision_language.image_classification.long_tail import (
    GROUPS,
    THIRDS,
    group_metrics,
    groups,
    long_tail_counts,
    long_tail_subset,
)

CASES = load_golden("encouraging_loss_images", "longtail_a")
KINDS = {"exp": "exponential", "step": "step"}


@pytest.mark.parametrize("case", CASES["cases"])
def test_counts_and_groups_are_those_of_the_fixture(case):
    kind, classes, largest, factor = case.split("_")
    counts = long_tail_counts(int(classes), int(largest), int(factor), KINDS[kind])
    assert counts == CASES[f"{case}_counts"].tolist()
    assert [GROUPS.index(group) for group in groups(counts)] == CASES[f"{case}_group"].tolist()


def test_metrics_are_those_of_the_fixture():
    data = load_golden("encouraging_loss_images", "groups_a")
    labels, predicted = (torch.from_numpy(data[name]) for name in ("labels", "preds"))
    metrics = group_metrics(labels, predicted, data["train_counts"].tolist())
    for name in metrics.keys() - set(THIRDS):
        value = metrics[name]
        np.testing.assert_allclose(value, data[name], rtol=0, atol=1e-12, err_msg=name)


def test_an_empty_group_has_no_accuracy():
    labels = torch.tensor([0, 1])
    metrics = group_metrics(labels, labels, [500, 200])
    assert (metrics["many"], metrics["medium"], metrics["few"]) == (1.0, None, None)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([100, 5, 50, 20, 20], (0.75, 0.25, 0.5)),  # 0 2 | 3 4 | 1
        ([9] * 3, (1, 0.5, 0.5)),
        ([7, 8], (0.5, 1, None)),
    ],
)
def test_thirds_go_from_the_largest_class_on(counts, expected):
    """Class 0 is always found, class 3 never, the others in half of the cases."""
    labels, right = torch.arange(len(counts)).repeat_interleave(2), torch.tensor([1, 1, 0, 1, 0, 1, 0, 0, 0, 1])
    predicted = torch.where(right[: len(labels)].bool(), labels, (labels + 1) % len(counts))
    metrics = group_metrics(labels, predicted, counts)
    assert tuple(metrics[name] for name in THIRDS) == expected


def test_a_class_without_a_test_image_counts_in_no_mean():
    metrics = group_metrics(torch.tensor([0, 2, 2]), torch.tensor([0, 1, 2]), [500, 500, 5])
    assert metrics["class_accuracy"] == [1.0, None, 0.5]
    assert (metrics["balanced_accuracy"], metrics["many"], metrics["few"]) == (0.75, 1.0, 0.5)


@given(seed=st.integers(0, 2**31), factor=st.floats(1, 20), kind=st.sampled_from(list(KINDS.values())))
def test_a_subset_has_the_counts_and_smaller_ones_are_inside(seed, factor, kind):
    labels = torch.arange(4).repeat(40)
    counts = long_tail_counts(4, 40, factor, kind)
    subset = long_tail_subset(labels, counts, seed)
    assert labels[subset].bincount(minlength=4).tolist() == counts
    smaller = long_tail_subset(labels, [max(1, count // 2) for count in counts], seed)
    assert set(smaller.tolist()) <= set(subset.tolist())
    assert torch.equal(subset, long_tail_subset(labels, counts, seed))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((10, 100, 0.5), "factor must be at least 1, got 0.5"),
        ((10, 100, float("nan")), "factor must be at least 1, got nan"),
        ((1, 100, 10), "at least 2 classes, got 1"),
        ((10, 100, 1000), "factor 1000 leaves class 7 without an image of 100"),
        ((10, 100, 10, "exp"), "kind must be one of exponential, step, got 'exp'"),
    ],
)
def test_refused_tails(arguments, message):
    with pytest.raises(ValueError, match=message):
        long_tail_counts(*arguments)


def test_a_class_that_is_too_small_is_refused():
    with pytest.raises(ValueError, match="class 1 must have at least 3 images, got 1"):
        long_tail_subset(torch.tensor([0, 0, 0, 1]), [3, 3])
