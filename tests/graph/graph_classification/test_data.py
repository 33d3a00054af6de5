"""Data sets and splits: what is loaded, how it is divided, what is refused."""

from __future__ import annotations

import pytest
import torch

from fairseq_ext.errors import DataError, OptionError
from graph.graph_classification.data import load_dataset, random_splits, stratified_folds

from .conftest import write_tu

NODE_LABELS = "\n".join(["1"] * sum(4 + number % 5 for number in range(40)))
LABELS = torch.tensor([0] * 60 + [1] * 43)


def test_random_splits_are_80_10_10():
    splits = random_splits(LABELS, runs=3, repeats=2, seed=5)
    assert [split.name for split in splits] == ["0/0", "0/1", "0/2", "1/0", "1/1", "1/2"]
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
    assert len({split.seed for split in splits}) == 10
    for repeat in (splits[:5], splits[5:]):
        for part in ("test", "valid"):
            assert torch.cat([getattr(split, part) for split in repeat]).sort().values.tolist() == list(range(103))
    for split in splits:
        assert torch.cat(split[2:]).sort().values.tolist() == list(range(103))
        assert LABELS[split.test].double().mean() == pytest.approx(43 / 103, abs=0.03)
    assert {frozenset(s.test.tolist()) for s in splits[:5]} != {frozenset(s.test.tolist()) for s in splits[5:]}


@pytest.mark.parametrize(("folds", "found"), [(1, "at least 3"), (2, "at least 3"), (44, "smallest class has 43")])
def test_folds_out_of_range(folds, found):
    with pytest.raises(OptionError, match=f"--folds: {folds}, .*{found}"):
        stratified_folds(LABELS, folds)


def test_too_few_graphs_for_a_random_split():
    with pytest.raises(DataError, match=r"9 graphs, .* at least 10"):
        random_splits(LABELS[:9], 1)


def test_degrees_are_the_features_of_a_data_set_without_any(rings):
    dataset = load_dataset(rings, "RINGS")
    assert (len(dataset), dataset.num_features, dataset.num_classes) == (40, 128, 2)
    assert dataset[0].x.argmax(1).tolist() == [1, 2, 2, 1]  # a path
    assert dataset[1].x.argmax(1).tolist() == [2] * 5  # a ring


def test_node_attributes_are_features_on_demand(tmp_path):
    nodes = sum(4 + number % 5 for number in range(40))
    labels = "\n".join(str(node % 3) for node in range(nodes))
    attributes = "\n".join(f"{node}.5, 1.0" for node in range(nodes))
    root = write_tu(tmp_path, node_labels=labels, node_attributes=attributes)
    assert load_dataset(root, "RINGS").num_features == 3
    assert load_dataset(root, "RINGS", use_node_attr=True).num_features == 5


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"graph_labels": None}, "40 graphs, but no labels"),
        ({"graph_labels": "0\n1\n0"}, "40 graphs, but 3 labels"),
        ({"graph_labels": "\n".join("3" * 40)}, "all graphs are of one class"),
        ({"graph_labels": "\n".join("x" * 40)}, "cannot read .*ValueError"),
        ({"graph_indicator": None}, "cannot read"),
        ({"A": "1, 9999", "node_labels": NODE_LABELS}, "cannot read .*IndexError"),
        ({"node_attributes": "\n".join(["nan"] * NODE_LABELS.count("1"))}, "240 NaN or infinities"),
    ],
    ids=[
        "no-labels",
        "few-labels",
        "one-class",
        "no-number",
        "no-indicator",
        "edge-out-of-range",
        "nan",
    ],
)
def test_files_that_cannot_be_used(tmp_path, files, message):
    root = write_tu(tmp_path, **files)
    with pytest.raises(DataError, match=f"--dataset RINGS: .*{message}") as refusal:
        load_dataset(root, "RINGS", use_node_attr=True)
    assert "\n" not in str(refusal.value)


def test_an_edge_between_two_graphs(tmp_path):
    root = write_tu(tmp_path, node_labels=NODE_LABELS)
    with open(root / "RINGS" / "raw" / "RINGS_A.txt", "a") as file:
        file.write("1, 12\n")
    with pytest.raises(DataError, match=r"--dataset RINGS: graph 0 of .*'edge_index' contains larger indices"):
        load_dataset(root, "RINGS")


def test_unknown_name_gets_the_nearest(rings):
    with pytest.raises(OptionError, match=r"--dataset: 'PROTIENS' .*did you mean 'PROTEINS'"):
        load_dataset(rings, "PROTIENS")
    with pytest.raises(OptionError, match="did you mean 'RINGS'"):
        load_dataset(rings, "RING")


def test_a_name_that_is_like_no_other_is_left_to_torch_geometric(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("torch_geometric.datasets.TUDataset.download", lambda self: asked.append(self.name))
    for name in ("Fingerprint", "COX2_MD", "NCI-H23"):
        with pytest.raises(DataError, match=f"--dataset {name}: "):
            load_dataset(tmp_path, name)
    assert asked == ["Fingerprint", "COX2_MD", "NCI-H23"]


def test_a_known_data_set_that_cannot_be_downloaded(tmp_path, monkeypatch):
    def refuse(self):
        raise ConnectionError("no network")

    monkeypatch.setattr("torch_geometric.datasets.TUDataset.download", refuse)
    with pytest.raises(DataError, match=r"--dataset NCI1: not there, and cannot be downloaded: .*no network"):
        load_dataset(tmp_path, "NCI1")
