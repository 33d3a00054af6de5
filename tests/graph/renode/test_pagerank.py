import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch_geometric.datasets import Planetoid
from torch_geometric.utils import to_undirected

from graph.renode import PageRank, personalized_pagerank
from graph.renode.pagerank import LEAST_ALPHA, binary_adjacency
from tests.helpers import golden_names, load_golden

SMALL = golden_names("renode", "small")


def dense_pagerank(edge_index, num_nodes, alpha=0.15):
    """The definition, with a dense inverse."""
    adjacency = np.zeros((num_nodes, num_nodes))
    adjacency[tuple(edge_index.numpy())] = 1
    adjacency += np.eye(num_nodes)
    scale = adjacency.sum(1) ** -0.5
    return torch.from_numpy(alpha * np.linalg.inv(np.eye(num_nodes) - (1 - alpha) * scale[:, None] * adjacency * scale))


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@st.composite
def graphs(draw, undirected=None):
    """``edge_index`` with self-loops, duplicates and isolated nodes, and the number of nodes."""
    num_nodes = draw(st.integers(1, 12))
    node = st.integers(0, num_nodes - 1)
    edges = draw(st.lists(st.tuples(node, node), max_size=30))
    edge_index = torch.tensor(edges, dtype=torch.long).view(-1, 2).T
    if undirected or (undirected is None and draw(st.booleans())):
        edge_index = torch.cat([edge_index, edge_index.flip(0)], 1)
    return edge_index, num_nodes


class TestExact:
    @pytest.mark.parametrize("name", SMALL)
    def test_golden_rows(self, name):
        golden = load_golden("renode", name)
        edge_index, size = torch.from_numpy(golden["edge_index"]), len(golden["y"])
        rows = personalized_pagerank(edge_index, torch.arange(size), size, float(golden["alpha"]))
        assert rows.dtype == torch.float64
        np.testing.assert_allclose(rows, golden["Pi"], atol=5e-7)

    @pytest.mark.parametrize("name", golden_names("renode", "cora") + golden_names("renode", "citeseer"))
    def test_golden_rows_of_real_graphs(self, name, planetoid_root):
        golden = load_golden("renode", name)
        data = Planetoid(planetoid_root, {"cora": "Cora", "citeseer": "CiteSeer"}[name.split("_")[0]])[0]
        assert (data.num_nodes, data.num_edges) == (golden["num_nodes"], golden["num_edges"])
        rows = personalized_pagerank(data.edge_index, torch.from_numpy(golden["labelled"]), data.num_nodes).numpy()
        largest = np.take_along_axis(rows, golden["ppr_top16_idx"].astype(np.int64), 1)
        np.testing.assert_allclose(largest, golden["ppr_top16_val"], atol=1e-6)
        np.testing.assert_allclose(rows.sum(1), golden["ppr_row_sum"], atol=1e-5)
        np.testing.assert_allclose((rows**2).sum(1), golden["ppr_row_sqsum"], atol=1e-6)
        np.testing.assert_allclose(rows @ np.arange(data.num_nodes), golden["ppr_row_argweighted"], rtol=1e-5)
        if "ppr_rows_first8" in golden:
            np.testing.assert_allclose(rows[:8], golden["ppr_rows_first8"], atol=1e-6)

    @given(graphs(), st.floats(0.05, 0.95))
    def test_is_the_dense_inverse(self, graph, alpha):
        edge_index, size = graph
        rows = personalized_pagerank(edge_index, torch.arange(size), size, alpha)
        torch.testing.assert_close(rows, dense_pagerank(edge_index, size, alpha), rtol=0, atol=1e-10)

    @given(graphs(undirected=True))
    def test_both_solvers_agree(self, graph):
        edge_index, size = graph
        cg, power = (
            personalized_pagerank(edge_index, torch.arange(size), size, method=method) for method in ("cg", "power")
        )
        torch.testing.assert_close(cg, power, rtol=0, atol=1e-11)
        assert PageRank(edge_index, size).method == "cg"

    @given(graphs())
    def test_matmul_multiplies_by_the_matrix_and_its_transpose(self, graph):
        edge_index, size = graph
        pagerank, dense = PageRank(edge_index, size), dense_pagerank(edge_index, size)
        x = torch.linspace(-1, 1, 3 * size, dtype=torch.float64).view(size, 3)
        torch.testing.assert_close(pagerank.matmul(x), dense @ x, rtol=0, atol=1e-10)
        torch.testing.assert_close(pagerank.matmul(x, transpose=True), dense.T @ x, rtol=0, atol=1e-10)

    @given(graphs(), st.floats(0.05, 0.95))
    def test_overlap_is_the_product_of_both(self, graph, alpha):
        edge_index, size = graph
        dense = dense_pagerank(edge_index, size, alpha)
        x = torch.linspace(-1, 1, 3 * size, dtype=torch.float64).view(size, 3)
        nodes = torch.arange(size).flip(0)[: max(1, size // 2)]
        for pagerank in (PageRank(edge_index, size, alpha), PageRank(edge_index, size, alpha, method="power")):
            torch.testing.assert_close(pagerank.overlap(x, nodes), (dense @ dense.T @ x)[nodes], rtol=0, atol=1e-10)

    def test_overlap_costs_as_much_as_one_product(self, monkeypatch):
        edge_index = torch.randint(200, (2, 1000), generator=torch.Generator().manual_seed(0))
        pagerank, x = PageRank(to_undirected(edge_index), 200), torch.rand(200, 4, dtype=torch.float64)
        products, mm = [], torch.mm
        monkeypatch.setattr(torch, "mm", lambda *args, **options: products.append(0) or mm(*args, **options))
        pagerank.matmul(x)
        once = len(products)
        pagerank.overlap(x, torch.arange(3))
        assert 0 < len(products) - once < 1.3 * once

    def test_the_least_alpha_leaves_digits(self):
        """The root of the degrees stays what it is, and so does its product with anything."""
        edge_index = to_undirected(torch.stack([torch.arange(30), torch.arange(30).roll(1) % 17]))
        pagerank, x = PageRank(edge_index, 30, LEAST_ALPHA, tol=1e-13), torch.rand(30, 2, dtype=torch.float64)
        root = torch.from_numpy(np.sqrt(np.asarray(binary_adjacency(edge_index, 30).sum(1)).ravel() + 1.0))
        torch.testing.assert_close(root @ pagerank.matmul(x), root @ x, rtol=1e-8, atol=0)

    def test_a_hub(self):
        edge_index = to_undirected(torch.stack([torch.zeros(300, dtype=torch.long), torch.arange(1, 301)]))
        rows = personalized_pagerank(edge_index, torch.arange(3), 301)
        torch.testing.assert_close(rows, dense_pagerank(edge_index, 301)[:3], rtol=0, atol=1e-11)

    @pytest.mark.parametrize("columns", [1, 7])  # torch shares the sum of a single column among its threads
    @pytest.mark.parametrize("method", ["cg", "power"])
    def test_the_number_of_threads_changes_nothing(self, method, columns, threads):
        edge_index = to_undirected(torch.randint(40_000, (2, 40_000), generator=torch.Generator().manual_seed(0)))
        pagerank = PageRank(edge_index, 40_000, tol=0.1, method=method)
        x = torch.rand(40_000, columns, dtype=torch.float64)
        results = []
        for number in (1, 2):
            threads(number)
            results.append((pagerank.matmul(x), pagerank.overlap(x, torch.arange(100))))
        assert all(map(torch.equal, *results))

    def test_directed_edges_are_not_symmetrised(self):
        edge_index = torch.tensor([[0, 1], [1, 2]])
        assert PageRank(edge_index).method == "power"
        rows = personalized_pagerank(edge_index, torch.tensor([0, 2]))
        assert rows[0, 2] > 0
        assert torch.equal(rows[1, :2], torch.zeros(2, dtype=torch.float64))

    @pytest.mark.parametrize("method", ["cg", "power"])
    def test_what_cannot_be_reached_is_exactly_zero(self, method):
        edge_index = to_undirected(torch.tensor([[0, 1, 3, 4, 5], [1, 2, 4, 5, 3]]))
        rows = personalized_pagerank(edge_index, torch.arange(6), method=method)
        assert torch.equal(rows == 0, torch.block_diag(torch.ones(3, 3), torch.ones(3, 3)) == 0)

    def test_rows_follow_the_order_of_the_nodes_across_blocks(self):
        edge_index = torch.randint(50, (2, 200), generator=torch.Generator().manual_seed(0))
        nodes = torch.randperm(50, generator=torch.Generator().manual_seed(1))[:40]
        everything = personalized_pagerank(edge_index, torch.arange(50), 50)
        torch.testing.assert_close(personalized_pagerank(edge_index, nodes, 50), everything[nodes])
        mask = torch.zeros(50, dtype=torch.bool).index_fill(0, nodes, True)
        torch.testing.assert_close(personalized_pagerank(edge_index, mask, 50), everything[mask])

    def test_gradients_are_no_obstacle(self):
        x = torch.ones(2, 1, requires_grad=True)
        assert PageRank(torch.tensor([[0], [1]])).matmul(x).shape == (2, 1)

    def test_repr(self):
        assert repr(PageRank(torch.tensor([[0, 1], [1, 0]]))) == "PageRank(2, alpha=0.15, tol=1e-12, method='cg')"


class TestInput:
    @pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.uint8])
    def test_any_integer_type(self, dtype):
        edge_index = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
        nodes = torch.arange(3)
        expected = personalized_pagerank(edge_index, nodes)
        assert torch.equal(personalized_pagerank(edge_index.to(dtype), nodes.to(dtype)), expected)

    def test_a_graph_without_edges(self):
        rows = personalized_pagerank(torch.empty(2, 0, dtype=torch.long), torch.arange(2), 2)
        torch.testing.assert_close(rows, torch.eye(2, dtype=torch.float64))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"alpha": 0.0}, "alpha must be .*got 0.0"),
            ({"alpha": 1.0}, "alpha must be .*got 1.0"),
            ({"alpha": float("nan")}, "alpha must be .*got nan"),
            ({"alpha": 1e-7}, "alpha must be at least 1e-06 and less than 1, got 1e-07"),
            ({"tol": 0.0}, "tol must be .*got 0.0"),
            ({"max_iter": 0}, "max_iter must be .*got 0"),
            ({"method": "gc"}, "method: 'gc' .* did you mean 'cg'"),
            ({"num_nodes": 2}, "edge_index: .* 0 to 2, the graph has 2"),
            ({"edge_index": torch.tensor([[0], [-1]])}, "edge_index: .* -1 to 0"),
            ({"edge_index": torch.zeros(2, 3)}, "edge_index must be integers of shape .2, E., got torch.float32"),
            (
                {"edge_index": torch.zeros(3, 2, dtype=torch.long)},
                r"edge_index must be .* of shape \(3, 2\)",
            ),
            ({"edge_index": torch.tensor([[0], [2]]), "method": "cg"}, "method: 'cg' needs an undirected graph"),
            ({"nodes": torch.tensor([0, 3])}, "nodes: ids 0 to 3 do not fit 3 nodes"),
            ({"nodes": torch.tensor([-1])}, "nodes: ids -1 to -1"),
            ({"nodes": torch.tensor([0, 0])}, "nodes: a node is listed twice"),
            ({"nodes": torch.ones(2, dtype=torch.bool)}, r"nodes must be .* a mask of shape \(3,\), got torch.bool"),
            ({"nodes": torch.tensor([0.0])}, "nodes must be node ids"),
        ],
    )
    def test_refused(self, options, message):
        arguments = {"edge_index": torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]]), "nodes": torch.tensor([0])} | options
        with pytest.raises(ValueError, match=message) as error:
            personalized_pagerank(**arguments)
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    @pytest.mark.parametrize("method", ["cg", "power"])
    def test_a_right_hand_side_that_is_not_finite(self, method, value):
        pagerank, x = PageRank(torch.tensor([[0, 1], [1, 0]]), method=method), torch.tensor([[1.0], [value]])
        for multiply in (pagerank.matmul, lambda x: pagerank.overlap(x, torch.tensor([0]))):
            with pytest.raises(ValueError, match="input: a value is NaN or infinite"):
                multiply(x)

    @pytest.mark.parametrize("method", ["cg", "power"])
    def test_no_convergence_names_tolerance_and_residual(self, method):
        edge_index = to_undirected(torch.randint(100, (2, 300), generator=torch.Generator().manual_seed(0)))
        message = rf"tol: {method} did not converge, 3 steps reached residual \d\.\de-0\d and not tolerance 1.0e-12"
        with pytest.raises(ValueError, match=message):
            personalized_pagerank(edge_index, torch.tensor([0]), method=method, max_iter=3)
        with pytest.raises(ValueError, match=f"tol: {method} did not converge, 3 steps"):
            PageRank(edge_index, 100, method=method, max_iter=3).overlap(torch.ones(100, 1), torch.tensor([0]))
