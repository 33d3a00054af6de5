"""Graphs and splits: the released splits, other kinds, files, and what is refused in one line."""

from __future__ import annotations

import hashlib
import pickle
import shutil
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
import torch_geometric.transforms as T
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from torch_geometric import EdgeIndex
from torch_geometric.data import Batch, Data, HeteroData
from torch_geometric.io import read_npz
from torch_geometric.utils import coalesce

from benchmarks.totoro import numpy_peak_bytes
from fairseq_ext.training.errors import CheckpointError, DataError, OptionError
from graph.processed import raw_digest
from graph.renode import ReNode
from graph.renode.data import check_graph, graph_digest, load_graph
from graph.renode.large_graph import LargeGraph
from graph.renode.splits import count_splits, labelled_nodes, make_split, quotas
from tests.helpers import load_golden, require_data


def toy(nodes=60, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    edge_index = torch.randint(nodes, (2, 4 * nodes), generator=generator)
    return Data(x=torch.rand(nodes, 5, generator=generator), edge_index=edge_index, y=torch.arange(nodes) % classes)


def released_options(golden):
    options = dict(train_each=int(golden.get("opt_train_each", 20)), valid_each=int(golden.get("opt_valid_each", 30)))
    return options | dict(
        imbalance="step" if golden["opt_step"] else "none",
        labeling_ratio=float(golden["opt_labeling_ratio"]),
        imbalance_ratio=float(golden["opt_imb_ratio"]),
        head_classes=golden["opt_head_list"].tolist(),
    )


@pytest.mark.parametrize("name", ["small_a", "small_b", "small_c_iso", "small_d_step", "small_e_alpha"])
def test_released_splits(name):
    golden = load_golden("renode", name)
    data, seed = Data(y=torch.tensor(golden["y"])), int(golden["shuffle_seed"])
    split = make_split(data, "compat", seed, **released_options(golden))
    assert split.train.tolist() == golden["train_idx"].tolist()
    assert split.valid.tolist() == golden["valid_mask"].nonzero()[0].tolist()
    assert split.test.tolist() == golden["test_mask"].nonzero()[0].tolist()


@pytest.fixture(scope="module")
def planetoid_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("planetoid")
    for name in ("Cora", "CiteSeer"):
        shutil.copytree(require_data("pyg") / "Planetoid" / name, root / name)
    return root


CITATION = ["cora_none_seed0", "cora_none_seed1", "cora_step_r5_seed0", "cora_step_r10_seed0", "citeseer_none_seed0"]


@pytest.mark.parametrize("name", CITATION)
def test_released_splits_of_citation_graphs(name, planetoid_root):
    golden = load_golden("renode", name)
    data = load_graph("CiteSeer" if name.startswith("citeseer") else "Cora", planetoid_root)
    assert data.num_edges == golden["num_edges"]
    split = make_split(data, "compat", int(golden["shuffle_seed"]), **released_options(golden))
    assert split.train.tolist() == golden["train_idx"].tolist()
    assert split.valid.tolist() == golden["valid_idx"].tolist()
    assert hashlib.sha256(split.test.numpy().astype("<i8").tobytes()).hexdigest() == str(golden["test_idx_sha256"])


@given(seed=st.integers(0, 1000), kind=st.sampled_from(["compat", "random"]))
def test_splits_partition_the_nodes(seed, kind):
    data = toy()
    split = make_split(data, kind, seed, train_each=4, valid_each=3)
    assert sorted(torch.cat([split.train, split.valid, split.test]).tolist()) == list(range(60))
    assert torch.bincount(data.y[split.train]).tolist() == [4] * 3
    assert torch.bincount(data.y[split.valid]).tolist() == [3] * 3


def test_random_validation_is_random_and_compat_is_not():
    def lowest(kind):
        splits = [make_split(toy(3000), kind, seed, valid_each=10) for seed in range(5)]
        return max(split.valid.max().item() for split in splits)

    assert lowest("compat") < 60 < 1000 < lowest("random")
    compat, random = (make_split(toy(), kind, 3, train_each=4, valid_each=3) for kind in ("compat", "random"))
    assert compat.train.tolist() == random.train.tolist()


def test_step_quotas():
    y = torch.arange(2708) % 7
    assert quotas(y, "step", labeling_ratio=0.05, imbalance_ratio=5) == [35] * 3 + [7] * 4
    assert quotas(y, "step", labeling_ratio=0.05, imbalance_ratio=10, head_classes=[6]) == [8] * 6 + [80]
    assert quotas(y, train_each=12) == [12] * 7


def test_public_splits():
    data = load_graph("KarateClub")
    assert labelled_nodes(data, "public").tolist() == data.train_mask.nonzero().squeeze(1).tolist()
    data = toy()
    masks = torch.zeros(60, 2, dtype=torch.bool)
    masks[:3, 0] = masks[3:9, 1] = True
    data.train_mask, data.val_mask, data.test_mask = masks, masks[:, 0].roll(20), masks[:, 0].roll(30)
    assert [make_split(data, "public", seed).train.tolist() for seed in (0, 1)] == [[0, 1, 2], [3, 4, 5, 6, 7, 8]]
    assert make_split(data, "public").valid.tolist() == [20, 21, 22]
    assert [count_splits(data, kind) for kind in ("public", "compat")] == [2, 5]
    assert [count_splits(data, kind, 2) for kind in ("public", "random")] == [2, 2]
    for seed in (-1, 2):
        with pytest.raises(OptionError, match=f"split {seed} is not there, the graph has 2, counted from 0"):
            make_split(data, "public", seed)
    with pytest.raises(OptionError, match="--splits 3: the graph has 2 public splits"):
        count_splits(data, "public", 3)
    data.train_mask = masks[:, 0]
    assert count_splits(data, "public") == 1
    with pytest.raises(OptionError, match=r"--splits 2: the graph has 1 public split$"):
        count_splits(data, "public", 2)
    data.train_mask = masks[:, [0] * 12]
    assert count_splits(data, "public") == 5 and len(make_split(data, "public", 11).train) == 3


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("compt", {}, "--split-kind: 'compt' is not one of .* did you mean 'compat'"),
        ("compat", dict(imbalance="stepp"), "--imbalance: 'stepp' .* did you mean 'step'"),
        ("compat", dict(train_each=25), "--train-each.*class 0 has only 20 of 25 nodes"),
        ("compat", dict(train_each=15, valid_each=6), "--valid-each: class 0 has only 5 of 6 nodes"),
        ("compat", dict(train_each=10, valid_each=10), "none of the 60 nodes is left for testing"),
        ("compat", dict(train_each=0), "--train-each must be at least 1, got 0"),
        ("random", dict(valid_each=0), "--valid-each must be at least 1, got 0"),
        ("compat", dict(imbalance="step", head_classes=[0, 3]), "--head-classes: .* among the classes 0 to 2"),
        ("compat", dict(imbalance="step", labeling_ratio=0.01), "leaves a class without labelled nodes"),
        ("compat", dict(imbalance="step", labeling_ratio=1.5), "--labeling-ratio must be in"),
        ("public", {}, "--split-kind public: the graph has no train_mask"),
    ],
)
def test_split_refusals(kind, options, message):
    with pytest.raises((OptionError, DataError), match=message):
        make_split(toy(), kind, **options)


def test_public_splits_make_no_objects_of_nodes():
    place = torch.arange(100_000) % 3
    data = Data(y=torch.arange(100_000) // 3 % 2, train_mask=place == 0, val_mask=place == 1, test_mask=place == 2)
    assert numpy_peak_bytes(lambda: make_split(data, "public", 0)) < 500_000, "a Python int for each node"


def test_public_split_refusals():
    data = toy()
    data.train_mask = data.val_mask = data.test_mask = torch.zeros(60, dtype=torch.bool)
    with pytest.raises(DataError, match="train_mask must mark some of the 60 nodes"):
        labelled_nodes(data, "public")
    data.train_mask = data.val_mask = data.test_mask = data.y < 2
    for split in (make_split, labelled_nodes):
        with pytest.raises(DataError, match=r"^--split-kind public: class 2 has no labelled node$"):
            split(data, "public")
    data.train_mask = torch.ones(60, dtype=torch.bool)
    data.test_mask = torch.arange(60) > 57
    with pytest.raises(DataError, match="--split-kind public: 2 nodes are in train_mask and in test_mask"):
        make_split(data, "public")
    data.train_mask = ~data.test_mask
    data.val_mask = torch.arange(60) == 59
    with pytest.raises(DataError, match="--split-kind public: 1 nodes are in val_mask and in test_mask"):
        make_split(data, "public")
    data.train_mask, data.val_mask = torch.arange(60) < 9, (torch.arange(60) > 5) & (torch.arange(60) < 20)
    with pytest.raises(DataError, match="--split-kind public: 3 nodes are in train_mask and in val_mask"):
        make_split(data, "public")
    data.y[5] = -1
    with pytest.raises(DataError, match="train_mask marks node 5, which has no label"):
        make_split(data, "public")


def test_labels_of_other_forms_are_split_alike():
    data = toy()
    expected = make_split(data, train_each=4, valid_each=3)
    for y in (data.y[:, None], data.y.float(), data.y.numpy(), data.y.tolist(), data.y.to(torch.uint8)):
        split = make_split(Data(y=y), train_each=4, valid_each=3)
        assert all(getattr(split, part).equal(getattr(expected, part)) for part in ("train", "valid", "test"))
        assert labelled_nodes(Data(y=y), train_each=4).equal(expected.train)


def test_nodes_without_label_are_in_no_split():
    """Those of ogbn-papers100M have NaN."""
    data = toy()
    y = data.y.float()
    y[::4] = torch.nan
    data.y = y[:, None]
    checked = check_graph(data)
    unknown = torch.arange(0, 60, 4)
    assert (checked.y[unknown] == -1).all() and checked.y.dtype == torch.long
    for kind in ("compat", "random"):
        split = make_split(checked, kind, train_each=4, valid_each=3)
        nodes = torch.cat([split.train, split.valid, split.test])
        assert sorted(nodes.tolist()) == [node for node in range(60) if node % 4]
        assert labelled_nodes(checked, kind, train_each=4).equal(split.train)
    assert len(labelled_nodes(checked, train_each=15)) == 45, "of all nodes none is left for validation"
    checked.train_mask = checked.val_mask = checked.y >= 0
    assert len(labelled_nodes(checked, "public")) == 45


def changed(**parts):
    data = toy()
    for name, value in parts.items():
        data[name] = value(data.get(name))
    return data


WEIGHTS = "^toy: edge_weight must hold only 1, as weights of edges are not read here, got 2(.0)?$"


def put(index, value):
    def change(tensor):
        tensor = tensor.clone()
        tensor[index] = value
        return tensor

    return change


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (dict(x=lambda x: None), "the graph has no x"),
        (dict(x=lambda x: x[:, 0]), r"x must be \(nodes, features\), got shape \(60,\)"),
        (dict(x=lambda x: x[..., None]), r"x must be \(nodes, features\), got shape \(60, 5, 1\)"),
        (dict(x=put((7, 2), torch.nan)), "features of node 7 are NaN or infinite"),
        (dict(x=put((8, 0), torch.inf)), "features of node 8 are NaN or infinite"),
        (dict(x=lambda x: x + 1j), "toy: x must be real numbers, got torch.complex64"),
        (dict(x=lambda x: (x + 1j).numpy()), "toy: x must be real numbers, got torch.complex64"),
        (dict(x=lambda x: "x"), "toy: x must be a tensor or an array, got str"),
        (dict(y=put(5, -2)), "label -2 of node 5 is out of range"),
        (dict(y=lambda y: y * 0 - 1), "no node has a label"),
        (dict(y=lambda y: None), "the graph has no y"),
        (dict(y=lambda y: y[:-1]), r"y must be class numbers of shape \(60,\), got torch.int64 of shape \(59,\)"),
        (dict(y=lambda y: torch.nn.functional.one_hot(y)), r"of shape \(60,\), got torch.int64 of shape \(60, 3\)"),
        (dict(y=lambda y: y + 0.5), "y must be .* got fractions"),
        (dict(edge_index=lambda e: None), "edge_index: the graph has none"),
        (dict(edge_index=put((1, 3), 60)), "edge_index names node 60, the graph has nodes 0 to 59"),
        (dict(edge_index=put((0, 0), -2)), "edge_index names node -2"),
        (dict(edge_index=lambda e: e.T), "edge_index must be integers of shape"),
        (dict(edge_index=lambda e: e.float()), "edge_index must be integers of shape"),
        (dict(edge_weight=lambda w: torch.ones(240).index_fill(0, torch.tensor(3), 2)), WEIGHTS),
        (dict(edge_weight=lambda w: np.arange(1, 241)), WEIGHTS),
        (dict(edge_weight=lambda w: "w"), "toy: edge_weight must be a tensor or an array, got str"),
    ],
)
def test_graph_refusals(parts, message):
    with pytest.raises(DataError, match=message):
        check_graph(changed(**parts), "toy")


@pytest.mark.parametrize("mask", [torch.tensor(True), torch.full((60,), 0.5), torch.ones(59), [[True]], "yes"])
def test_masks_that_are_none(mask):
    data = toy()
    data.train_mask = mask
    with pytest.raises(DataError, match=r"--split-kind public: train_mask must be |^train_mask must be "):
        labelled_nodes(data, "public")


@pytest.mark.parametrize("kind", [torch.uint8, torch.int64, torch.float32])
def test_masks_of_other_types(kind):
    data = toy()
    data.train_mask, data.val_mask, data.test_mask = (torch.arange(60) % 3 == part for part in range(3))
    data.y = torch.arange(60) // 20
    expected = make_split(data, "public")
    for name in ("train_mask", "val_mask", "test_mask"):
        data[name] = data[name].to(kind)[:, None]
    split = make_split(data, "public")
    assert all(getattr(split, part).equal(getattr(expected, part)) for part in ("train", "valid", "test"))


@pytest.mark.parametrize("kind", [list, np.asarray])
@pytest.mark.parametrize("name", ["train_mask", "val_mask", "test_mask"])
def test_masks_are_digested_in_every_form(name, kind):
    """A split that is used is part of what a result belongs to."""
    masks = {
        part: torch.arange(60) % 3 == number for number, part in enumerate(("train_mask", "val_mask", "test_mask"))
    }
    first, second, tensors = toy(), toy(), toy()
    for part, mask in masks.items():
        first[part], second[part], tensors[part] = kind(mask.tolist()), kind(mask.tolist()), mask
    second[name] = kind(masks[name].roll(1).tolist())
    digests = [graph_digest(check_graph(data)) for data in (first, second, tensors)]
    assert digests[0] == digests[2] != digests[1]


@pytest.mark.filterwarnings("ignore:Sparse CSR")
def test_sparse_features_are_taken():
    data = toy()
    for x in (data.x.to_sparse_coo(), data.x.to_sparse_csr()):
        assert check_graph(Data(x=x, edge_index=data.edge_index, y=data.y)).x.equal(data.x)


def test_features_are_needed_for_training_alone():
    data = toy()
    data.x = None
    assert check_graph(data, need_features=False).y.equal(data.y)
    data.edge_index = data.edge_index + 1
    with pytest.raises(DataError, match="edge_index names node 60, the graph has nodes 0 to 59"):
        check_graph(data, need_features=False)


def test_column_labels_and_other_types_are_taken():
    data = toy()
    odd = Data(x=data.x.double(), edge_index=data.edge_index.int(), y=data.y.float().unsqueeze(1))
    checked = check_graph(odd)
    assert checked.y.equal(data.y) and checked.x.dtype == torch.float32 and checked.edge_index.dtype == torch.long
    assert odd.y.shape == (60, 1)


def test_saved_graphs(tmp_path):
    data = toy()
    torch.save(data, tmp_path / "data.pt")
    torch.save(data.to_dict(), tmp_path / "dict.pt")
    for name in ("data.pt", "dict.pt"):
        loaded = load_graph(str(tmp_path / name))
        assert loaded.x.equal(data.x) and loaded.y.equal(data.y) and loaded.edge_index.equal(data.edge_index)
    directed = load_graph(str(tmp_path / "data.pt"), to_undirected=True, normalize_features=True)
    assert directed.is_undirected() and directed.x.sum(1).allclose(torch.ones(60))


@pytest.mark.parametrize(
    ("x", "normalized"),
    [
        ([[1.0, 0, 1], [0, 0, 0]], [[0.5, 0, 0.5], [0, 0, 0]]),
        ([[-3.0, 1, 2], [3, 0, 3]], [[0, 4 / 9, 5 / 9], [0.4, 0.2, 0.4]]),
        ([[0.0, 0.1, 0.2], [2, 0, 2]], [[0, 0.1, 0.2], [0.5, 0, 0.5]]),
        ([[0.0, 0.1, 0.2], [0.3, 0, 0.3]], None),
        ([[0.0, 0, 1], [0.4, 0.2, 0.4]], None),
    ],
)
def test_features_are_normalized_as_documented_or_it_is_refused(tmp_path, x, normalized):
    edges = torch.tensor([[0, 1], [1, 0]])
    torch.save(Data(x=torch.tensor(x), y=torch.tensor([0, 1]), edge_index=edges), tmp_path / "g.pt")
    if normalized:
        loaded = load_graph(str(tmp_path / "g.pt"), normalize_features=True)
        torch.testing.assert_close(loaded.x, torch.tensor(normalized))
    else:
        with pytest.raises(OptionError, match=r"^--normalize-features: changes nothing in .*g\.pt"):
            load_graph(str(tmp_path / "g.pt"), normalize_features=True)


TRANSFORMS = [
    T.AddSelfLoops(),
    T.AddLaplacianEigenvectorPE(k=3),
    T.AddRandomWalkPE(walk_length=3),
    T.Constant(),
    T.GDC(),
    T.LargestConnectedComponents(),
    T.LocalDegreeProfile(),
    T.NormalizeFeatures(),
    T.RandomNodeSplit(num_val=5, num_test=5),
    T.RemoveIsolatedNodes(),
    T.SIGN(2),
    T.TargetIndegree(),
    T.ToSparseTensor(layout=torch.sparse_coo),
    T.ToSparseTensor(layout=torch.sparse_csr),
    T.ToUndirected(),
    T.Compose([T.ToUndirected(), T.TwoHop()]),  # it multiplies sparse matrices, and crashes where an edge stands twice
    T.VirtualNode(),
    T.Compose([T.ToUndirected(), ReNode()]),
]


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda transform: type(transform).__name__)
def test_graphs_saved_after_a_transform(tmp_path, transform):
    data = toy()
    data.train_mask = torch.arange(60) < 30
    data = transform(data)
    data.node_attrs(), data.edge_attrs()  # what they find out is saved, too
    torch.save(data, tmp_path / "data.pt")
    loaded = load_graph(str(tmp_path / "data.pt"))
    assert loaded.x.equal(data.x.float()) and loaded.y.equal(data.y)
    if data.get("edge_index") is not None:
        assert loaded.edge_index.equal(data.edge_index)
    else:
        assert "adj_t" not in loaded
        assert coalesce(loaded.edge_index).equal(coalesce(toy().edge_index))


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("layout", [None, torch.sparse_coo, torch.sparse_csr])
def test_weights_of_edges_are_refused_where_they_would_be_lost(tmp_path, layout):
    data = T.ToUndirected()(toy())  # without duplicates, whose weights a matrix adds
    data.edge_weight = torch.ones(data.num_edges)
    matrix = T.ToSparseTensor(layout=layout) if layout else T.Compose([])
    torch.save(matrix(data.clone()), tmp_path / "ones.pt")
    torch.save(matrix(T.GCNNorm()(data)), tmp_path / "weights.pt")
    load_graph(str(tmp_path / "ones.pt"))
    part = "adj_t" if layout else "edge_weight"
    with pytest.raises(DataError, match=rf"weights\.pt: {part} must hold only 1, as weights of edges .*, got 0\."):
        load_graph(str(tmp_path / "weights.pt"))


def of_one_type(data):
    hetero = HeteroData()
    hetero["paper"].update({"y": data.y, "train_mask": data.train_mask})
    hetero["paper", "cites", "paper"].update(
        {part: data[part] for part in ("edge_index", "edge_weight", "adj_t") if part in data}
    )
    return ReNode(node_type="paper")(hetero)


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("layout", [None, torch.sparse_csr])
@pytest.mark.parametrize("take", [check_graph, ReNode(), of_one_type, LargeGraph.from_data])
def test_whoever_takes_a_graph_refuses_weights_of_edges(take, layout):
    data = T.ToUndirected()(toy())
    data.train_mask = torch.ones(data.num_nodes, dtype=torch.bool)
    matrix = T.ToSparseTensor(layout=layout) if layout else T.Compose([])
    for weight in (1.0, 0.5):
        data.edge_weight = torch.full((data.num_edges,), weight)
        if weight == 1:
            take(matrix(data.clone()))
        else:
            part = "adj_t" if layout else "edge_weight"
            with pytest.raises(DataError, match=rf"{part} must hold only 1, as weights of edges .*, got 0\.5$"):
                take(matrix(data.clone()))


def test_graphs_with_other_contents(tmp_path):
    data = toy()
    data.x, data.y, data.edge_index = data.x.numpy(), data.y.numpy().astype(np.int16), EdgeIndex(data.edge_index)
    data.name, data.scale, data.names = "toy", np.float64(2), np.array(["a", "b"])
    torch.save(data, tmp_path / "data.pt")
    loaded = load_graph(str(tmp_path / "data.pt"))
    assert all(loaded[part].equal(toy()[part]) for part in ("x", "y", "edge_index"))


def test_torchs_safe_loader_is_left_as_it_was(tmp_path):
    before = set(torch.serialization.get_safe_globals())
    torch.save(toy(), tmp_path / "data.pt")
    load_graph(str(tmp_path / "data.pt"))
    with pytest.raises(CheckpointError):
        load_graph(str(tmp_path / "absent.pt"))
    assert set(torch.serialization.get_safe_globals()) == before and Data in before


@settings(max_examples=300)
@given(st.data())
def test_damaged_graphs_end_in_one_line(damaged, data):
    """Cut, or with some bytes changed: what can still be read is a graph, the rest is named."""
    path, content = damaged[data.draw(st.sampled_from(sorted(damaged)))]
    content = bytearray(content)
    random = data.draw(st.randoms(use_true_random=False))
    for _ in range(random.randrange(8)):
        content[random.randrange(len(content))] = random.randrange(256)
    path.write_bytes(content[: random.choice([len(content), random.randrange(len(content))])])
    try:
        check_graph(load_graph(str(path)))
    except (DataError, CheckpointError) as error:
        assert str(path) in str(error) and "\n" not in str(error)


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    """Paths to write to, and what whole files hold."""
    folder, data = tmp_path_factory.mktemp("damaged"), toy(20)
    torch.save(data, folder / "data.pt")
    torch.save(data.to_dict(), folder / "dict.pt")
    npz(folder / "dense.npz", np.eye(3))
    npz(folder / "packed.npz", np.eye(3), save=np.savez_compressed)
    return {path.name: (path, path.read_bytes()) for path in folder.iterdir()}


class Hostile:
    def __reduce__(self):
        return print, ("executed",)


def test_hostile_and_damaged_files(tmp_path, capsys):
    torch.save({"x": Hostile()}, tmp_path / "hostile.pt")
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps(Hostile(), protocol=2))
    np.savez(tmp_path / "pickle.npz", labels=np.array([Hostile()], dtype=object))
    (tmp_path / "text.npz").write_text("no zip")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({1: torch.ones(2)}, tmp_path / "keys.pt")
    for name, several in {"hetero.pt": HeteroData(paper={"x": torch.ones(2, 1)}), "batch.pt": Batch()}.items():
        torch.save(several, tmp_path / name)
    for name, message in [
        ("hostile.pt", "could run code"),
        ("pickle.pt", "refused|no checkpoint"),
        ("pickle.npz", "no array 'adj_data'; expected"),
        ("text.npz", "not an .npz file"),
        ("list.pt", "holds a list, not a torch_geometric Data"),
        ("keys.pt", "holds a dict, not a torch_geometric Data"),
        ("hetero.pt", "holds more than one Data .*: save one Data, or its dict, such as torch.save"),
        ("batch.pt", "holds more than one Data .*: save one Data, or its dict, such as torch.save"),
        ("absent.pt", "No such file"),
        ("absent.npz", "no such file"),
    ]:
        with pytest.raises((DataError, CheckpointError), match=message):
            load_graph(str(tmp_path / name))
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Coraa", "--dataset: 'Coraa' is not one of .*did you mean 'Cora'"),
        ("CitationFul:DBLP", "did you mean 'CitationFull'"),
        ("ogbn-arxiw", "did you mean 'ogbn-arxiv'"),
        ("CitationFull", "CitationFull holds several graphs; name one"),
        ("KarateClub:foo", "KarateClub is one graph, without names"),
        ("StochasticBlockModelDataset", "not available under --root"),
    ],
)
def test_unknown_data_sets(name, message, tmp_path):
    with pytest.raises((OptionError, DataError), match=message) as refusal:
        load_graph(name, tmp_path)
    assert "\n" not in str(refusal.value)


def test_ogb_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ogb", None)
    with pytest.raises(DataError, match="needs the package ogb: pip install ogb"):
        load_graph("ogbn-arxiv", tmp_path)


def test_ogb_graphs_are_read_by_the_safe_loader(tmp_path, monkeypatch):
    """The package reads its processed graph with a bare ``torch.load``."""
    data, ids = toy(), {"train": torch.arange(9), "valid": torch.arange(9, 20), "test": torch.arange(20, 60)}
    torch.save((data, None), tmp_path / "processed.pt")

    class Stub:
        def __init__(self, name, root):
            if name == "ogbn-products":
                raise EOFError("This will download 1.38GB. Will you proceed? (y/N)")
            self.graph, _ = torch.load(f"{root}/processed.pt")

        def __getitem__(self, index):
            return self.graph

        def get_idx_split(self):
            return ids

    monkeypatch.setitem(sys.modules, "ogb", ModuleType("ogb"))
    monkeypatch.setitem(sys.modules, "ogb.nodeproppred", SimpleNamespace(PygNodePropPredDataset=Stub))
    split = make_split(load_graph("ogbn-arxiv", tmp_path), "public")
    assert [part.tolist() for part in (split.train, split.valid, split.test)] == [ids[name].tolist() for name in ids]
    with pytest.raises(DataError, match=r"--dataset ogbn-products: not available under --root .*Will you proceed"):
        load_graph("ogbn-products", tmp_path)


def npz(path, features, edges=((0, 1), (1, 0), (1, 2), (2, 2)), labels=(0, 1, 1), save=np.savez):
    adjacency = sparse.csr_array((np.ones(len(edges)), np.transpose(edges)), shape=(3, 3))
    arrays = {f"adj_{part}": getattr(adjacency, part) for part in ("data", "indices", "indptr", "shape")}
    save(path, labels=np.array(labels), attr_matrix=features, **arrays)
    return str(path)


def test_npz_features_stay_as_they_are(tmp_path):
    features = np.array([[0.64, 0.25], [-1.0, 0.0], [0.0, 3.0]])
    data = load_graph(npz(tmp_path / "graph.npz", features))
    np.testing.assert_array_equal(data.x, features.astype(np.float32))
    # Undirected, each edge once, without self-loops: what torch_geometric makes of the file.
    assert data.edge_index.tolist() == [[0, 1, 1, 2], [1, 0, 2, 1]]
    assert load_graph(npz(tmp_path / "graph.npz", features), need_features=False).x is None


def test_npz_with_nodes_without_label(tmp_path):
    for labels in ([0, -1, 1], [0, np.nan, 1]):
        assert load_graph(npz(tmp_path / "graph.npz", np.eye(3), labels=labels)).y.tolist() == [0, -1, 1]


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (np.array([["a"]] * 3), "graph.npz: x must be a tensor or an array, got an array of <U1"),
        (np.full((3, 2), 1j), "graph.npz: x must be real numbers, got torch.complex128"),
        (np.full((3, 2), np.nan), "graph.npz: the features of node 0 are NaN or infinite"),
        (np.ones((2, 2)), "graph.npz: y must be class numbers of shape"),
    ],
)
def test_bad_npz_features_are_named_where_they_are_needed(tmp_path, features, message):
    path = npz(tmp_path / "graph.npz", features)
    with pytest.raises(DataError, match=message) as refusal:
        load_graph(path)
    assert "\n" not in str(refusal.value)
    assert load_graph(path, need_features=False).y.tolist() == [0, 1, 1]


def test_npz_in_amazons_layout():
    path = require_data("pyg") / "Amazon/Photo/raw/amazon_electronics_photo.npz"
    data, other = load_graph(str(path)), read_npz(str(path))
    assert (data.num_nodes, data.num_edges, data.num_features) == (7650, 238162, 745)
    assert all(data[name].equal(other[name]) for name in ("x", "y", "edge_index"))


@pytest.mark.parametrize("recorded", [True, False])
def test_changed_raw_files_are_read_again(tmp_path, recorded, monkeypatch):
    raw = tmp_path / "Photo" / "raw" / "amazon_electronics_photo.npz"
    raw.parent.mkdir(parents=True)
    data = toy()

    def write(labels):
        write_amazon(raw, data.edge_index, labels)

    write(data.y)
    assert load_graph("Photo", tmp_path).y.equal(data.y)
    if not recorded:  # the copy of torch_geometric alone
        (tmp_path / "Photo" / "processed" / "raw.sha256").unlink()
    write(data.y.flip(0))
    assert load_graph("Photo", tmp_path).y.equal(data.y.flip(0))
    monkeypatch.setattr("torch_geometric.datasets.Amazon.process", lambda _: pytest.fail("processed again"))
    again = load_graph("Photo", tmp_path)
    assert again.y.equal(data.y.flip(0)) and again.num_nodes == 60


def write_amazon(path, edge_index, labels):
    """A graph in the layout of Amazon's files, one feature a node."""
    features, edges = sparse.eye_array(60, 60, format="csr"), coalesce(edge_index).numpy()
    adjacency = sparse.csr_array((np.ones(edges.shape[1]), tuple(edges)), shape=(60, 60))
    parts = {
        f"{name}_{part}": getattr(matrix, part)
        for name, matrix in (("adj", adjacency), ("attr", features))
        for part in ("data", "indices", "indptr", "shape")
    }
    np.savez(path, labels=labels.numpy(), **parts)


class Copier:
    """Copies a file when unpickled without torch's safe loader, by a function that the loader does not know as evil."""

    def __init__(self, source, target):
        self.arguments = str(source), str(target)

    def __reduce__(self):
        return shutil.copyfile, self.arguments


def test_a_hostile_data_set_runs_no_code(tmp_path):
    payload, hostile = tmp_path / "payload", tmp_path / "Photo" / "processed" / "data.pt"
    for path in (hostile, tmp_path / "Photo" / "raw" / "amazon_electronics_photo.npz"):
        path.parent.mkdir(parents=True)
        path.write_bytes(b"")
    torch.save(({"x": Copier(__file__, payload)}, None, Data), hostile)
    hostile.with_name("raw.sha256").write_text(raw_digest(tmp_path / "Photo" / "raw"))  # else it is made anew
    with pytest.raises(DataError, match=r"--dataset Photo: not available under .*Unpickl"):
        load_graph("Photo", tmp_path)
    assert not payload.exists()
    torch.load(hostile, weights_only=False)
    assert payload.exists(), "the payload works, so it was the safe loader that stopped it"
