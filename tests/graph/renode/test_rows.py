"""Rows and weights of labelled nodes: those of the released code, and of graphs in other forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch_geometric.datasets import Planetoid

from fairseq_ext.training.errors import OptionError
from graph.renode.inductive_split import inductive_split
from graph.renode.large_graph import LargeGraph
from graph.renode.pprgo import RowBatches
from graph.renode.push import push_pagerank
from graph.renode.rows import labelled_weights
from tests.graph.renode.large_graphs import a_graph, rows_of
from tests.helpers import load_golden


@pytest.mark.parametrize("name", ["tinl_w0.75_0.5", "qinl_w0.5_1", "tinl_w1_0"])
def test_released_splits_rows_and_weights(name, planetoid_root):
    released = load_golden("renode", f"inductive_cora_{name}")
    graph = LargeGraph.from_data(Planetoid(planetoid_root, "Cora")[0])
    split = inductive_split(graph.y, 20, name[:4])
    np.testing.assert_array_equal(split.train, released["train_idx"])
    np.testing.assert_array_equal(split.valid, released["val_idx"])
    assert len(split.test) == released["n_test"]
    rows = push_pagerank(graph.edge_index, torch.from_numpy(split.train), len(graph.y))
    np.testing.assert_array_equal(np.diff(rows.indptr), released["nnz_per_row"])
    low = float(released["base_w"])
    bounds = {"w_min": low, "w_max": low + float(released["scale_w"])}
    weights = labelled_weights(graph, split.train, rows, score="push-softmax", **bounds)
    # Scores of neighbours in rank that differ by less than float32 tells may swap.
    swapped = np.abs(weights - released["rn_weight"]) > 1e-5
    assert swapped.sum() <= 2
    np.testing.assert_allclose(np.sort(weights), np.sort(released["rn_weight"]), atol=1e-5)
    np.testing.assert_allclose(released["totoro"][swapped], released["totoro"][swapped][::-1], rtol=1e-6)


def test_exact_scores_are_the_default_and_differ():
    graph = a_graph()
    nodes = inductive_split(graph.y, 10).train
    rows = rows_of(graph, nodes)
    exact, released = (labelled_weights(graph, nodes, rows, **score) for score in ({}, {"score": "push-softmax"}))
    assert (exact != released).any()
    np.testing.assert_allclose([exact.mean(), exact.min(), exact.max()], [1, 0.75, 1.25], atol=1e-6)
    with pytest.raises(OptionError, match="--totoro: 'push' is not one of exact, push-softmax"):
        labelled_weights(graph, nodes, rows, score="push")


def test_other_forms_of_the_same():
    graph, nodes = a_graph(), np.arange(30)
    dense = graph.x.toarray()
    expected, rows = labelled_weights(graph, nodes, rows_of(graph, nodes)), rows_of(graph, nodes)
    for edges in (graph.edge_index.int(), graph.edge_index.numpy()):
        for y in (torch.from_numpy(graph.y), graph.y[:, None], graph.y.astype(np.float32), graph.y.astype(np.uint8)):
            other = LargeGraph(edges, torch.from_numpy(dense), y)
            assert np.array_equal(other.y, graph.y) and np.array_equal(other.x, dense)
            assert np.array_equal(inductive_split(y, 10).train, inductive_split(graph.y, 10).train)
            for labelled in (torch.from_numpy(nodes), np.arange(len(graph.y)) < 30):
                np.testing.assert_array_equal(labelled_weights(other, labelled, rows), expected)
            (batch,) = RowBatches(rows, dense, y[:30], expected[:, None].tolist())
            assert torch.equal(batch.y, torch.from_numpy(graph.y[:30]))
            assert torch.equal(batch.weight, torch.from_numpy(expected))
