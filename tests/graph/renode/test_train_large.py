"""Training PPRGo: resume, several processes, figures, the command line."""

from __future__ import annotations

import json
import multiprocessing
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import debug_launcher
from accelerate.state import AcceleratorState

from fairseq_ext.training.errors import CheckpointError, DataError, OptionError
from graph.renode import train_large
from graph.renode.__main__ import main
from graph.renode.inductive_split import InductiveSplit, inductive_split
from graph.renode.losses import make_loss
from graph.renode.options import LargeOptions
from graph.renode.pprgo import PPRGo
from graph.renode.recipe import LargeRecipe
from graph.renode.train_large import fit
from tests.graph.renode.large_graphs import a_graph, batches_of, write_npz
from tests.helpers import load_golden

# A forked process needs no second import of everything.
FORK = multiprocessing.get_context("fork")


CROSS_ENTROPY = make_loss("ce", [1, 1, 1])


def command_for(graph: Path) -> list[str]:
    """A short training of ``graph``."""
    schedule = ["--train-each", "10", "--epochs", "30", "--patience", "30", "--lr", "0.02"]
    return ["train-large", "--dataset", str(graph), *schedule, "--device", "cpu"]


def same(a: PPRGo, b: PPRGo) -> bool:
    return all(torch.equal(value, b.state_dict()[name]) for name, value in a.state_dict().items())


class Killed(BaseException):
    """What no handler catches."""


@pytest.mark.parametrize("batch_size", [16, 4200])
def test_resumed_training_ends_bit_for_bit_where_a_straight_one_ends(tmp_path, batch_size):
    graph = a_graph()
    split = inductive_split(graph.y, 15)

    def training(folder: Path | None, kill_after: int = 0) -> tuple[PPRGo, dict]:
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
        recipe = LargeRecipe(epochs=12, patience=12, lr=0.02)
        return model, fit(model, batches, loss, valid, recipe, folder=folder, settings={"lr": 0.02})

    straight, record = training(None)
    with pytest.raises(Killed):
        training(tmp_path, kill_after=3 * len(range(0, 45, batch_size)) + 2)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["progress"]["step"] >= 3
    torch.manual_seed(99)
    resumed, again = training(tmp_path)
    assert record.pop("seconds_per_epoch") > 0 < again.pop("seconds_per_epoch")
    assert record == again and same(straight, resumed)
    with pytest.raises(OptionError, match=r"checkpoint\.pt was trained with other lr: choose another folder"):
        fit(PPRGo(24, 3), batches_of(graph, split.train), CROSS_ENTROPY, folder=tmp_path, settings={"lr": 1})


@pytest.mark.parametrize("seed", [0, 4])
def test_every_epoch_has_an_order_and_dropout_of_its_own(seed):
    graph, nodes, orders, dropped = a_graph(), np.arange(30), [], []
    batches = batches_of(graph, nodes, batch_size=30 - 1)

    def loss(logits, y, weight):
        orders.append(weight.tolist())
        dropped.append(torch.initial_seed())
        return CROSS_ENTROPY(logits, y, weight)

    fit(PPRGo(24, 3), batches, loss, recipe=LargeRecipe(epochs=3), seed=seed)
    for epoch in (1, 2, 3):
        generator = np.random.default_rng([seed, epoch])
        assert dropped[2 * epoch - 2] == dropped[2 * epoch - 1] == generator.integers(2**32)
        first, second = orders[2 * epoch - 2 : 2 * epoch]
        assert first + second == batches.weight[generator.permutation(30)].tolist()


def test_early_stopping_keeps_the_best_epoch():
    graph = a_graph()
    split = inductive_split(graph.y, 15)
    batches, valid = batches_of(graph, split.train), batches_of(graph, split.valid)
    torch.manual_seed(0)
    model = PPRGo(24, 3)
    record = fit(model, batches, CROSS_ENTROPY, valid, LargeRecipe(epochs=300, patience=4, lr=0.02))
    assert record["epochs"] == record["best_epoch"] + 4 < 300
    torch.manual_seed(0)
    shorter = PPRGo(24, 3)
    fit(shorter, batches, CROSS_ENTROPY, recipe=LargeRecipe(epochs=record["best_epoch"], lr=0.02))
    assert same(model, shorter)


def test_patience_counts_from_one_validation_to_the_next():
    graph = a_graph()
    split = inductive_split(graph.y, 10)
    batches, valid = batches_of(graph, split.train), batches_of(graph, split.valid)
    recipe = LargeRecipe(epochs=12, patience=1, validate_every=5, lr=0.02)
    record = fit(PPRGo(24, 3), batches, CROSS_ENTROPY, valid, recipe)
    assert record["epochs"] % 5 == 0 or record["epochs"] == 12
    assert record["best_epoch"] in (5, 10, 12) and record["valid_f1"] > 0


def test_a_mean_is_a_sum_of_smaller_steps():
    """Adam alone hardly tells 1/n of a gradient from the whole; beside weight decay it does."""
    graph = a_graph()
    models = {}
    for reduction in ("sum", "mean"):
        torch.manual_seed(0)
        models[reduction] = PPRGo(24, 3, dropout=0)
        recipe = LargeRecipe(epochs=1, weight_decay=10.0, reduction=reduction)
        fit(models[reduction], batches_of(graph, np.arange(30)), CROSS_ENTROPY, recipe=recipe)
    assert not same(*models.values())


def test_a_loss_that_is_not_finite_ends_the_training():
    graph = a_graph()
    with pytest.raises(OptionError, match=r"epoch 2: the loss is (nan|inf); lower --lr 1e\+30"):
        fit(PPRGo(24, 3), batches_of(graph, np.arange(30)), CROSS_ENTROPY, recipe=LargeRecipe(lr=1e30, epochs=5))


@pytest.mark.parametrize("patience", [0, 3])
def test_a_last_step_that_diverges_ends_the_training(tmp_path, patience):
    path = write_npz(a_graph(), tmp_path / "graph.npz")
    out = tmp_path / "out"
    with pytest.raises(OptionError, match=r"^the training has diverged, .* are not finite; lower --lr 1e\+30"):
        main([*command_for(path), "--out", str(out), "--patience", str(patience), "--epochs", "1", "--lr", "1e30"])
    assert not (out / "results.json").exists()


def test_weights_in_the_wrong_order_are_refused_before_anything_is_read(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(OptionError, match=r"^w_min and w_max must satisfy 0 <= w_min <= w_max, got 2\.0 and 1\.0$"):
        main(["train-large", "--dataset", "absent.npz", "--out", str(out), "--w-min", "2", "--w-max", "1"])
    assert not out.exists()


def test_a_training_proves_first_that_it_can_be_saved(tmp_path):
    graph = a_graph()
    (tmp_path / "checkpoint.pt.tmp").mkdir()

    def loss(*_):
        pytest.fail("trained before it was known that the checkpoint cannot be written")

    with pytest.raises(CheckpointError, match=r"cannot write .*checkpoint\.pt"):
        fit(PPRGo(24, 3), batches_of(graph, np.arange(30)), loss, folder=tmp_path)


def results(out: Path) -> dict:
    runs = json.loads((out / "results.json").read_text())["runs"]
    return {
        name: {key: value for key, value in run.items() if key != "seconds_per_epoch"} for name, run in runs.items()
    }


def test_command_line_and_resume_after_a_kill(tmp_path):
    graph = write_npz(a_graph(), tmp_path / "graph.npz")
    command = [*command_for(graph), "--inits", "2", "--batch-size", "9"]
    main([*command, "--out", str(tmp_path / "straight")])
    runs = results(tmp_path / "straight")
    assert list(runs) == ["split0-init0", "split0-init1"] and runs["split0-init0"] != runs["split0-init1"]
    assert all(run["weighted_f1"] > 0.6 and run["train_macro_f1"] > 0.8 for run in runs.values())

    out = tmp_path / "killed"
    process = FORK.Process(target=main, args=([*command, "--out", str(out)],))
    process.start()
    while not list(out.glob("*/checkpoint.pt")) and process.is_alive():
        time.sleep(0.002)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    main([*command, "--out", str(out)])
    assert results(out) == runs
    assert sorted(path.name for path in out.iterdir()) == [
        *("results.json", "split0-init0", "split0-init1", "tensorboard")
    ]
    model, straight = (
        torch.load(folder / "split0-init1" / "model.pt", weights_only=True) for folder in (out, tmp_path / "straight")
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
    command = [*command_for(graph), "--dropout", "0", "--batch-size", "29", "--epochs", "4"]
    main([*command, "--out", str(tmp_path / "one")])
    debug_launcher(train_forked, ([*command, "--out", str(tmp_path / "two")],), num_processes=2)
    one, two = (torch.load(tmp_path / name / "split0-init0" / "model.pt", weights_only=True) for name in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-6)
    one, two = (results(tmp_path / name)["split0-init0"] for name in ("one", "two"))
    for before, after in zip(one.pop("history"), two.pop("history"), strict=True):
        assert after == pytest.approx(before, rel=1e-5)
    assert one == two


def test_figures_are_those_of_their_nodes(tmp_path, monkeypatch):
    """Test, validation and training nodes, and all kinds of scores, differ."""
    graph = a_graph(60)
    of = [np.flatnonzero(graph.y == label) for label in (0, 1, 2)]
    test = np.concatenate([of[0][:3], of[1][:2], of[2][:1]])
    rest = np.setdiff1d(np.arange(60), test)
    split, predicted = InductiveSplit(rest[::2], rest[1::2], test), graph.y.copy()
    predicted[test], predicted[split.valid] = [0, 0, 1, 1, 1, 0], 0
    monkeypatch.setattr("graph.renode.inductive_split.inductive_split", lambda *_, **__: split)
    monkeypatch.setattr(train_large, "predict_logits", lambda *_, **__: 10 * np.eye(3, dtype=np.float32)[predicted])
    path = write_npz(graph, tmp_path / "graph.npz")
    main(["train-large", "--dataset", str(path), "--epochs", "1", "--device", "cpu", "--out", str(tmp_path / "out")])
    run, zeros = results(tmp_path / "out")["split0-init0"], (graph.y[split.valid] == 0).mean()
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


def test_inference_over_the_graph_is_that_of_the_options(monkeypatch):
    graph, asked = a_graph(30), []

    def predict_logits(model, x, adjacency, **options):
        asked.append(options)
        return np.eye(3, dtype=np.float32)[graph.y]

    monkeypatch.setattr(train_large, "predict_logits", predict_logits)
    options = LargeOptions(dataset="x.npz", alpha=0.3, inference_steps=5, normalization="col")
    split = InductiveSplit(np.arange(10), np.arange(10, 20), np.arange(20, 30))
    assert train_large.evaluate(None, graph, split, options, torch.device("cpu"))["accuracy"] == 1
    assert asked == [{"alpha": 0.3, "steps": 5, "normalization": "col", "device": torch.device("cpu")}]


def test_every_split_and_every_initialisation_has_its_own_seed(tmp_path, monkeypatch):
    graph, seen = a_graph(), []

    def recorded(model, batches, loss, valid, recipe, seed, **options):
        seen.append((torch.initial_seed(), seed, batches.y.tolist(), model.layers[0].weight.sum().item()))
        options["folder"].mkdir(parents=True)
        return {"epochs": 0}

    monkeypatch.setattr(train_large, "fit", recorded)
    path = write_npz(graph, tmp_path / "graph.npz")
    command = [*command_for(path), "--label-sampling", "qinl"]
    main([*command, "--splits", "2", "--inits", "2", "--out", str(tmp_path / "out")])
    drawn = [graph.y[inductive_split(graph.y, 10, "qinl", seed).train].tolist() for seed in (0, 1)]
    assert [entry[:3] for entry in seen] == [(init, init, y) for y in drawn for init in (0, 1)]
    assert drawn[0] != drawn[1] and len({entry[3] for entry in seen}) == 2


def test_changed_data_is_refused(tmp_path):
    graph = a_graph()
    path = write_npz(graph, tmp_path / "graph.npz")
    np.save(tmp_path / "x.npy", graph.x.toarray())
    command = [*command_for(path), "--epochs", "1", "--out", str(tmp_path / "out")]
    main([*command, "--features", str(tmp_path / "x.npy")])
    np.save(tmp_path / "x.npy", graph.x.toarray()[::-1])
    with pytest.raises(OptionError, match=r"--out: .*results.json holds runs with inputs.graph"):
        main([*command, "--features", str(tmp_path / "x.npy")])


@pytest.mark.parametrize("name", ["tinl_w0.75_0.5", "qinl_w0.5_1", "tinl_w1_0"])
def test_released_scores_on_cora(name, tmp_path, planetoid_root):
    """After 60 epochs; initial weights and dropout are others, and runs differ by half a point."""
    released = load_golden("renode", f"inductive_cora_{name}")
    low = float(released["base_w"])
    bounds = ["--w-min", str(low), "--w-max", str(low + float(released["scale_w"]))]
    labels = ["--label-sampling", name[:4], "--train-each", "20"]
    command = ["train-large", "--root", str(planetoid_root), *labels, *bounds]
    totoro = ["--totoro", "push-softmax"] if float(released["scale_w"]) else []
    recipe = [*totoro, "--epochs", "60", "--patience", "0", "--device", "cpu"]
    main([*command, *recipe, "--out", str(tmp_path)])
    scores = results(tmp_path)["split0-init0"]
    assert scores["weighted_f1"] == pytest.approx(float(released["wf_test_60ep"]), abs=0.015)
    assert scores["macro_f1"] == pytest.approx(float(released["mf_test_60ep"]), abs=0.015)


def test_losses_by_name(tmp_path):
    graph = write_npz(a_graph(), tmp_path / "graph.npz")
    command = [*command_for(graph), "--epochs", "3"]
    scores = set()
    for name in ("ce", "focal", "encouraging"):
        main([*command, "--loss", name, "--out", str(tmp_path / name)])
        scores.add(
            tuple(
                torch.load(tmp_path / name / "split0-init0" / "model.pt", weights_only=True)["layers.0.weight"][
                    0
                ].tolist()
            )
        )
    assert len(scores) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dataset", "absent.npz"], "absent.npz: no such file"),
        (["--dataset", "Coar"], "did you mean 'Cora'"),
        (["--label-sampling", "tin"], "--label-sampling: 'tin' is not one of tinl, qinl; did you mean 'tinl'"),
        (["--train-each", "500"], "--train-each: class 0 has only .* of 500 nodes left"),
        (["--train-each", "0"], "--train-each must be at least 1, got 0"),
        (["--alpha", "1"], "--alpha must be at least 1e-06 and less than 1, got 1.0"),
        (["--normalization", "cols"], "did you mean 'col'"),
        (["--totoro", "exakt"], "--totoro: 'exakt' .* did you mean 'exact'"),
        (["--reduction", "max"], "--reduction: 'max' is not one of sum, mean"),
        (["--loss", "cee"], "--loss: 'cee' .* did you mean 'ce'"),
        (["--epochs", "0"], "--epochs must be at least 1, got 0"),
        (["--batch-size", "0"], "--batch-size must be at least 1, got 0"),
        (["--dropout", "1"], "--dropout must be at least 0 and less than 1, got 1.0"),
        (["--num-layers", "0"], "--num-layers must be at least 1, got 0"),
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
        main([*command_for(graph), "--out", str(tmp_path / "out"), *options])
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out" / "results.json").exists()
