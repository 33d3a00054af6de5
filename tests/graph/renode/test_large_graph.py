"""Large graphs: files as they are written, and broken ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import sparse

from benchmarks.totoro import numpy_peak_bytes
from fairseq_ext.training.errors import DataError
from graph.renode.large_graph import LargeGraph, read_large_graph
from tests.graph.renode.large_graphs import a_graph, batches_of, write_npz


@pytest.mark.parametrize("joint", ["_", "."])
def test_npz_is_read_as_written(tmp_path, joint):
    graph = a_graph()
    content = read_large_graph(write_npz(graph, tmp_path / "graph.npz", joint))
    assert (content.adjacency != graph.adjacency).nnz == 0 and (content.x != graph.x).nnz == 0
    np.testing.assert_array_equal(content.y, graph.y)


def test_npz_edges_become_undirected_without_loops_or_weights(tmp_path):
    directed = sparse.csr_array(np.array([[1, 2, 0], [0, 0, 1], [0, 3, 0]], np.float32))
    arrays = {f"adj_{part}": getattr(directed, part) for part in ("data", "indices", "indptr", "shape")}
    np.savez(tmp_path / "graph.npz", labels=[0, 1, 0], attr_matrix=np.eye(3), **arrays)
    content = read_large_graph(tmp_path / "graph.npz")
    np.testing.assert_array_equal(content.adjacency.toarray(), [[0, 1, 0], [1, 0, 1], [0, 1, 0]])
    np.testing.assert_array_equal(content.x, np.eye(3))


def test_features_stay_on_disk(tmp_path):
    graph = a_graph()
    write_npz(graph, tmp_path / "graph.npz")
    np.save(tmp_path / "x.npy", graph.x.toarray())
    content = read_large_graph(tmp_path / "graph.npz", tmp_path / "x.npy")
    assert isinstance(content.x, np.memmap)
    nodes = np.arange(30)
    (batch,), (expected,) = batches_of(content, nodes), batches_of(graph, nodes)
    assert torch.equal(batch.x, expected.x.to_dense())


@pytest.mark.parametrize("order", ["C", "F"])
def test_features_are_looked_through_without_a_copy(order, tmp_path):
    """Also wide ones of few nodes, of which a block of rows would be the whole."""
    for shape in ((500_000, 8), (8, 500_000)):
        x, y = np.zeros(shape, np.float32, order), np.arange(shape[0]) % 2
        x[-1, -1] = np.nan
        np.save(tmp_path / "x.npy", x)
        features = np.load(tmp_path / "x.npy", mmap_mode="r+")
        with pytest.raises(DataError, match="NaN"):
            LargeGraph(torch.zeros(2, 0, dtype=torch.long), features, y)
        features[-1, -1] = 0
        graph = LargeGraph(torch.zeros(2, 0, dtype=torch.long), features, y)
        assert numpy_peak_bytes(graph.__post_init__) < features.size / 2, "a byte a value, or more"
        assert numpy_peak_bytes(lambda graph=graph: graph.digest) < 0.75 * features.nbytes


def test_a_digest_is_of_edges_features_and_classes():
    """The two sparse features hold the same values in the same columns, in other rows."""
    edges, y = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]]), np.array([0, 1, 0])
    x = sparse.csr_array((np.ones(2), np.array([0, 1]), np.array([0, 1, 2, 2])), shape=(3, 2))
    moved = sparse.csr_array((np.ones(2), np.array([0, 1]), np.array([0, 2, 2, 2])), shape=(3, 2))
    digests = [
        LargeGraph(*given).digest
        for given in ((edges, x, y), (edges[:, :2], x, y), (edges, moved, y), (edges, 2 * x, y), (edges, x, 1 - y))
    ]
    assert len(set(digests)) == len(digests) and LargeGraph(edges.clone(), x.copy(), y.copy()).digest == digests[0]


def broken_files(folder: Path):
    graph = a_graph(20)
    whole = dict(np.load(write_npz(graph, folder / "whole.npz")))
    (folder / "text.npz").write_text("no archive")
    yield folder / "absent.npz", "no such file"
    yield folder / "text.npz", "not an .npz file"
    for name, change, message in (
        ("part", {"adj_indptr": None}, "no array 'adj_indptr'"),
        ("labels", {"labels": None}, "labels"),
        ("pickle", {"labels": np.array([{}] * 20)}, "allow_pickle=False"),
        ("fewer", {"labels": whole["labels"][:-1]}, r"adj_shape \(20, 20\) for 19 labels"),
        ("negative", {"labels": whole["labels"] - 1}, "classes are numbered from 0"),
        ("nan", {"attr_data": whole["attr_data"] * np.nan}, "features: NaN or infinite"),
        ("columns", {"labels": whole["labels"].reshape(10, 2)}, r"labels must be class numbers .*\(10, 2\)"),
        ("half", {"labels": whole["labels"] + 0.5}, "labels must be class numbers .* got fractions"),
        ("words", {"attr_matrix": np.array([["a"]] * 20)}, "features: real numbers are needed"),
        ("complex", {"attr_matrix": np.full((20, 2), 1j)}, "features: real numbers are needed, got complex128"),
        ("packed", {"attr_data": whole["attr_data"] * 1j}, "attr_data must be real numbers, got complex"),
        ("adjacency", {"adj_data": whole["adj_data"] * 1j}, "adj_data must be real numbers, got complex"),
        ("range", {"attr_indices": whole["attr_indices"] + 9}, "ind"),
    ):
        arrays = {key: value for key, value in (whole | change).items() if value is not None}
        np.savez(folder / f"{name}.npz", **arrays)
        yield folder / f"{name}.npz", message


def test_broken_files_are_refused_in_one_line(tmp_path):
    for path, message in broken_files(tmp_path):
        with pytest.raises(DataError, match=message) as error:
            read_large_graph(path)
        assert "\n" not in str(error.value), path


def test_broken_features_are_named(tmp_path):
    path = write_npz(a_graph(20), tmp_path / "graph.npz")
    (tmp_path / "text.npy").write_text("no array")
    np.save(tmp_path / "short.npy", np.ones((19, 4)))
    for name, message in (
        ("absent.npy", "No such file"),
        ("text.npy", "pickle"),
        ("graph.npz", "holds several arrays"),
        ("short.npy", r"features: got shape \(19, 4\) for 20 labels"),
    ):
        with pytest.raises(DataError, match=message) as error:
            read_large_graph(path, tmp_path / name)
        assert str(error.value).startswith(f"{tmp_path / name}: ") and "\n" not in str(error.value)


def test_edges_out_of_range():
    with pytest.raises(DataError, match=r"edge_index: .* nodes 0 to 3"):
        _ = LargeGraph(torch.tensor([[0], [3]]), np.ones((3, 2)), np.array([0, 1, 1])).adjacency
