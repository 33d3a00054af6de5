"""The transform: what it writes, what it reads in which form, and that its weights stay with their mask."""

import inspect
import warnings

import numpy as np
import pytest
import torch
import torch_geometric.transforms as T
from torch_geometric import EdgeIndex
from torch_geometric.data import Data, HeteroData, InMemoryDataset
from torch_geometric.datasets import KarateClub, Planetoid

from fairseq_ext.training.errors import DataError, OptionError
from graph.renode import ReNode, renode_loss, renode_weights, totoro
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


# A value of each option that is not its default.
OPTIONS = {
    "w_min": 0.25,
    "w_max": 1.75,
    "alpha": 0.3,
    "ties": "average",
    "tol": 1e-9,
    "max_iter": 77,
    "empty_classes": "skip",
    "split": 1,
    "node_type": "paper",
    "edge_type": ("paper", "cites", "paper"),
}


def test_repr_names_every_option():
    assert OPTIONS.keys() == inspect.signature(ReNode).parameters.keys()
    shown = repr(ReNode(**OPTIONS))
    assert shown == f"ReNode({', '.join(f'{name}={value!r}' for name, value in OPTIONS.items())})"


class SavedGraph(InMemoryDataset):
    def __init__(self, root, pre_transform):
        super().__init__(str(root), pre_transform=pre_transform)
        self.load(self.processed_paths[0])

    processed_file_names = ("data.pt",)

    def process(self):
        self.save([self.pre_transform(KarateClub()[0])], self.processed_paths[0])


@pytest.mark.parametrize("option", [name for name in OPTIONS if name not in ("split", "node_type", "edge_type")])
def test_a_saved_data_set_of_another_option_is_noticed(tmp_path, option):
    weights = SavedGraph(tmp_path, ReNode())[0].renode_weight
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert SavedGraph(tmp_path, ReNode())[0].renode_weight.equal(weights)
    with pytest.warns(UserWarning, match="pre_transform"):
        SavedGraph(tmp_path, ReNode(**{option: OPTIONS[option]}))


def test_loss_of_labelled_nodes():
    data, loss = ReNode()(small_graph()), torch.rand(7)
    expected = (data.renode_weight * loss).sum() / 4
    loss[~data.train_mask] = torch.nan
    torch.testing.assert_close(renode_loss(loss, data), expected)
    data.train_mask = data.train_mask.nonzero().view(-1)
    torch.testing.assert_close(renode_loss(loss, data), expected)


@pytest.mark.parametrize(
    ("labelled", "message"),
    [
        ([0, 2, 3, 1], "data.renode_weight: 1 of 4 labelled nodes weigh 0: the weights are of another mask"),
        ([1, 5, 6], "data.renode_weight: 3 of 3 labelled nodes weigh 0"),
        ([0, 2], "data.renode_weight: 2 nodes outside of train_mask weigh more than 0"),
        ([], "data.train_mask: there is no labelled node"),
    ],
)
def test_weights_of_another_mask_are_refused(labelled, message):
    data = ReNode()(small_graph())
    data.train_mask = torch.zeros(7, dtype=torch.bool).index_fill(0, torch.tensor(labelled, dtype=torch.long), True)
    with pytest.raises(DataError, match=message) as error:
        renode_loss(torch.rand(7), data)
    assert "\n" not in str(error.value)


def test_the_released_pitfall(planetoid_root):
    """As a ``pre_transform`` it weighs the public split, whatever split the data set makes of it afterwards."""
    data = ReNode()(Planetoid(planetoid_root, "Cora")[0])
    data = T.RandomNodeSplit("random", num_train_per_class=20)(data)
    with pytest.raises(DataError, match="labelled nodes weigh 0: the weights are of another mask"):
        renode_loss(torch.rand(2708), data)
    renode_loss(torch.rand(2708), ReNode()(data))


def test_loss_without_weights():
    with pytest.raises(DataError, match=r"data\.renode_weight: the graph has none; apply ReNode first"):
        renode_loss(torch.rand(7), small_graph())


MASK = small_graph().train_mask
LABELS = small_graph().y


@pytest.mark.parametrize(
    "attributes",
    [
        *({"train_mask": MASK.to(kind)} for kind in (torch.uint8, torch.int8, torch.int32, torch.int64, torch.float32)),
        {"train_mask": MASK[:, None]},
        {"train_mask": MASK.numpy()},
        {"train_mask": MASK.tolist()},
        {"train_mask": MASK.nonzero().numpy().ravel()},
        {"train_mask": MASK.nonzero().view(-1).int()},
        *({"y": LABELS.to(kind)} for kind in (torch.uint8, torch.int32, torch.bool, torch.float16, torch.float64)),
        {"y": LABELS[:, None]},
        {"y": LABELS[:, None].float()},
        {"y": LABELS.numpy().astype(np.int32)},
        {"y": LABELS.tolist()},
        {"y": torch.where(MASK, LABELS, -1)},
        {"y": torch.where(MASK, LABELS.float(), torch.nan)},
        {"edge_index": small_graph().edge_index.numpy()},
        {"edge_index": small_graph().edge_index.tolist()},
        {"edge_index": small_graph().edge_index.to(torch.uint8)},
        {"edge_index": EdgeIndex(small_graph().edge_index, sparse_size=(7, 7))},
    ],
    ids=lambda attributes: str({name: getattr(v, "dtype", type(v)) for name, v in attributes.items()}),
)
def test_other_forms_of_the_same(attributes):
    weighed, expected = ReNode()(small_graph(**attributes)), ReNode()(small_graph())
    assert torch.equal(weighed.totoro, expected.totoro) and torch.equal(weighed.renode_weight, expected.renode_weight)
    torch.testing.assert_close(renode_loss(torch.arange(7.0), weighed), renode_loss(torch.arange(7.0), expected))


def test_masks_of_several_splits():
    data = small_graph(train_mask=torch.stack([~MASK, MASK], 1))
    with pytest.raises(DataError, match=r"data\.train_mask: holds 2 splits, one a column; choose one with split="):
        ReNode()(data)
    for split, mask in enumerate((~MASK, MASK)):
        weighed = ReNode(split=split, empty_classes="skip")(data)
        expected = ReNode(empty_classes="skip")(small_graph(train_mask=mask))
        assert torch.equal(weighed.totoro, expected.totoro)
        renode_loss(torch.rand(7), weighed, split)
    for mask, split in ((data.train_mask, 2), (data.train_mask, -1), (MASK, 1)):
        with pytest.raises(OptionError, match=r"split: data.train_mask holds \d splits?, counted from 0; got"):
            ReNode(split=split)(small_graph(train_mask=mask))
    assert torch.equal(ReNode(split=0)(small_graph()).totoro, ReNode()(small_graph()).totoro)


@pytest.mark.filterwarnings("ignore:Sparse CSR")
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
def test_adjacency_in_place_of_edges(layout):
    directed = small_graph(edge_index=small_graph().edge_index[:, :9])
    expected = ReNode()(directed)
    weighed = ReNode()(T.ToSparseTensor(layout=layout)(directed))
    assert "edge_index" not in weighed
    torch.testing.assert_close(weighed.totoro, expected.totoro)
    with pytest.raises(DataError, match=r"data\.adj_t must be a sparse matrix, got list"):
        ReNode()(small_graph(edge_index=None, adj_t=[1]))


def a_hetero_graph(**relations):
    data, small = HeteroData(), small_graph()
    data["paper"].x, data["paper"].y, data["paper"].train_mask = small.x, small.y, small.train_mask
    data["author"].x = torch.rand(3, 2)
    data["author", "writes", "paper"].edge_index = torch.tensor([[0, 1, 2], [6, 0, 3]])
    for name, edge_index in (relations or {"cites": small.edge_index}).items():
        data["paper", name, "paper"].edge_index = edge_index
    return data


def test_one_type_of_nodes_of_a_heterogeneous_graph():
    expected, cites = ReNode()(small_graph()), ("paper", "cites", "paper")
    data = ReNode(node_type="paper")(a_hetero_graph())
    assert torch.equal(data["paper"].totoro, expected.totoro) and "totoro" not in data["author"]
    assert torch.equal(data["paper"].renode_weight, expected.renode_weight)
    renode_loss(torch.rand(7), data["paper"])
    two = a_hetero_graph(cites=small_graph().edge_index, refutes=small_graph().edge_index[:, :3])
    assert torch.equal(ReNode(node_type="paper", edge_type=cites)(two)["paper"].totoro, expected.totoro)


@pytest.mark.parametrize(
    ("options", "relations", "message"),
    [
        ({}, {}, "node_type: a HeteroData needs one of paper, author"),
        ({"node_type": "papr"}, {}, "node_type: 'papr' .* did you mean 'paper'"),
        ({"node_type": "author"}, {}, "edge_type must be one that joins 'author' to itself, got none"),
        (
            {"node_type": "paper"},
            {"cites": small_graph().edge_index, "refutes": small_graph().edge_index},
            r"edge_type must be one .* got \('paper', 'cites', 'paper'\) or \('paper', 'refutes', 'paper'\)",
        ),
        ({"node_type": "paper", "edge_type": ("paper", "sites", "paper")}, {}, "edge_type: .* is not in the graph"),
        ({"node_type": "paper", "edge_type": ("author", "writes", "paper")}, {}, "does not join nodes of node_type"),
        ({"edge_type": ("paper", "cites", "paper")}, {}, "does not join nodes of node_type None"),
    ],
)
def test_types_that_do_not_fit(options, relations, message):
    with pytest.raises(OptionError, match=message) as error:
        ReNode(**options)(a_hetero_graph(**relations))
    assert "\n" not in str(error.value)


def test_types_are_for_heterogeneous_graphs():
    with pytest.raises(OptionError, match="node_type: 'paper' is for a HeteroData"):
        ReNode(node_type="paper")(small_graph())
    data = a_hetero_graph()
    del data["paper"].y
    with pytest.raises(DataError, match=r"data\['paper'\].y: the graph has none"):
        ReNode(node_type="paper")(data)


def test_the_labels_tell_how_many_nodes_there_are():
    """Without features torch_geometric would take the isolated last node for absent."""
    bare = Data(edge_index=small_graph().edge_index, y=LABELS, train_mask=MASK)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(ReNode()(bare).totoro, ReNode()(small_graph()).totoro)
        renode_loss(torch.rand(7), ReNode()(bare))


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"train_mask": torch.zeros(7, dtype=torch.bool)}, "train_mask: there is no labelled node"),
        ({"train_mask": torch.arange(7) < 2}, "train_mask: no labelled node of class 1; empty_classes='skip'"),
        (
            {"train_mask": torch.ones(9, dtype=torch.bool)},
            r"data.train_mask must be .* got torch.bool of shape \(9,\)",
        ),
        ({"train_mask": torch.full((7,), 0.5)}, "data.train_mask must be node ids"),
        ({"train_mask": torch.tensor(2)}, "data.train_mask must be node ids"),
        ({"train_mask": "0110"}, "data.train_mask must be a tensor or an array, got str"),
        ({"train_mask": None}, "data.train_mask: the graph has none"),
        ({"y": None}, "data.y: the graph has none"),
        ({"edge_index": None}, "data.edge_index: the graph has none"),
        ({"y": torch.tensor([0, 0, -1, 1, 1, 1, 1])}, "y must be at least 0 where a node is labelled, got -1"),
        ({"y": torch.zeros(7, 4)}, "y must be class numbers of shape"),
        ({"y": [[0], [0, 1]]}, "y must be a tensor or an array, got list"),
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
        ({"alpha": 0}, "alpha must be at least 1e-06 and less than 1, got 0"),
        ({"alpha": 1.2}, "alpha must be .*got 1.2"),
        ({"w_min": 0}, "w_min: 0 is the weight of nodes without label"),
        ({"w_min": 1.6}, "w_min and w_max must satisfy 0 <= w_min <= w_max, got 1.6 and 1.5"),
        ({"ties": "random"}, "ties: 'random'"),
        ({"tol": 0}, "tol must be .*got 0"),
        ({"max_iter": 0}, "max_iter must be .*got 0"),
        ({"empty_classes": "ignore"}, "empty_classes: 'ignore'"),
    ],
)
def test_bad_option(options, message):
    with pytest.raises(ValueError, match=message):
        ReNode(**options)


def test_no_convergence():
    with pytest.raises(ValueError, match=r"tol: cg did not converge, 1 steps reached residual .* tolerance 1.0e-12"):
        ReNode(max_iter=1)(small_graph())
