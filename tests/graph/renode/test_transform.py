import numpy as np
import pytest
import torch
import torch_geometric.transforms as T
from torch_geometric.data import Data
from torch_geometric.datasets import Planetoid

from graph.renode import ReNode, renode_weights, totoro
from tests.graph.renode.test_pagerank import SMALL
from tests.helpers import load_golden


def small_graph(**attributes):
    """Two triangles of two classes, joined by an edge, and an isolated node."""
    edge_index = torch.tensor([[0, 1, 2, 2, 3, 4, 5], [1, 2, 0, 3, 4, 5, 3]])
    data = Data(
        x=torch.rand(7, 3),
        edge_index=torch.cat([edge_index, edge_index.flip(0)], 1),
        y=torch.tensor([0, 0, 0, 1, 1, 1, 1]),
        train_mask=torch.tensor([True, False, True, True, True, False, False]),
    )
    for name, value in attributes.items():
        setattr(data, name, value)
    return data


@pytest.mark.parametrize("name", SMALL)
def test_golden_weights(name):
    golden = load_golden("renode", name)
    data = Data(**{key: torch.from_numpy(golden[key]) for key in ("x", "edge_index", "y", "train_mask")})
    for key in (key for key in golden if key.startswith("weight_")):
        base, scale = map(float, key.split("_")[1:])
        data = T.Compose([T.NormalizeFeatures(), ReNode(base, base + scale, float(golden["alpha"]))])(data)
        np.testing.assert_allclose(data.renode_weight, golden[key], atol=1e-6)
        np.testing.assert_allclose(data.totoro[data.train_mask], golden["totoro"], atol=1e-6)


def test_as_transform_of_a_real_data_set(planetoid_root):
    data = Planetoid(planetoid_root, "Cora", transform=T.Compose([T.NormalizeFeatures(), ReNode()]))[0]
    assert data.renode_weight[data.train_mask].mean().item() == pytest.approx(1)
    assert data.renode_weight[data.train_mask].min() == 0.5 and data.renode_weight.max() == 1.5


def test_attributes_cover_all_nodes():
    before = small_graph()
    data = ReNode()(before)
    assert "totoro" not in before and "renode_weight" not in before
    assert data.totoro.dtype == torch.float64 and data.renode_weight.dtype == torch.float32
    assert data.is_node_attr("totoro") and data.is_node_attr("renode_weight")
    assert torch.equal(data.renode_weight > 0, data.train_mask)
    assert torch.equal(data.totoro > 0, data.train_mask)
    expected = totoro(data.edge_index, data.y, data.train_mask)
    assert torch.equal(data.totoro[data.train_mask], expected)
    assert torch.equal(data.renode_weight[data.train_mask], renode_weights(expected).float())
    assert data.renode_weight[0] > data.renode_weight[2]  # node 2 has the edge to the other class


def test_options_reach_the_functions():
    data = small_graph()
    for options in ({"alpha": 0.5}, {"w_min": 0.1}, {"w_max": 1.9}):
        weights, other = ReNode()(data), ReNode(**options)(data)
        assert not torch.equal(weights.totoro, other.totoro) or not torch.equal(
            weights.renode_weight, other.renode_weight
        )
    apart = small_graph(edge_index=torch.empty(2, 0, dtype=torch.long))
    assert len(ReNode()(apart).renode_weight.unique()) == 5  # four weights and the 0 of unlabelled nodes
    assert ReNode(ties="average")(apart).renode_weight.unique().tolist() == [0, 1]


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16])
def test_edge_dtypes_duplicates_and_order(dtype):
    data = small_graph()
    edges = torch.cat([data.edge_index.flip(1), data.edge_index[:, :5]], 1).to(dtype)
    assert torch.equal(ReNode()(small_graph(edge_index=edges)).totoro, ReNode()(data).totoro)


def test_self_loops_count():
    data = small_graph()
    looped = T.AddSelfLoops()(data)
    scores = ReNode()(looped).totoro
    assert torch.isfinite(scores).all() and not torch.equal(scores, ReNode()(data).totoro)


def test_directed_graph_is_not_symmetrised():
    directed = small_graph(edge_index=small_graph().edge_index[:, :7])
    scores = ReNode()(directed).totoro
    undirected = T.Compose([T.ToUndirected(), ReNode()])(directed).totoro
    torch.testing.assert_close(undirected, ReNode()(small_graph()).totoro)
    assert not torch.allclose(scores, undirected)
    assert scores[0] > 0


def test_ids_in_place_of_the_mask():
    data = ReNode()(small_graph(train_mask=torch.tensor([4, 0, 3, 2])))
    torch.testing.assert_close(data.totoro, ReNode()(small_graph()).totoro)
    assert torch.equal(data.renode_weight, ReNode()(small_graph()).renode_weight)


def test_a_single_labelled_node():
    data = ReNode(empty_classes="skip")(small_graph(train_mask=torch.arange(7) == 3))
    assert data.totoro.tolist() == [0] * 7
    assert data.renode_weight.tolist() == [0, 0, 0, 1.5, 0, 0, 0]


def test_repr():
    assert repr(ReNode(w_min=0.25)) == "ReNode(w_min=0.25, w_max=1.5, alpha=0.15, ties='index')"


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"train_mask": torch.zeros(7, dtype=torch.bool)}, "train_mask: there is no labelled node"),
        ({"train_mask": torch.arange(7) < 2}, "train_mask: no labelled node of class 1; empty_classes='skip'"),
        (
            {"train_mask": torch.ones(7, 10, dtype=torch.bool)},
            r"data.train_mask: .* found torch.bool of shape \(7, 10\)",
        ),
        ({"train_mask": None}, "data.train_mask: ReNode needs it"),
        ({"y": None}, "data.y: ReNode needs it"),
        ({"edge_index": None}, "data.edge_index: ReNode needs it"),
        ({"y": torch.tensor([0, 0, -1, 1, 1, 1, 1])}, "y: a labelled node has label -1"),
        ({"y": torch.zeros(7, 4)}, "y: wanted integers of shape"),
        ({"edge_index": torch.tensor([[0, 6], [1, 7]])}, "edge_index: it names nodes 0 to 7, the graph has 7"),
    ],
)
def test_bad_graph(attributes, message):
    with pytest.raises(ValueError, match=message) as error:
        ReNode()(small_graph(**attributes))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 0}, "alpha: 0 is not between 0 and 1"),
        ({"alpha": 1.2}, "alpha: 1.2"),
        ({"w_min": 1.6}, "w_min, w_max: wanted 0 <= w_min <= w_max, found 1.6 and 1.5"),
        ({"ties": "random"}, "ties: 'random'"),
        ({"tol": 0}, "tol: 0"),
        ({"max_iter": 0}, "max_iter: 0"),
        ({"empty_classes": "ignore"}, "empty_classes: 'ignore'"),
    ],
)
def test_bad_option(options, message):
    with pytest.raises(ValueError, match=message):
        ReNode(**options)


def test_no_convergence():
    with pytest.raises(ValueError, match=r"tol: cg did not converge, 1 steps reached residual .* tolerance 1.0e-12"):
        ReNode(max_iter=1)(small_graph())
