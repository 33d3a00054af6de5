"""Inductive splits."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from graph.renode.inductive_split import inductive_split


@given(st.integers(0, 1000), st.sampled_from(["tinl", "qinl"]))
def test_split_covers_every_node_once(seed, label_sampling):
    y = np.random.default_rng(seed).integers(3, size=200)
    split = inductive_split(y, 12, label_sampling, seed)
    np.testing.assert_array_equal(np.sort(np.concatenate(split)), np.arange(200))
    assert [len(split.train), len(split.valid)] == [36, 54]
    assert all((np.diff(part) > 0).all() for part in split)
    if label_sampling == "tinl":
        assert (np.bincount(y[split.train]) == 12).all() and (np.bincount(y[split.valid]) == 18).all()
