import sys
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse
from torch_geometric.datasets import Planetoid

from benchmarks.timing import peak_bytes
from benchmarks.totoro import numpy_peak_bytes
from graph.renode import (
    class_influence,
    dataset_totoro,
    neighbor_conflict,
    push_pagerank,
    renode_weights,
    totoro,
    totoro_from_rows,
)
from tests.graph.renode.test_pagerank import SMALL, dense_pagerank
from tests.helpers import golden_names, load_golden

REAL = golden_names("renode", "cora") + golden_names("renode", "citeseer")
INDUCTIVE = golden_names("renode", "inductive")
# A path whose two halves are two classes, and its labelled nodes.
PATH = torch.tensor([[0, 1, 2, 3, 4], [1, 2, 3, 4, 5]])
PATH = torch.cat([PATH, PATH.flip(0)], 1)
HALVES = torch.tensor([0, 0, 0, 1, 1, 1])


def dense_totoro(pagerank, y, nodes):
    """The definition, a sum over nodes at a time."""
    influence = {c: pagerank[nodes[y[nodes] == c]].mean(0) for c in y[nodes].unique().tolist()}
    return torch.stack(
        [sum((pagerank[v] @ g for c, g in influence.items() if c != y[v]), pagerank.new_zeros(())) for v in nodes]
    )


def random_graph(size, classes):
    """Edges, labels, and the ids of a third of the nodes, some of each class."""
    torch.manual_seed(0)
    nodes = torch.cat([torch.arange(classes), torch.arange(classes, size, 3)])
    return torch.randint(size, (2, 4 * size)), torch.arange(size) % classes, nodes


@st.composite
def labelled_graphs(draw):
    """``edge_index``, the labels of 0 to 2, a mask with a labelled node or more."""
    size = draw(st.integers(2, 12))
    node = st.integers(0, size - 1)
    edge_index = torch.tensor(draw(st.lists(st.tuples(node, node), max_size=30)), dtype=torch.long).view(-1, 2).T
    if draw(st.booleans()):
        edge_index = torch.cat([edge_index, edge_index.flip(0)], 1)
    y = torch.tensor(draw(st.lists(st.integers(0, 2), min_size=size, max_size=size)))
    labelled = draw(st.sets(node, min_size=1))
    return edge_index, y, torch.zeros(size, dtype=torch.bool).index_fill(0, torch.tensor(sorted(labelled)), True)


class TestGolden:
    @pytest.mark.parametrize("name", SMALL)
    def test_small(self, name):
        golden = load_golden("renode", name)
        graph = [torch.from_numpy(golden[key]) for key in ("edge_index", "y", "train_mask")]
        alpha = float(golden["alpha"])
        scores = totoro(*graph, alpha=alpha)
        assert scores.dtype == torch.float64
        np.testing.assert_allclose(scores, golden["totoro"], atol=1e-6)
        np.testing.assert_allclose(class_influence(*graph, alpha=alpha), golden["gpr"], atol=1e-6)
        assert dataset_totoro(scores) == pytest.approx(golden["totoro_sum"], abs=1e-6)

    @pytest.mark.parametrize("name", REAL)
    def test_real_graphs(self, name, planetoid_root):
        golden = load_golden("renode", name)
        data = Planetoid(planetoid_root, {"cora": "Cora", "citeseer": "CiteSeer"}[name.split("_")[0]])[0]
        labelled = torch.from_numpy(golden["labelled"])
        scores = totoro(data.edge_index, data.y, labelled)
        np.testing.assert_allclose(scores, golden["totoro"], atol=1e-6)
        assert np.array_equal(scores == 0, golden["totoro"] == 0)
        assert dataset_totoro(scores) == pytest.approx(golden["totoro_sum"], abs=1e-6)
        influence = class_influence(data.edge_index, data.y, labelled)
        np.testing.assert_allclose(influence.sum(0), golden["gpr_col_sum"], rtol=1e-5)
        np.testing.assert_allclose((influence**2).sum(0), golden["gpr_col_sqsum"], rtol=1e-5)
        # The golden scores are float32, in which a few neighbours change places; the weights move by their step.
        np.testing.assert_allclose(renode_weights(scores), golden["weight_0.5_1.0"], atol=0.03)

    @pytest.mark.parametrize("name", SMALL + REAL)
    def test_ranks_and_weights(self, name):
        golden = load_golden("renode", name)
        scores = torch.from_numpy(golden["totoro"])
        # From 1 down to 0 the weight falls with the rank, so that it tells the rank.
        rank = torch.arccos(2 * renode_weights(scores.double(), 0, 1) - 1) / np.pi * (len(scores) - 1)
        assert np.array_equal(rank.round().long(), golden["rank"])
        for key in (key for key in golden if key.startswith("weight_")):
            base, scale = map(float, key.split("_")[1:])
            expected = golden[key][golden["labelled"]] if name in SMALL else golden[key]
            np.testing.assert_allclose(renode_weights(scores, base, base + scale), expected, atol=1e-6, err_msg=key)

    @pytest.mark.parametrize("name", INDUCTIVE)
    def test_released_softmax_over_pushed_rows(self, name, planetoid_root):
        golden = load_golden("renode", name)
        data = Planetoid(planetoid_root, "Cora")[0]
        nodes, alpha, eps = torch.from_numpy(golden["train_idx"]), float(golden["alpha"]), float(golden["eps"])
        rows = push_pagerank(data.edge_index, nodes, data.num_nodes, alpha, eps, int(golden["topk"]))
        assert np.array_equal(np.diff(rows.indptr), golden["nnz_per_row"])
        np.testing.assert_allclose(rows.sum(axis=1), golden["row_sum"], atol=1e-6)
        largest = np.sort(rows.toarray(), axis=1)[:, :-17:-1]
        np.testing.assert_allclose(largest, np.sort(golden["top16_val"])[:, ::-1], atol=1e-6)
        scores = totoro_from_rows(rows, torch.from_numpy(golden["labels_train"]))
        np.testing.assert_allclose(scores, golden["totoro"], atol=1e-8)
        base, scale = float(golden["base_w"]), float(golden["scale_w"])
        weights = renode_weights(torch.from_numpy(golden["totoro"]), base, base + scale)
        np.testing.assert_allclose(weights, golden["rn_weight"], atol=1e-6)


class TestScores:
    @given(labelled_graphs(), st.floats(0.05, 0.95))
    def test_is_the_definition(self, graph, alpha):
        edge_index, y, mask = graph
        scores = totoro(edge_index, y, mask, alpha=alpha, empty_classes="skip")
        expected = dense_totoro(dense_pagerank(edge_index, len(y), alpha), y, mask.nonzero().view(-1))
        torch.testing.assert_close(scores, expected, rtol=0, atol=1e-10)

    @given(labelled_graphs(), st.randoms())
    def test_permuting_the_nodes_permutes_the_scores(self, graph, random):
        edge_index, y, mask = graph
        order = list(range(len(y)))
        random.shuffle(order)
        new_id = torch.tensor(order)
        nodes = mask.nonzero().view(-1)
        permuted = totoro(new_id[edge_index], y[new_id.argsort()], new_id[nodes], empty_classes="skip")
        torch.testing.assert_close(permuted, totoro(edge_index, y, mask, empty_classes="skip"), rtol=0, atol=1e-12)

    @given(labelled_graphs())
    def test_an_isolated_node_changes_nothing(self, graph):
        edge_index, y, mask = graph
        larger = totoro(
            edge_index,
            torch.cat([y, y.new_tensor([1])]),
            torch.cat([mask, mask.new_tensor([False])]),
            empty_classes="skip",
        )
        torch.testing.assert_close(larger, totoro(edge_index, y, mask, empty_classes="skip"), rtol=0, atol=1e-14)

    @given(labelled_graphs(), st.randoms())
    def test_order_and_duplicates_of_edges_change_nothing(self, graph, random):
        edge_index, y, mask = graph
        edges = [*edge_index.T.tolist(), *edge_index.T[::2].tolist()]
        random.shuffle(edges)
        shuffled = torch.tensor(edges, dtype=torch.long).view(-1, 2).T
        expected = totoro(edge_index, y, mask, empty_classes="skip")
        assert torch.equal(totoro(shuffled, y, mask, empty_classes="skip"), expected)

    @pytest.mark.parametrize("classes", [15, 16, 17, 40])
    @pytest.mark.parametrize("undirected", [True, False])
    def test_many_classes(self, classes, undirected):
        edge_index, y, nodes = random_graph(120, classes)
        edge_index = torch.cat([edge_index, edge_index.flip(0)], 1) if undirected else edge_index
        expected = dense_totoro(dense_pagerank(edge_index, len(y), 0.15), y, nodes)
        torch.testing.assert_close(totoro(edge_index, y, nodes), expected, rtol=0, atol=1e-11)

    def test_memory_does_not_grow_with_the_classes(self):
        peaks = {}
        for classes in (16, 160):
            solve = partial(totoro, *random_graph(2000, classes), tol=1e-3)
            peaks[classes] = peak_bytes(solve) + numpy_peak_bytes(solve)
        assert peaks[160] < 1.2 * peaks[16]

    def test_scores_rise_towards_the_border(self):
        scores = totoro(PATH, HALVES, torch.arange(6))
        assert scores[0] < scores[1] < scores[2]
        torch.testing.assert_close(scores, scores.flip(0))

    @pytest.mark.parametrize("edges", ["undirected", "directed"])
    def test_classes_far_apart_are_ranked(self, edges):
        """In the norms of a solve a score of 1e-40 is nothing, and a node that the solve did not reach has none."""
        path = torch.stack([torch.arange(159), torch.arange(1, 160)])
        edge_index = torch.cat([path, path.flip(0)[:, 2:] if edges == "directed" else path.flip(0)], 1)
        y = (torch.arange(160) < 4).long()
        nodes = torch.tensor([150, 2, 70, 3, 110, 30])
        pagerank = dense_pagerank(edge_index, 160)
        torch.testing.assert_close(totoro(edge_index, y, nodes), dense_totoro(pagerank, y, nodes), rtol=1e-3, atol=0)
        influence = class_influence(edge_index, y, torch.tensor([2, 20]))
        torch.testing.assert_close(influence.max(1), pagerank[[20, 2]].T.max(1), rtol=1e-3, atol=0)

    def test_what_cannot_be_solved_so_far_away_is_refused(self):
        path = torch.stack([torch.arange(159), torch.arange(1, 160)])
        with pytest.raises(ValueError, match=r"tol: power did not converge, 100 steps .* raise max_iter"):
            totoro(torch.cat([path, path.flip(0)], 1), torch.arange(160) // 80, torch.tensor([0, 159]), max_iter=100)

    def test_zero_where_no_other_class_is_in_reach(self):
        edge_index = torch.cat([PATH, torch.tensor([[6, 7], [7, 6]])], 1)
        y = torch.cat([HALVES, torch.tensor([0, 0])])
        scores = totoro(edge_index, y, torch.tensor([0, 5, 6, 7]))
        assert torch.equal(scores == 0, torch.tensor([False, False, True, True]))

    def test_scores_follow_the_order_of_the_ids(self):
        scores = totoro(PATH, HALVES, torch.tensor([1, 2, 5]))
        torch.testing.assert_close(totoro(PATH, HALVES, torch.tensor([5, 1, 2])), scores[[2, 0, 1]])

    def test_labels_of_unlabelled_nodes_do_not_matter(self):
        nodes = torch.tensor([0, 2, 5])
        unknown = torch.full_like(HALVES, -1).index_copy(0, nodes, HALVES[nodes])
        assert torch.equal(totoro(PATH, unknown, nodes), totoro(PATH, HALVES, nodes))

    def test_class_without_labelled_nodes(self):
        y = torch.tensor([0, 0, 0, 2, 2, 1])
        nodes = torch.tensor([0, 2, 3])
        with pytest.raises(ValueError, match="train_mask: no labelled node of class 1; empty_classes='skip'"):
            totoro(PATH, y, nodes)
        torch.testing.assert_close(totoro(PATH, y, nodes, empty_classes="skip"), totoro(PATH, HALVES, nodes))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"train_mask": torch.zeros(6, dtype=torch.bool)}, "train_mask: there is no labelled node"),
            ({"train_mask": torch.tensor([6])}, "train_mask: ids 6 to 6 do not fit 6 nodes"),
            ({"train_mask": torch.ones(6, 2, dtype=torch.bool)}, "train_mask: holds 2 splits, one a column"),
            ({"train_mask": torch.ones(5, 2, dtype=torch.bool)}, r"train_mask must be .* of shape \(5, 2\)"),
            ({"train_mask": [0.5, 1.0]}, "train_mask must be node ids"),
            ({"train_mask": ["a"]}, "train_mask must be a tensor or an array, got list"),
            ({"y": HALVES - 1}, "y must be at least 0 where a node is labelled, got -1"),
            ({"y": HALVES + 0.5}, r"y must be class numbers of shape \(n,\), got fractions"),
            ({"y": HALVES / 0}, "y must be .* got fractions or infinite ones"),
            ({"y": HALVES.to(torch.complex64)}, r"y must be class numbers of shape \(n,\), got torch.complex64"),
            ({"edge_index": torch.eye(6).to_sparse()}, "edge_index must be integers of shape"),
            ({"edge_index": None}, "edge_index must be a tensor or an array, got NoneType"),
            ({"y": HALVES.view(2, 3)}, r"y must be .* of shape \(2, 3\)"),
            ({"y": torch.nn.functional.one_hot(HALVES)}, r"y must be .* of shape \(6, 2\)"),
            ({"num_nodes": 7}, r"y must be class numbers of shape \(7,\)"),
            ({"edge_index": PATH + 1}, "edge_index: it names nodes 1 to 6, the graph has 6"),
            ({"alpha": 1.0}, "alpha must be .*got 1.0"),
            ({"max_iter": 2}, "tol: cg did not converge, 2 steps"),
            ({"empty_classes": "skp"}, "empty_classes: 'skp' .* did you mean 'skip'"),
        ],
    )
    def test_refused(self, options, message):
        arguments = {"edge_index": PATH, "y": HALVES, "train_mask": torch.arange(6)} | options
        with pytest.raises(ValueError, match=message) as error:
            totoro(**arguments)
        assert "\n" not in str(error.value)


class TestFromRows:
    def test_entries_far_above_one(self):
        """Those of a directed graph: a hub whose targets share one."""
        dense = np.array([[0.15, 800.0, 799.0], [0.0, 1e4, 0.0], [0.0, 0.0, 0.0]])
        soft = torch.tensor([[0.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
        soft[0] = torch.from_numpy(dense[0]).softmax(0)
        y = torch.tensor([0, 1, 1])
        scores = totoro_from_rows(sparse.csr_array(dense), y)
        torch.testing.assert_close(scores, dense_totoro(soft, y, torch.arange(3)))

    @given(labelled_graphs(), st.booleans())
    def test_is_the_definition(self, graph, softmax):
        edge_index, y, mask = graph
        nodes = mask.nonzero().view(-1)
        rows = push_pagerank(edge_index, nodes, len(y)).astype(np.float64)
        before = rows.copy()
        scores = totoro_from_rows(rows, y[nodes], softmax)
        dense = torch.from_numpy(rows.toarray()).double()
        if softmax:
            dense = dense.masked_fill(dense == 0, -torch.inf).softmax(1)
        pagerank = torch.zeros(len(y), len(y), dtype=torch.float64)
        pagerank[nodes] = dense
        torch.testing.assert_close(scores, dense_totoro(pagerank, y, nodes))
        assert np.array_equal(rows.data, before.data)  # the rows are the caller's

    def test_memory_does_not_grow_with_the_classes(self):
        """A matrix of rows and classes would have 72 MB."""
        score = partial(totoro_from_rows, sparse.eye_array(3000, format="csr"), torch.arange(3000))
        assert peak_bytes(score) + numpy_peak_bytes(score) < 40e6

    def test_blocks_of_rows_change_nothing(self, monkeypatch):
        rows, y = sparse.random_array((50, 20), density=0.3, format="csr", rng=0), torch.arange(50) % 7
        whole = totoro_from_rows(rows, y)
        for entries in (1, 7 * 8, 7 * 49):
            monkeypatch.setattr(sys.modules[totoro_from_rows.__module__], "OVERLAPS", entries)
            assert torch.equal(totoro_from_rows(rows, y), whole)

    def test_stored_zeros_are_absent(self):
        dense = np.array([[0.5, 0.2, 0], [0, 0.3, 0.4]], np.float32)
        stored = sparse.csr_array((dense.ravel(), np.tile(np.arange(3), 2), np.array([0, 3, 6])), shape=(2, 3))
        y = torch.tensor([0, 1])
        assert torch.equal(totoro_from_rows(stored, y), totoro_from_rows(sparse.csr_array(dense), y))

    def test_small_influence_is_not_swamped(self):
        rows = sparse.csr_array(np.array([[1, 1e-20], [0, 1]]))
        assert totoro_from_rows(rows, torch.tensor([0, 1]), softmax=False).tolist() == [1e-20, 1e-20]

    def test_lengths_must_agree(self):
        with pytest.raises(ValueError, match="y: got 3 labels for 2 rows"):
            totoro_from_rows(sparse.csr_array((2, 4)), torch.zeros(3, dtype=torch.long))


class TestWeights:
    @given(
        st.lists(st.sampled_from([0.0, 0.1, 0.2, 0.5, 0.7]), min_size=2, max_size=40),
        st.floats(0, 1),
        st.floats(0, 2),
        st.sampled_from(["index", "average"]),
    )
    def test_mean_and_order(self, scores, w_min, scale, ties):
        scores = torch.tensor(scores, dtype=torch.float64)
        weights = renode_weights(scores, w_min, w_min + scale, ties)
        assert weights.mean().item() == pytest.approx(w_min + scale / 2)
        assert weights.min() >= w_min - 1e-12 and weights.max() <= w_min + scale + 1e-12
        lower = scores[:, None] < scores
        assert (weights[:, None] >= weights - 1e-12)[lower].all()

    def test_both_ends_are_reached(self):
        weights = renode_weights(torch.tensor([0.3, 0.1, 0.2]), 0.25, 1.75)
        torch.testing.assert_close(weights, torch.tensor([0.25, 1.75, 1.0]))

    def test_ties(self):
        scores = torch.tensor([0.0, 0.5, 0.0, 0.0, 0.9])
        by_index, averaged = renode_weights(scores), renode_weights(scores, ties="average")
        assert by_index[0] > by_index[2] > by_index[3]
        torch.testing.assert_close(averaged[[0, 2, 3]], by_index[[0, 2, 3]].mean().expand(3))
        assert torch.equal(averaged[[1, 4]], by_index[[1, 4]])

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_single_node_weighs_most(self, dtype):
        assert torch.equal(renode_weights(torch.zeros(1, dtype=dtype)), torch.tensor([1.5], dtype=dtype))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"w_min": 2.0}, "w_min and w_max must .* got 2.0 and 1.5"),
            ({"w_min": -0.5}, "w_min and w_max must .* got -0.5"),
            ({"w_max": float("inf")}, "w_min and w_max must .* inf"),
            ({"w_min": float("nan")}, "w_min and w_max must .* nan"),
            ({"ties": "mean"}, "ties: 'mean' is not one of index, average"),
            ({"totoro": torch.empty(0)}, "totoro: there is no labelled node"),
            ({"totoro": torch.rand(3, 2)}, r"totoro must be one score a labelled node, got shape \(3, 2\)"),
            ({"totoro": [0.1, float("nan")]}, "totoro: a score is NaN"),
        ],
    )
    def test_refused(self, options, message):
        with pytest.raises(ValueError, match=message):
            renode_weights(**({"totoro": torch.rand(3)} | options))


class TestNeighborConflict:
    def test_share_of_other_labels(self):
        edge_index = torch.tensor([[0, 0, 0, 0, 1, 1], [1, 2, 2, 0, 0, 1]])  # a duplicate and two self-loops
        conflict = neighbor_conflict(edge_index, torch.tensor([0, 0, 1, 1]))
        assert torch.equal(conflict[:2], torch.tensor([0.5, 0.0]))
        assert conflict[2:].isnan().all()

    def test_neighbours_without_label_do_not_count(self):
        edge_index = torch.tensor([[0, 0, 0, 1, 3], [1, 2, 3, 3, 0]])
        conflict = neighbor_conflict(edge_index, torch.tensor([0, 0, 1, -1]))
        assert conflict[0] == 0.5 and conflict[1:].isnan().all()

    def test_goes_with_totoro(self):
        with pytest.raises(ValueError, match="edge_index: it names nodes 1 to 6, the graph has 6"):
            neighbor_conflict(PATH + 1, HALVES)
        conflict = neighbor_conflict(PATH.int(), HALVES)
        assert torch.equal(conflict, torch.tensor([0, 0, 0.5, 0.5, 0, 0]))
