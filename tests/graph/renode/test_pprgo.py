"""PPRGo: fixtures of the released code, batches against their plain form, resume, several processes, files."""

from __future__ import annotations

import json
import math
import multiprocessing
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import debug_launcher
from accelerate.state import AcceleratorState
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse
from torch_geometric.datasets import Planetoid

from fairseq_ext.training.errors import CheckpointError, DataError, OptionError
from graph.renode import large
from graph.renode.__main__ import main
from graph.renode.pprgo import PPRGo, RowBatches, predict, to_torch
from graph.renode.pprgo_data import InductiveSplit, LargeGraph, inductive_split, read_large_graph
from graph.renode.pprgo_train import labelled_weights, train
from graph.renode.push import push_pagerank
from tests.helpers import load_golden, require_data

# A forked process needs no second import of everything.
FORK = multiprocessing.get_context("fork")


def golden_cases() -> list[str]:
    return sorted({key.split(".w.")[0] for key in load_golden("renode", "pprgo") if ".w." in key})


def a_graph(nodes: int = 150, classes: int = 3, features: int = 24, seed: int = 0) -> LargeGraph:
    """Classes that can be told by features and neighbours, and by neither perfectly; some nodes stay isolated."""
    generator = np.random.default_rng(seed)
    y = generator.integers(classes, size=nodes)
    near = np.where(y[:, None] == y, 0.06, 0.01)
    source, target = np.nonzero(np.triu(generator.random((nodes, nodes)) < near, 1))
    x = ((generator.random((nodes, features)) < 0.1) | (np.arange(features) % 8 == y[:, None])).astype(np.float32)
    x *= generator.random(x.shape) < 0.6
    edges = torch.from_numpy(np.stack([np.append(source, target), np.append(target, source)]))
    return LargeGraph(edges, sparse.csr_array(x), y)


def write_npz(graph: LargeGraph, path: Path, joint: str = "_") -> Path:
    arrays = {"labels": graph.y}
    for name, matrix in (("adj", graph.adjacency), ("attr", sparse.csr_array(graph.x))):
        for part in ("data", "indices", "indptr", "shape"):
            arrays[f"{name}{joint}{part}"] = getattr(matrix, part)
    np.savez(path, **arrays)
    return path


def rows_of(graph: LargeGraph, nodes: np.ndarray) -> sparse.csr_array:
    return push_pagerank(graph.edge_index, torch.from_numpy(nodes), len(graph.y), eps=1e-3)


def batches_of(graph: LargeGraph, nodes: np.ndarray, **options) -> RowBatches:
    return RowBatches(rows_of(graph, nodes), graph.x, graph.y[nodes], np.linspace(0.5, 1.5, len(nodes)), **options)


def same(a: PPRGo, b: PPRGo) -> bool:
    return all(torch.equal(value, b.state_dict()[name]) for name, value in a.state_dict().items())


@pytest.mark.parametrize("kind", ["dense", "sparse"])
@pytest.mark.parametrize("case", golden_cases())
def test_released_model(case, kind):
    graph_name, layers, _, normalization = case.split(".")
    released, data = load_golden("renode", "pprgo"), load_golden("renode", graph_name)
    x = data["x"] if kind == "dense" else sparse.csr_array(data["x"])
    graph, nodes = LargeGraph(torch.from_numpy(data["edge_index"]), x, data["y"]), data["labelled"]
    model = PPRGo(8, 4, hidden_channels=16, num_layers=int(layers[1:]), dropout=0)
    # The first matrix is kept the other way round there.
    with torch.no_grad():
        for i, layer in enumerate(model.layers):
            weight = torch.from_numpy(released[f"{case}.w.mlp.fcs.{i}.weight"])
            layer.weight.copy_(weight if i else weight.T)

    rows = sparse.csr_array(released[f"{case}.ppr"])
    (batch,) = RowBatches(rows, graph.x, graph.y[nodes], released[f"{case}.rn_weight"])
    out = model(batch.x, batch.ppr)
    loss = (batch.weight * F.cross_entropy(out, batch.y, reduction="none")).sum()
    loss.backward()
    np.testing.assert_allclose(out.detach(), released[f"{case}.out"], atol=1e-6)
    np.testing.assert_allclose(loss.item(), released[f"{case}.loss_sum_renode"], rtol=1e-5)
    assert (out.argmax(1) == batch.y).sum() == released[f"{case}.ncorrect"]
    for i, layer in enumerate(model.layers):
        gradient = layer.weight.grad if i else layer.weight.grad.T
        np.testing.assert_allclose(gradient, released[f"{case}.gw.mlp.fcs.{i}.weight"], atol=2e-6)
    everywhere = predict(model, graph.x, graph.adjacency, normalization=normalization, chunk=7)
    np.testing.assert_array_equal(everywhere, released[f"{case}.pred_all_nprop2"])


@pytest.fixture(scope="module")
def cora_root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("planetoid")
    shutil.copytree(require_data("pyg") / "Planetoid" / "Cora" / "raw", root / "Cora" / "raw")
    return root


@pytest.mark.parametrize("name", ["tinl_w0.75_0.5", "qinl_w0.5_1", "tinl_w1_0"])
def test_released_splits_rows_and_weights(name, cora_root):
    released = load_golden("renode", f"inductive_cora_{name}")
    graph = LargeGraph.from_data(Planetoid(str(cora_root), "Cora")[0])
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


@given(st.integers(0, 10_000), st.sampled_from([1, 4, 9, 50]), st.integers(1, 4), st.booleans())
def test_a_batch_holds_each_neighbour_once_and_loses_nothing(seed, batch_size, world, dense):
    generator = np.random.default_rng(seed)
    rows = sparse.random_array((9, 30), density=0.2, format="csr", dtype=np.float32, rng=generator)
    x = sparse.random_array((30, 5), density=0.5, format="csr", dtype=np.float32, rng=generator)
    y, weight, order = generator.integers(3, size=9), generator.random(9).astype(np.float32), generator.permutation(9)
    source = x.toarray() if dense else x
    shares = [
        RowBatches(rows, source, y, weight, batch_size, rank=rank, world=world).epoch(order) for rank in range(world)
    ]
    mixed, pairs = {}, set()
    for step in zip(*shares, strict=True):
        assert sum(len(share.y) for share in step) == step[0].size
        for share in step:
            assert (share.ppr.to_dense() != 0).any(0).all() and share.ppr.shape == (len(share.y), len(share.x))
            products = share.ppr.to_dense() @ share.x.to_dense()
            pairs |= {(int(label), float(w)) for label, w in zip(share.y, share.weight, strict=True)}
            mixed |= {float(w): product for w, product in zip(share.weight, products, strict=True)}
    assert pairs == {(int(label), float(w)) for label, w in zip(y, weight, strict=True)}
    expected = rows.toarray() @ x.toarray()
    np.testing.assert_allclose(torch.stack([mixed[float(w)] for w in weight]), expected, atol=1e-5)


def test_small_batches_sum_to_the_gradient_of_the_whole():
    graph, nodes = a_graph(), np.arange(0, 60)
    model = PPRGo(24, 3, dropout=0)

    def gradient(batch_size: int) -> torch.Tensor:
        model.zero_grad()
        for batch in batches_of(graph, nodes, batch_size=batch_size).epoch(np.random.permutation(60)):
            terms = F.cross_entropy(model(batch.x, batch.ppr), batch.y, reduction="none")
            (batch.weight * terms).sum().backward()
        return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])

    torch.testing.assert_close(gradient(7), gradient(4200), rtol=1e-4, atol=1e-5)


def test_only_neighbours_are_read():
    graph, nodes = a_graph(), np.arange(20)
    rows = push_pagerank(graph.edge_index, torch.from_numpy(nodes), topk=4)
    x = graph.x.toarray()
    absent = np.setdiff1d(np.arange(len(x)), rows.indices)
    assert len(absent)
    x[absent] = math.nan
    for batch in RowBatches(rows, x, graph.y[nodes], batch_size=6):
        assert batch.x.isfinite().all()


def test_dropout_treats_sparse_and_dense_input_alike():
    x = sparse.random_array((400, 50), density=0.3, format="csr", dtype=np.float32, rng=np.random.default_rng(0))
    x.data[:] = 1
    model = PPRGo(50, 50, num_layers=1, dropout=0.25)
    with torch.no_grad():
        model.layers[0].weight.copy_(torch.eye(50))
        for source in (to_torch(x), to_torch(x.toarray())):
            model.train()
            stored = model(source)[to_torch(x.toarray()) != 0]
            values, counts = stored.unique(return_counts=True)
            torch.testing.assert_close(values, torch.tensor([0, 4 / 3]))
            assert abs(counts[0] / len(stored) - 0.25) < 0.02
            torch.testing.assert_close(model.eval()(source), to_torch(x.toarray()))


def test_initial_law():
    for layer, fan_in in zip(PPRGo(300, 7, hidden_channels=64, num_layers=3).layers, (300, 64, 64), strict=True):
        weight, bound = layer.weight, fan_in**-0.5
        assert layer.bias is None and 0.95 * bound < weight.abs().max() <= bound
        torch.testing.assert_close(weight.std().item(), bound / math.sqrt(3), rtol=0.1, atol=0)


@pytest.mark.parametrize("normalization", ["sym", "row", "col"])
def test_inference_is_the_power_iteration(normalization):
    graph = a_graph()
    model = PPRGo(24, 3)
    adjacency = torch.from_numpy(graph.adjacency.toarray())
    degree = adjacency.sum(1).clamp(min=1)
    left, right = {"sym": (-0.5, -0.5), "row": (-1, 0), "col": (0, -1)}[normalization]
    operator = degree[:, None] ** left * adjacency * degree**right
    with torch.no_grad():
        local = z = model.eval()(to_torch(graph.x))
    for _ in range(3):
        z = 0.8 * operator @ z + 0.2 * local
    model.train()
    predicted = predict(model, graph.x, graph.adjacency, alpha=0.2, steps=3, normalization=normalization, chunk=11)
    np.testing.assert_array_equal(predicted, z.argmax(1))
    assert (z.argmax(1) != local.argmax(1)).any(), "propagation decides nothing here"


class Killed(BaseException):
    """What no handler catches."""


@pytest.mark.parametrize("batch_size", [16, 4200])
def test_resumed_training_ends_bit_for_bit_where_a_straight_one_ends(tmp_path, batch_size):
    graph = a_graph()
    split = inductive_split(graph.y, 15)

    def training(checkpoint: Path | None, kill_after: int = 0) -> tuple[PPRGo, dict]:
        calls = 0

        def loss(logits, y, weight):
            nonlocal calls
            calls += 1
            if calls == kill_after:
                raise Killed
            return (weight * F.cross_entropy(logits, y, reduction="none")).mean()

        torch.manual_seed(3)
        model = PPRGo(24, 3, dropout=0.3)
        batches = batches_of(graph, split.train, batch_size=batch_size)
        valid = batches_of(graph, split.valid, batch_size=batch_size)
        options = {"epochs": 12, "patience": 12, "lr": 0.02, "checkpoint": checkpoint, "settings": {"lr": 0.02}}
        return model, train(model, batches, valid, loss=loss, **options)

    straight, record = training(None)
    with pytest.raises(Killed):
        training(tmp_path / "c.pt", kill_after=3 * len(range(0, 45, batch_size)) + 2)
    assert torch.load(tmp_path / "c.pt", weights_only=True)["progress"]["epoch"] >= 3
    torch.manual_seed(99)
    resumed, again = training(tmp_path / "c.pt")
    assert record == again and same(straight, resumed)
    with pytest.raises(OptionError, match=r"c\.pt was trained with other lr: choose another folder"):
        train(PPRGo(24, 3), batches_of(graph, split.train), checkpoint=tmp_path / "c.pt", settings={"lr": 1})


def test_early_stopping_keeps_the_best_epoch():
    graph = a_graph()
    split = inductive_split(graph.y, 15)
    batches, valid = batches_of(graph, split.train), batches_of(graph, split.valid)
    torch.manual_seed(0)
    model = PPRGo(24, 3)
    record = train(model, batches, valid, epochs=300, patience=4, lr=0.02)
    assert record["epochs"] == record["best_epoch"] + 4 < 300
    torch.manual_seed(0)
    shorter = PPRGo(24, 3)
    train(shorter, batches, epochs=record["best_epoch"], lr=0.02)
    assert same(model, shorter)


def test_patience_counts_from_one_validation_to_the_next():
    graph = a_graph()
    split = inductive_split(graph.y, 10)
    batches, valid = batches_of(graph, split.train), batches_of(graph, split.valid)
    record = train(PPRGo(24, 3), batches, valid, epochs=12, patience=1, interval=5, lr=0.02)
    assert record["epochs"] % 5 == 0 or record["epochs"] == 12
    assert record["best_epoch"] in (5, 10, 12) and record["best_valid_weighted_f1"] > 0


def test_a_mean_is_a_sum_of_smaller_steps():
    """Adam alone hardly tells 1/n of a gradient from the whole; beside weight decay it does."""
    graph = a_graph()
    models = {}
    for reduction in ("sum", "mean"):
        torch.manual_seed(0)
        models[reduction] = PPRGo(24, 3, dropout=0)
        train(models[reduction], batches_of(graph, np.arange(30)), epochs=1, weight_decay=10.0, reduction=reduction)
    assert not same(*models.values())


def test_a_loss_that_is_not_finite_ends_the_training():
    graph = a_graph()
    with pytest.raises(OptionError, match=r"--lr 1e\+30: the loss is (nan|inf) in epoch 2"):
        train(PPRGo(24, 3), batches_of(graph, np.arange(30)), lr=1e30, epochs=5)


OPTIONS = ["--train-each", "10", "--epochs", "30", "--patience", "30", "--lr", "0.02", "--cpu"]


def results(out: Path) -> dict:
    runs = json.loads((out / "results.json").read_text())["runs"]
    return {name: {key: value for key, value in run.items() if key != "seconds"} for name, run in runs.items()}


def test_command_line_and_resume_after_a_kill(tmp_path):
    graph = write_npz(a_graph(), tmp_path / "graph.npz")
    command = ["train-large", "--dataset", str(graph), *OPTIONS, "--inits", "2", "--batch-size", "9"]
    main([*command, "--out", str(tmp_path / "straight")])
    runs = results(tmp_path / "straight")
    assert list(runs) == ["split0_init0", "split0_init1"] and runs["split0_init0"] != runs["split0_init1"]
    assert all(run["weighted_f1"] > 0.6 and run["train_macro_f1"] > 0.8 for run in runs.values())

    out = tmp_path / "killed"
    process = FORK.Process(target=main, args=([*command, "--out", str(out)],))
    process.start()
    while not list(out.glob("*.checkpoint.pt")) and process.is_alive():
        time.sleep(0.002)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    main([*command, "--out", str(out)])
    assert results(out) == runs
    assert sorted(path.name for path in out.iterdir()) == ["results.json", "split0_init0.pt", "split0_init1.pt"]
    model, straight = (
        torch.load(folder / "split0_init1.pt", weights_only=True) for folder in (out, tmp_path / "straight")
    )
    assert all(torch.equal(value, straight[name]) for name, value in model.items())

    with pytest.raises(OptionError, match=r"--out: .* with lr = 0.02, now lr = 0.5"):
        main([*command, "--out", str(out), "--lr", "0.5"])


def train_forked(arguments: list[str]) -> None:
    # What this process has set up for training alone was copied with it.
    AcceleratorState._reset_state(reset_partial_state=True)
    main(arguments)


def test_two_processes_train_as_one(tmp_path):
    """With 30 rows in batches of 29, the second process has none in the last batch."""
    graph = write_npz(a_graph(), tmp_path / "graph.npz")
    command = [
        "train-large",
        "--dataset",
        str(graph),
        *OPTIONS,
        "--dropout",
        "0",
        "--batch-size",
        "29",
        "--epochs",
        "4",
    ]
    main([*command, "--out", str(tmp_path / "one")])
    debug_launcher(train_forked, ([*command, "--out", str(tmp_path / "two")],), num_processes=2)
    one, two = (torch.load(tmp_path / name / "split0_init0.pt", weights_only=True) for name in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-6)
    assert results(tmp_path / "one") == results(tmp_path / "two")


def test_figures_are_those_of_their_nodes(tmp_path, monkeypatch):
    """Test, validation and training nodes, and all kinds of scores, differ."""
    graph = a_graph(60)
    of = [np.flatnonzero(graph.y == label) for label in (0, 1, 2)]
    test = np.concatenate([of[0][:3], of[1][:2], of[2][:1]])
    rest = np.setdiff1d(np.arange(60), test)
    split, predicted = InductiveSplit(rest[::2], rest[1::2], test), graph.y.copy()
    predicted[test], predicted[split.valid] = [0, 0, 1, 1, 1, 0], 0
    monkeypatch.setattr(large, "inductive_split", lambda *_: split)
    monkeypatch.setattr(large, "predict_logits", lambda *_, **__: 10 * np.eye(3, dtype=np.float32)[predicted])
    path = write_npz(graph, tmp_path / "graph.npz")
    main(["train-large", "--dataset", str(path), "--epochs", "1", "--cpu", "--out", str(tmp_path / "out")])
    run, zeros = results(tmp_path / "out")["split0_init0"], (graph.y[split.valid] == 0).mean()
    expected = {
        "weighted_f1": (3 * 2 / 3 + 2 * 4 / 5) / 6,
        "macro_f1": (2 / 3 + 4 / 5) / 3,
        "accuracy": 4 / 6,
        "balanced_accuracy": (2 / 3 + 1) / 3,
        "roc_auc": (6 / 9 + 7 / 8 + 1 / 2) / 3,
        "train_weighted_f1": 1,
        "train_macro_f1": 1,
        "valid_weighted_f1": zeros * 2 * zeros / (1 + zeros),
        "valid_macro_f1": 2 * zeros / (1 + zeros) / 3,
    }
    assert {name: run[name] for name in expected} == pytest.approx(expected)


def test_every_split_and_every_initialisation_has_its_own_seed(tmp_path, monkeypatch):
    graph, seen = a_graph(), []

    def recorded(model, batches, *more, seed, **options):
        seen.append((torch.initial_seed(), seed, batches.y.tolist(), model.layers[0].weight.sum().item()))
        return {"epochs": 0}

    monkeypatch.setattr(large, "train", recorded)
    path = write_npz(graph, tmp_path / "graph.npz")
    command = ["train-large", "--dataset", str(path), *OPTIONS, "--imbalance", "qinl"]
    main([*command, "--splits", "2", "--inits", "2", "--out", str(tmp_path / "out")])
    drawn = [graph.y[inductive_split(graph.y, 10, "qinl", seed).train].tolist() for seed in (0, 1)]
    assert [entry[:3] for entry in seen] == [(init, init, y) for y in drawn for init in (0, 1)]
    assert drawn[0] != drawn[1] and len({entry[3] for entry in seen}) == 2


def test_changed_data_is_refused(tmp_path):
    graph = a_graph()
    path = write_npz(graph, tmp_path / "graph.npz")
    np.save(tmp_path / "x.npy", graph.x.toarray())
    command = ["train-large", "--dataset", str(path), *OPTIONS, "--epochs", "1", "--out", str(tmp_path / "out")]
    main([*command, "--features", str(tmp_path / "x.npy")])
    np.save(tmp_path / "x.npy", graph.x.toarray()[::-1])
    with pytest.raises(OptionError, match=r"--out: .*results.json holds runs with inputs.graph"):
        main([*command, "--features", str(tmp_path / "x.npy")])


@pytest.mark.parametrize("name", ["tinl_w0.75_0.5", "qinl_w0.5_1", "tinl_w1_0"])
def test_released_scores_on_cora(name, tmp_path, cora_root):
    """After 60 epochs; initial weights and dropout are others, and runs differ by half a point."""
    released = load_golden("renode", f"inductive_cora_{name}")
    low = float(released["base_w"])
    bounds = ["--w-min", str(low), "--w-max", str(low + float(released["scale_w"]))]
    command = ["train-large", "--root", str(cora_root), "--imbalance", name[:4], "--train-each", "20", *bounds]
    scores = ["--totoro", "push-softmax"] if float(released["scale_w"]) else []
    recipe = [*scores, "--epochs", "60", "--patience", "0", "--cpu"]
    main([*command, *recipe, "--out", str(tmp_path)])
    found = results(tmp_path)["split0_init0"]
    assert found["weighted_f1"] == pytest.approx(float(released["wf_test_60ep"]), abs=0.015)
    assert found["macro_f1"] == pytest.approx(float(released["mf_test_60ep"]), abs=0.015)


def test_losses_by_name(tmp_path):
    graph = write_npz(a_graph(), tmp_path / "graph.npz")
    command = ["train-large", "--dataset", str(graph), *OPTIONS, "--epochs", "3"]
    scores = set()
    for name in ("ce", "focal", "encouraging"):
        main([*command, "--loss", name, "--out", str(tmp_path / name)])
        scores.add(
            tuple(torch.load(tmp_path / name / "split0_init0.pt", weights_only=True)["layers.0.weight"][0].tolist())
        )
    assert len(scores) == 3


@pytest.mark.parametrize("joint", ["_", "."])
def test_npz_is_read_as_written(tmp_path, joint):
    graph = a_graph()
    found = read_large_graph(write_npz(graph, tmp_path / "graph.npz", joint))
    assert (found.adjacency != graph.adjacency).nnz == 0 and (found.x != graph.x).nnz == 0
    np.testing.assert_array_equal(found.y, graph.y)


def test_npz_edges_become_undirected_without_loops_or_weights(tmp_path):
    directed = sparse.csr_array(np.array([[1, 2, 0], [0, 0, 1], [0, 3, 0]], np.float32))
    arrays = {f"adj_{part}": getattr(directed, part) for part in ("data", "indices", "indptr", "shape")}
    np.savez(tmp_path / "graph.npz", labels=[0, 1, 0], attr_matrix=np.eye(3), **arrays)
    found = read_large_graph(tmp_path / "graph.npz")
    np.testing.assert_array_equal(found.adjacency.toarray(), [[0, 1, 0], [1, 0, 1], [0, 1, 0]])
    np.testing.assert_array_equal(found.x, np.eye(3))


def test_features_stay_on_disk(tmp_path):
    graph = a_graph()
    write_npz(graph, tmp_path / "graph.npz")
    np.save(tmp_path / "x.npy", graph.x.toarray())
    found = read_large_graph(tmp_path / "graph.npz", tmp_path / "x.npy")
    assert isinstance(found.x, np.memmap)
    nodes = np.arange(30)
    (batch,), (expected,) = batches_of(found, nodes), batches_of(graph, nodes)
    assert torch.equal(batch.x, expected.x.to_dense())


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
        ("columns", {"labels": whole["labels"].reshape(10, 2)}, r"labels: wanted class numbers .*\(10, 2\)"),
        ("half", {"labels": whole["labels"] + 0.5}, "labels: wanted class numbers .* found fractions"),
        ("words", {"attr_matrix": np.array([["a"]] * 20)}, "features: numbers are needed"),
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
        ("short.npy", r"features: found shape \(19, 4\) for 20 labels"),
    ):
        with pytest.raises(DataError, match=message) as error:
            read_large_graph(path, tmp_path / name)
        assert str(error.value).startswith(f"{tmp_path / name}: ") and "\n" not in str(error.value)


@pytest.mark.parametrize("batch_size", [9, 4200])
def test_batches_and_adjacency_are_of_the_arrays_as_they_are(batch_size):
    graph = a_graph()
    graph = LargeGraph(graph.edge_index, graph.x.toarray(), graph.y)
    batches = batches_of(graph, np.arange(30), batch_size=batch_size)
    before, edges = [batch.x.sum() for batch in batches], graph.adjacency.nnz
    np.multiply(graph.x, 2, out=graph.x)
    batches.weight[:] = 0
    torch.testing.assert_close([batch.x.sum() for batch in batches], [2 * total for total in before])
    assert not any(batch.weight.any() for batch in batches)
    graph.edge_index[:, 1:] = graph.edge_index[:, :1].clone()
    assert graph.adjacency.nnz == 1 < edges


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


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (np.arange(30.0), "weight: 1 of 30 labelled nodes weigh 0: the weights are of another mask"),
        (np.ones(29), r"weight: wanted one for each of 30 labelled nodes, found torch.float64 of shape \(29,\)"),
    ],
)
def test_weights_that_do_not_fit_are_refused(weight, message):
    graph, nodes = a_graph(), np.arange(30)
    with pytest.raises(DataError, match=message):
        RowBatches(rows_of(graph, nodes), graph.x, graph.y[nodes], weight)


def test_a_training_proves_first_that_it_can_be_saved(tmp_path):
    graph = a_graph()
    (tmp_path / "c.pt").mkdir()

    def loss(*_):
        pytest.fail("trained before it was known that the checkpoint cannot be written")

    with pytest.raises(CheckpointError, match=r"c\.pt"):
        train(PPRGo(24, 3), batches_of(graph, np.arange(30)), loss=loss, checkpoint=tmp_path / "c.pt")


def test_edges_out_of_range():
    with pytest.raises(DataError, match=r"edge_index: .* nodes 0 to 3"):
        _ = LargeGraph(torch.tensor([[0], [3]]), np.ones((3, 2)), np.array([0, 1, 1])).adjacency


@given(st.integers(0, 1000), st.sampled_from(["tinl", "qinl"]))
def test_split_covers_every_node_once(seed, imbalance):
    y = np.random.default_rng(seed).integers(3, size=200)
    split = inductive_split(y, 12, imbalance, seed)
    np.testing.assert_array_equal(np.sort(np.concatenate(split)), np.arange(200))
    assert [len(split.train), len(split.valid)] == [36, 54]
    assert all((np.diff(part) > 0).all() for part in split)
    if imbalance == "tinl":
        assert (np.bincount(y[split.train]) == 12).all() and (np.bincount(y[split.valid]) == 18).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dataset", "absent.npz"], "absent.npz: no such file"),
        (["--dataset", "Coar"], "did you mean 'Cora'"),
        (["--imbalance", "tin"], "--imbalance: 'tin' is not one of tinl, qinl; did you mean 'tinl'"),
        (["--train-each", "500"], "--train-each: class 0 has .* of the 500 nodes"),
        (["--train-each", "0"], "--train-each must be at least 1, got 0"),
        (["--alpha", "1"], "--alpha must be greater than 0 and less than 1, got 1.0"),
        (["--normalization", "cols"], "did you mean 'col'"),
        (["--totoro", "exakt"], "--totoro: 'exakt' .* did you mean 'exact'"),
        (["--reduction", "max"], "--reduction: 'max' is not one of sum, mean"),
        (["--loss", "cee"], "--loss: 'cee' .* did you mean 'ce'"),
        (["--epochs", "0"], "--epochs must be at least 1, got 0"),
        (["--batch-size", "0"], "--batch-size must be at least 1, got 0"),
        (["--dropout", "1"], "--dropout must be at least 0 and less than 1, got 1.0"),
        (["--layers", "0"], "--layers must be at least 1, got 0"),
        (["--lr", "-1"], "--lr must be greater than 0, got -1.0"),
        (["--inits", "0"], "--inits must be at least 1, got 0"),
        (
            ["--dataset", "Cora", "--features", "x.npy"],
            "--features x.npy: has no effect with --dataset Cora, but with an .npz file",
        ),
    ],
)
def test_bad_options_end_in_one_line(tmp_path, options, message):
    graph = write_npz(a_graph(), tmp_path / "graph.npz")
    with pytest.raises((OptionError, DataError), match=message) as error:
        main(["train-large", "--dataset", str(graph), *OPTIONS, "--out", str(tmp_path / "out"), *options])
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out" / "results.json").exists()
