import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch_geometric.utils import to_undirected

from graph.renode import push_pagerank
from tests.graph.renode.test_pagerank import graphs
from tests.helpers import golden_names, load_golden


def dense_walks(edge_index, num_nodes, alpha=0.15):
    """What pushing approximates: no added self-loops, rows of the walk's transition matrix; a sink has no way out."""
    adjacency = np.zeros((num_nodes, num_nodes))
    adjacency[tuple(edge_index.numpy())] = 1
    transition = adjacency / np.maximum(adjacency.sum(1, keepdims=True), 1)
    return alpha * np.linalg.inv(np.eye(num_nodes) - (1 - alpha) * transition)


@pytest.mark.parametrize("name", golden_names("renode", "push"))
def test_golden_rows(name):
    golden, graph = load_golden("renode", name), load_golden("renode", name.removeprefix("push_"))
    edge_index, alpha = torch.from_numpy(graph["edge_index"]), float(graph["alpha"])
    nodes = torch.from_numpy(golden.pop("nodes"))
    for key, expected in golden.items():
        eps, topk, normalization = key.rsplit(".", 2)
        options = {"eps": float(eps.removeprefix("eps")), "topk": int(topk.removeprefix("topk"))}
        rows = push_pagerank(edge_index, nodes, len(graph["y"]), alpha, normalization=normalization, **options)
        assert rows.dtype == np.float32 and rows.has_canonical_format
        # The same pushes in the same order: only the last bit may differ.
        np.testing.assert_allclose(rows.toarray(), expected, atol=1e-7, err_msg=key)


@given(graphs(), st.floats(0.1, 0.9), st.sampled_from([1e-2, 1e-4]))
def test_approaches_the_walks_from_below(graph, alpha, eps):
    edge_index, size = graph
    exact = dense_walks(edge_index, size, alpha)
    rows = push_pagerank(edge_index, torch.arange(size), size, alpha, eps, normalization="row").toarray()
    assert np.all(rows <= exact + 1e-5)
    rows = push_pagerank(edge_index, torch.arange(size), size, alpha, 1e-7, normalization="row").toarray()
    np.testing.assert_allclose(rows, exact, atol=1e-5)


@given(graphs(undirected=True), st.sampled_from([1e-2, 1e-4]))
def test_error_is_at_most_eps_times_degree(graph, eps):
    edge_index, size = graph
    degree = np.zeros((size, size))
    degree[tuple(edge_index.numpy())] = 1
    degree = degree.sum(1)
    rows = push_pagerank(edge_index, torch.arange(size), size, eps=eps, normalization="row").toarray()
    assert np.all(dense_walks(edge_index, size) - rows <= eps * degree + 1e-6)


def test_rows_do_not_depend_on_each_other():
    edge_index = to_undirected(torch.randint(300, (2, 1500), generator=torch.Generator().manual_seed(0)))
    rows = push_pagerank(edge_index, torch.arange(300), 300)
    for node in (0, 17, 299):
        alone = push_pagerank(edge_index, torch.tensor([node]), 300)
        np.testing.assert_array_equal(alone.toarray()[0], rows[[node]].toarray()[0])


def test_topk_keeps_the_largest_estimates():
    edge_index = to_undirected(torch.randint(100, (2, 400), generator=torch.Generator().manual_seed(0)))
    full = push_pagerank(edge_index, torch.arange(5), 100, normalization="row").toarray()
    kept = push_pagerank(edge_index, torch.arange(5), 100, topk=7, normalization="row").toarray()
    np.testing.assert_array_equal(np.sort(kept), np.where(np.arange(100) < 93, 0, np.sort(full)))
    assert np.all((kept == 0) | (kept == full))


def test_no_nodes():
    rows = push_pagerank(torch.tensor([[0, 1], [1, 0]]), torch.empty(0, dtype=torch.long))
    assert rows.shape == (0, 2) and rows.nnz == 0


def test_node_without_edges_keeps_its_restart():
    rows = push_pagerank(torch.tensor([[0, 1], [1, 0]]), torch.tensor([2]), 3)
    np.testing.assert_allclose(rows.toarray(), [[0, 0, 0.15]], rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 1.5}, "alpha must be .*got 1.5"),
        ({"eps": 0.0}, "eps must be .*got 0.0"),
        ({"eps": 1e-46}, "eps: 1e-46 times alpha is 0 in single precision"),
        ({"topk": -1}, "topk must be .*got -1"),
        ({"normalization": "rows"}, "normalization: 'rows' .* did you mean 'row'"),
        ({"num_nodes": 1}, "edge_index: .* the graph has 1"),
        ({"nodes": torch.tensor([2])}, "nodes: ids 2 to 2"),
    ],
)
def test_refused_by_push(options, message):
    arguments = {"edge_index": torch.tensor([[0, 1], [1, 0]]), "nodes": torch.tensor([0])} | options
    with pytest.raises(ValueError, match=message):
        push_pagerank(**arguments)
