"""Splits: how graphs are divided, and in which forms their classes come."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch_geometric.data import Data

from fairseq_ext.training.errors import DataError, OptionError
from graph.graph_classification.splits import class_labels, random_splits, stratified_folds

LABELS = torch.tensor([0] * 60 + [1] * 43)


def test_random_splits_are_80_10_10():
    splits = random_splits(LABELS, runs=3, repeats=2, seed=5)
    names = [f"repeat{repeat}-run{number}" for repeat in range(2) for number in range(3)]
    assert [split.name for split in splits] == names
    assert [split.seed for split in splits] == [5, 6, 7, 8, 9, 10]
    for split in splits:
        assert (len(split.train), len(split.valid), len(split.test)) == (83, 10, 10)
        assert torch.cat(split[2:]).sort().values.tolist() == list(range(103))
    assert len({tuple(split.test.tolist()) for split in splits}) == 6


def test_random_splits_depend_on_the_seed_alone():
    torch.manual_seed(1)
    first = random_splits(LABELS, runs=1)[0]
    torch.manual_seed(2)
    assert torch.equal(first.train, random_splits(LABELS, runs=1)[0].train)
    assert not torch.equal(first.train, random_splits(LABELS, runs=1, seed=1)[0].train)


def test_each_graph_is_tested_and_validated_once_a_repeat():
    splits = stratified_folds(LABELS, folds=5, repeats=2)
    assert [split.name for split in splits[4:6]] == ["repeat0-fold4", "repeat1-fold0"]
    assert len({split.seed for split in splits}) == 10
    for repeat in (splits[:5], splits[5:]):
        for part in ("test", "valid"):
            assert torch.cat([getattr(split, part) for split in repeat]).sort().values.tolist() == list(range(103))
    for split in splits:
        assert torch.cat(split[2:]).sort().values.tolist() == list(range(103))
        assert LABELS[split.test].double().mean() == pytest.approx(43 / 103, abs=0.03)
    assert {frozenset(s.test.tolist()) for s in splits[:5]} != {frozenset(s.test.tolist()) for s in splits[5:]}


def test_a_digest_is_of_the_seed_and_of_every_part():
    split = random_splits(LABELS, runs=1)[0]
    changed = [
        split._replace(seed=9),
        *(split._replace(**{part: split.test[:2]}) for part in ("train", "valid", "test")),
    ]
    assert len({each.digest for each in (split, *changed)}) == 5
    assert split._replace(name="other").digest == split.digest


@pytest.mark.parametrize(("folds", "reason"), [(1, "at least 3"), (2, "at least 3"), (44, "smallest class has 43")])
def test_folds_out_of_range(folds, reason):
    with pytest.raises(OptionError, match=f"--folds: {folds}, .*{reason}"):
        stratified_folds(LABELS, folds)


def test_too_few_graphs_for_a_random_split():
    with pytest.raises(DataError, match=r"9 graphs, .* at least 10"):
        random_splits(LABELS[:9], 1)


@pytest.mark.parametrize(
    "labels",
    [LABELS.int(), LABELS.byte(), LABELS.bool(), LABELS.double(), LABELS[:, None], LABELS.numpy(), LABELS.tolist()],
    ids=["int", "byte", "bool", "double", "column", "array", "list"],
)
def test_labels_of_any_type_are_split_alike(labels):
    for make in (random_splits, stratified_folds):
        for split, wanted in zip(make(labels, 3), make(LABELS, 3), strict=True):
            assert all(torch.equal(a, b) for a, b in zip(split[2:], wanted[2:], strict=True))


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        (LABELS + 0.5, r"labels must be class numbers of shape \(n,\), got fractions or infinite ones"),
        (LABELS - 1, "labels: graph 0 has no class number from 0 on"),
        (LABELS.float() * float("nan"), "labels: graph 0 has no class number from 0 on"),
        (np.zeros((103, 2)), r"labels must be class numbers of shape \(n,\), got torch.float64 of shape \(103, 2\)"),
    ],
)
def test_labels_that_are_none(labels, reason):
    for make in (random_splits, stratified_folds):
        with pytest.raises(DataError, match=reason):
            make(labels, 3)


def test_class_numbers_may_leave_one_out():
    assert len(stratified_folds([0] * 5 + [2] * 5, 3)) == 3


@pytest.mark.parametrize("y", [torch.tensor([1]), torch.tensor([[1]]), torch.tensor(1.0), 1, np.array([1])], ids=str)
def test_the_class_of_a_graph_in_any_form(y):
    graphs = [Data(x=torch.ones(1, 1), y=y), Data(x=torch.ones(1, 1), y=torch.tensor([0]))]
    assert class_labels(graphs).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (None, "graph 1 has 0 labels y"),
        (torch.tensor([0, 1]), "graph 1 has 2 labels y; each graph must have one class"),
        (torch.tensor([0.5]), "y must be class numbers .* got fractions"),
        (torch.tensor([float("nan")]), "y: graph 1 has no class number from 0 on"),
    ],
)
def test_graphs_without_one_class(y, message):
    with pytest.raises(DataError, match=f"dataset: {message}"):
        class_labels([Data(y=torch.tensor([0])), Data(y=y)])
