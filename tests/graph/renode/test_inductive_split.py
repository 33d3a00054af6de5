"""Inductive splits."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairseq_ext.training.errors import DataError, OptionError
from graph.renode.inductive_split import inductive_split
from graph.renode.splits import first_of_each_class


@given(st.integers(0, 1000), st.sampled_from(["tinl", "qinl"]))
def test_split_covers_every_node_once(seed, label_sampling):
    y = np.random.default_rng(seed).integers(3, size=200)
    split = inductive_split(y, 12, label_sampling, seed)
    np.testing.assert_array_equal(np.sort(np.concatenate(split)), np.arange(200))
    assert [len(split.train), len(split.valid)] == [36, 54]
    assert all((np.diff(part) > 0).all() for part in split)
    if label_sampling == "tinl":
        assert (np.bincount(y[split.train]) == 12).all() and (np.bincount(y[split.valid]) == 18).all()


@given(st.data())
def test_the_first_of_each_class_are_those_of_a_search_for_each(data):
    classes = data.draw(st.integers(1, 4))
    y = np.array(data.draw(st.lists(st.integers(-1, classes - 1), min_size=1, max_size=30)))
    order = np.array(data.draw(st.permutations(range(len(y)))))
    quota = [data.draw(st.integers(0, int((y == label).sum()))) for label in range(classes)]
    expected = [
        node
        for place, node in enumerate(order)
        if 0 <= y[node] and (y[order[:place]] == y[node]).sum() < quota[y[node]]
    ]
    assert first_of_each_class(order, y, quota, "--each", "").tolist() == expected


def test_the_first_of_each_class_keep_their_order():
    """Nodes without class are passed over."""
    y = np.array([1, 0, -1, 1, 0, 1])
    assert first_of_each_class(np.array([5, 2, 4, 3, 1, 0]), y, [1, 2], "--each", "").tolist() == [5, 4, 3]
    with pytest.raises(OptionError, match=r"^--each: class 0 has only 1 of 2 nodes left; at most 1$"):
        first_of_each_class(np.array([5, 2, 4, 3]), y, [2, 1], "--each", "at most 1")


def test_a_class_that_is_not_drawn_is_refused():
    """What is named as enough is so, and no less is."""
    y = np.array([0] * 90 + [1] * 9 + [2])
    with pytest.raises(OptionError, match=r"^--train-each 4 leaves class 2 without training nodes; ") as refusal:
        inductive_split(y, 4, "qinl")
    enough = int(re.search(r"drawn from (\d+) on$", str(refusal.value))[1])
    assert 2 in y[inductive_split(y, enough, "qinl").train]
    with pytest.raises(OptionError, match="class 2"):
        inductive_split(y, enough - 1, "qinl")


@pytest.mark.parametrize("label_sampling", ["tinl", "qinl"])
def test_a_node_without_class_is_refused(label_sampling):
    with pytest.raises(DataError, match=r"^y: every node needs a class"):
        inductive_split(np.array([0, 1, -1] * 9), 1, label_sampling)
