"""Data sets: what is loaded, and what is refused."""

from __future__ import annotations

import os
import shutil

import pytest
import torch
from torch_geometric.data import Data

from fairseq_ext.training.errors import DataError, OptionError
from graph.graph_classification.data import dataset_digest, load_dataset
from tests.graph.graph_classification.conftest import write_tu
from tests.helpers import damaged_texts

NODE_LABELS = "\n".join(["1"] * sum(4 + number % 5 for number in range(40)))


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
        ({"node_attributes": "\n".join("1" * 239)}, "240 nodes, but features of 239"),
        ({"node_labels": "\n".join("1" * 239)}, "240 nodes, but features of 239"),
        ({"A": "1, 9999", "node_labels": NODE_LABELS}, "cannot read .*IndexError"),
        ({"node_attributes": "\n".join(["nan"] * NODE_LABELS.count("1"))}, "240 NaN or infinities"),
    ],
    ids=[
        "no-labels",
        "few-labels",
        "one-class",
        "no-number",
        "no-indicator",
        "few-attributes",
        "few-node-labels",
        "edge-out-of-range",
        "nan",
    ],
)
def test_files_that_cannot_be_used(tmp_path, files, message):
    root = write_tu(tmp_path, **files)
    with pytest.raises(DataError, match=f"--dataset RINGS: .*{message}") as refusal:
        load_dataset(root, "RINGS", use_node_attr="node_attributes" in files)
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


@pytest.mark.parametrize("kind", [*damaged_texts(b"1\n2\n"), "empty", "byte order mark", "words"])
@pytest.mark.parametrize("file", ["A", "graph_indicator", "graph_labels", "node_labels", "node_attributes"])
def test_damaged_files_are_named(tmp_path, file, kind):
    root = write_tu(tmp_path, node_labels=NODE_LABELS, node_attributes=NODE_LABELS)
    path = root / "RINGS" / "raw" / f"RINGS_{file}.txt"
    (path.parent / "README.txt").write_text("Of published data, which is not read.")
    good = path.read_bytes()
    more = {"empty": b"", "byte order mark": b"\xef\xbb\xbf" + good, "words": good + b"three, four\n"}
    path.write_bytes({**damaged_texts(good), **more}[kind])
    if kind == "plain text.gz":  # which is no damage where the name does not end so
        assert len(load_dataset(root, "RINGS")) == 40
        return
    with pytest.raises(DataError) as refusal:
        load_dataset(root, "RINGS")
    assert str(path) in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda text: text.removesuffix("\n"),
            ": the last line has no line feed at its end, and would be lost; add one",
        ),
        (lambda text: text + "\n", ": line {last} is blank"),
        (lambda text: "\n" + text, ": line 1 is blank"),
        (lambda text: text.replace("\n", "\n \r\n", 1), ": line 2 is blank"),
        (lambda text: "\ufeff" + text, " begins with a byte order mark; save it as UTF-8 without one"),
        (lambda text: "", " is empty"),
    ],
    ids=["no-line-feed", "blank-end", "blank-start", "blank-line", "byte-order-mark", "empty"],
)
@pytest.mark.parametrize(("file", "downloaded"), [("A", False), ("edge_labels", True)])
def test_no_line_is_lost(tmp_path, monkeypatch, file, change, message, downloaded):
    made = write_tu(tmp_path / "made", node_labels=NODE_LABELS)
    lines = (made / "RINGS" / "raw" / "RINGS_A.txt").read_text()
    (made / "RINGS" / "raw" / "RINGS_edge_labels.txt").write_text("1\n" * lines.count("\n"))
    (made / "RINGS" / "raw" / "README.txt").write_text("\n\nof published data, which is not read")
    assert len(load_dataset(made, "RINGS")) == 40
    path = made / "RINGS" / "raw" / f"RINGS_{file}.txt"
    path.write_text(change(path.read_text()), newline="")
    root = tmp_path / "other" if downloaded else made

    def download(self):
        shutil.copytree(made / "RINGS" / "raw", self.raw_dir, dirs_exist_ok=True)

    monkeypatch.setattr("torch_geometric.datasets.TUDataset.download", download)
    with pytest.raises(DataError) as refusal:
        load_dataset(root, "RINGS")
    where = root / "RINGS" / "raw" / f"RINGS_{file}.txt"
    assert str(refusal.value) == f"--dataset RINGS: {where}{message.format(last=lines.count(chr(10)) + 1)}"


def test_lines_may_end_as_on_windows(tmp_path):
    root = write_tu(tmp_path, node_labels=NODE_LABELS)
    before = dataset_digest(load_dataset(root, "RINGS"))
    for path in (root / "RINGS" / "raw").iterdir():
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert dataset_digest(load_dataset(root, "RINGS")) == before


@pytest.mark.parametrize("recorded", [True, False])
def test_changed_raw_files_are_read_again(rings, recorded):
    first = load_dataset(rings, "RINGS")
    if not recorded:  # the copy of torch_geometric alone
        (rings / "RINGS" / "processed" / "raw.sha256").unlink()
    path = rings / "RINGS" / "raw" / "RINGS_graph_labels.txt"
    old = path.stat().st_mtime
    path.write_text("\n".join(str(int(number % 3 == 0)) for number in range(40)) + "\n")
    os.utime(path, (old - 9, old - 9))
    second = load_dataset(rings, "RINGS")
    assert second.y.tolist() == [int(number % 3 == 0) for number in range(40)] != first.y.tolist()


def test_an_unchanged_data_set_is_not_read_again(rings, monkeypatch):
    first = load_dataset(rings, "RINGS")
    monkeypatch.setattr("torch_geometric.datasets.TUDataset.process", lambda _: pytest.fail("processed again"))
    assert dataset_digest(load_dataset(rings, "RINGS")) == dataset_digest(first)


class Copier:
    """Copies a file when unpickled without torch's safe loader, by a function that the loader does not know as evil."""

    def __init__(self, source, target):
        self.arguments = str(source), str(target)

    def __reduce__(self):
        return shutil.copyfile, self.arguments


def test_a_hostile_copy_runs_no_code(rings, tmp_path):
    load_dataset(rings, "RINGS")
    hostile, payload = rings / "RINGS" / "processed" / "data.pt", tmp_path / "payload"
    torch.save(({"x": Copier(__file__, payload)}, {}, {}, Data), hostile)
    with pytest.raises(DataError, match=r"--dataset RINGS: cannot read"):
        load_dataset(rings, "RINGS")
    assert not payload.exists()
    torch.load(hostile, weights_only=False)
    assert payload.exists(), "the payload works, so it was the safe loader that stopped it"


def test_the_digest_is_that_of_the_graphs_in_their_order(rings):
    dataset = load_dataset(rings, "RINGS")
    assert dataset_digest(dataset) == dataset_digest([graph for graph in dataset])
    others = [dataset[:30], dataset[5:35], dataset[list(range(39, -1, -1))]]
    for name, change in (("x", torch.ones(4, 128)), ("y", torch.tensor([1])), ("edge_index", torch.zeros(2, 2).long())):
        graphs = [graph for graph in dataset]
        setattr(graphs[0], name, change)
        others.append(graphs)
    assert len({dataset_digest(other) for other in (dataset, *others)}) == 1 + len(others)


def test_attributes_that_are_not_there_are_refused(tmp_path):
    root = write_tu(tmp_path, node_labels=NODE_LABELS)
    with pytest.raises(OptionError, match="--use-node-attr: has no effect with --dataset RINGS"):
        load_dataset(root, "RINGS", use_node_attr=True)
