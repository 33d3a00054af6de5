"""F1 by counts beside scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from fairseq_ext.training.errors import OptionError
from graph.renode.metrics import f1, f1_scores

CLASS = st.integers(-1, 6)


@given(st.lists(st.tuples(CLASS, CLASS), min_size=1, max_size=30), st.sampled_from([np.array, torch.tensor]))
def test_counts_give_scikit_learns_f1(pairs, form):
    """Also where classes are absent of either side or of both, and where nothing is right."""
    truth, predicted = map(list, zip(*pairs, strict=True))
    for average in ("weighted", "macro"):
        expected = f1_score(truth, predicted, average=average, zero_division=0)
        assert f1(form(truth), form(predicted), average) == pytest.approx(expected, rel=1e-12, abs=0)


def test_both_means_by_hand():
    # class 0: 2 of 3 found, nothing else called so: 4 / 5; class 2: 1 right of 1, called twice: 2 / 3; class 1: none
    scores = f1_scores(torch.tensor([0, 0, 0, 2]), torch.tensor([0, 0, 2, 2]), "test_")
    assert scores == pytest.approx({"test_weighted_f1": (3 * 4 / 5 + 2 / 3) / 4, "test_macro_f1": (4 / 5 + 2 / 3) / 2})


def test_what_is_asked_for_at_every_epoch_does_not_sort_all_nodes(monkeypatch):
    for name in ("sort", "argsort", "unique"):
        monkeypatch.setattr(np, name, None)
    assert f1(np.array([0, 1, 1]), np.array([0, 1, 0])) == pytest.approx(2 / 3)


def test_other_means_are_refused():
    with pytest.raises(OptionError, match="average"):
        f1([0], [0], "micro")
