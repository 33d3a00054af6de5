"""Training: the released loop, the losses by name, resume, and that ReNode's weights arrive."""

from __future__ import annotations

import itertools
import json
import math
import types

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch_geometric.data import Data

from fairseq_ext.training.errors import DataError, OptionError
from graph.renode import ReNode, model, train
from graph.renode.data import load_graph
from graph.renode.losses import LOSSES, make_loss
from graph.renode.metrics import f1
from graph.renode.model import build_model
from graph.renode.options import TrainOptions, TrainRuns
from graph.renode.recipe import Recipe
from graph.renode.splits import Split, make_split
from graph.renode.train import fit, predict
from tests.helpers import load_golden


@pytest.mark.parametrize("name", ["train_gcn_ce_off", "train_gcn_ce_on"])
def test_released_training(name):
    golden = load_golden("renode", name)
    arrays = {key: torch.tensor(golden[key]) for key in ("x", "edge_index", "y", "rn_weight", "train_size_per_class")}
    data = Data(x=arrays["x"], edge_index=arrays["edge_index"], y=arrays["y"])
    masks = (torch.tensor(golden[f"{part}_mask"]) for part in ("train", "valid", "test"))
    split = Split(*(mask.nonzero().squeeze(1) for mask in masks))
    model = build_model("gcn", data.num_features, 4, 16, dropout=0.0)
    released = {"convs.0": "init.conv1", "convs.1": "init.conv2"}
    names = {name: released[name[:7]] + name[7:] for name in model.state_dict()}
    model.load_state_dict({name: torch.tensor(golden[key]) for name, key in names.items()})
    recipe = Recipe(
        weight_decay=float(golden["weight_decay"]),
        least_epochs=int(golden["least_epoch"]),
        patience=int(golden["early_stop"]),
        epochs=int(golden["max_epoch"]),
    )
    cross_entropy, losses = make_loss("ce", arrays["train_size_per_class"]), []

    def recorded(logits, target, weight):
        losses.append(cross_entropy(logits, target, weight))
        return losses[-1]

    record = fit(model, data, split, recorded, arrays["rn_weight"][split.train] if golden["renode"] else None, recipe)
    assert (record["best_epoch"], record["epochs"]) == (golden["best_epoch"], golden["epochs_run"])
    logits = predict(model, data)  # of the best epoch
    torch.testing.assert_close(logits, torch.tensor(golden["logits_best"]), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.stack(losses).double(), torch.tensor(golden["log_loss"]), rtol=0, atol=6e-5)
    assert record["valid_f1"] == pytest.approx(golden["log_val_wf1"].max(), abs=6e-5)
    truth, predicted = data.y[split.test], logits.argmax(1)[split.test]
    assert f1(truth, predicted) == pytest.approx(float(golden["test_wf1"]))
    assert f1(truth, predicted, "macro") == pytest.approx(float(golden["test_mf1"]))
    assert [entry["loss"] for entry in record["history"]] == [loss.item() for loss in losses]


class Worsening(torch.nn.Module):
    """Predicts class 0 of all nodes in the best of its epochs, and class 1 in all others."""

    def __init__(self, best):
        super().__init__()
        self.weight, self.best, self.epoch = torch.nn.Parameter(torch.zeros(1)), best, 0

    def forward(self, x, edge_index):
        self.epoch += self.training
        return F.one_hot(torch.full((len(x),), int(self.epoch != self.best)), 2) + 0 * self.weight


@pytest.mark.parametrize(
    ("best", "least", "patience", "last"),
    [(1, 0, 1, 3), (3, 0, 2, 6), (3, 10, 2, 11), (1, 3, 2, 4), (1, 2, 2, 4), (2, 0, 17, 20)],
)
def test_a_training_ends_past_its_patience_and_its_least_epochs(best, least, patience, last):
    data = Data(x=torch.ones(6, 1), edge_index=torch.zeros(2, 0, dtype=torch.long), y=torch.tensor([0, 0, 0, 0, 1, 1]))
    split = Split(torch.tensor([0, 4]), torch.arange(4), torch.tensor([3, 5]))
    recipe = Recipe(epochs=20, least_epochs=least, patience=patience)
    record = fit(Worsening(best), data, split, make_loss("ce", [1, 1]), None, recipe)
    assert (record["best_epoch"], record["epochs"]) == (best, last)


def test_learning_rate():
    recipe = Recipe()
    rates = [recipe.lr * recipe.lr_factor(epoch - 1) for epoch in (1, 20, 21, 30, 200)]
    assert rates == pytest.approx([0.0075, 0.0075, 0.0075 * 0.95, 0.0075 * 0.95**10, 1e-4])


def test_a_rate_below_the_least_one_does_not_rise():
    assert [Recipe(lr=5e-5).lr_factor(step) for step in (0, 30, 100)] == [1.0, 1.0, 1.0]


@settings(deadline=None)
@given(
    lr=st.sampled_from([0.0075, 5e-5, 0.1]),
    epochs=st.integers(1, 60),
    lr_decay=st.sampled_from([1.0, 0.95, 0.9, 0.1]),
    lr_decay_epoch=st.integers(0, 40),
    min_lr=st.sampled_from([0.0, 1e-4, 5e-3, 1.0]),
)
@example(lr=0.0075, epochs=60, lr_decay=0.9, lr_decay_epoch=5, min_lr=5e-3)
def test_an_option_of_the_rate_is_refused_where_no_epoch_shows_it(lr, epochs, **decay):
    def rates(**changed):
        values = types.SimpleNamespace(lr=lr, **decay | changed)
        late = [step + 1 - values.lr_decay_epoch for step in range(epochs)]
        least = min(values.min_lr / lr, 1.0)
        return [max(values.lr_decay**steps, least) if steps > 0 else 1.0 for steps in late]

    defaults = Recipe.defaults()
    idle = [name for name in decay if decay[name] != defaults[name] and rates() == rates(**{name: defaults[name]})]
    try:
        Recipe(lr=lr, epochs=epochs, patience=defaults["patience"], **decay)
    except OptionError as error:
        assert [name for name in idle if f"--{name.replace('_', '-')} " in str(error)]
    else:
        assert not idle


def test_a_long_recipe_is_checked_at_once():
    assert Recipe(epochs=10**12, lr_decay=0.9).lr_factor(10**12) == pytest.approx(1e-4 / 0.0075)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_by_name_take_weights(name):
    torch.manual_seed(0)
    logits, y, weight = torch.randn(6, 3), torch.randint(3, (6,)), torch.rand(6)
    loss = make_loss(name, torch.tensor([4, 1, 2]))
    each = torch.stack([loss(logits[i : i + 1], y[i : i + 1], None) for i in range(6)])
    torch.testing.assert_close(loss(logits, y, weight), (weight * each).mean())
    torch.testing.assert_close(loss(logits, y, None), each.mean())
    if name == "ce":
        torch.testing.assert_close(loss(logits, y, None), F.cross_entropy(logits, y))
    for counts in ([4, 1, 2], np.array([4, 1, 2]), torch.tensor([4.0, 1, 2])):
        for target in (y.int(), y.numpy(), y[:, None], y.double(), y.tolist()):
            torch.testing.assert_close(make_loss(name, counts)(logits, target, weight), loss(logits, y, weight))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cbsoftmax", {}, "--loss: 'cbsoftmax' is not one of .*did you mean 'cb-softmax'"),
        ("focal", dict(gamma=-1.0), "--loss focal: gamma must be at least 0"),
        ("cb-softmax", dict(beta=1.0), "--loss cb-softmax: beta must be in"),
        ("encouraging", dict(log_end=3.0), "--loss encouraging: log_end"),
    ],
)
def test_loss_refusals(name, options, message):
    with pytest.raises(OptionError, match=message):
        make_loss(name, torch.tensor([4, 1, 2]), **options)


@pytest.fixture
def graph_file(tmp_path):
    """Three communities whose features tell the class only in part."""
    torch.manual_seed(0)
    y = torch.arange(150) % 3
    same = torch.rand(150, 150) < torch.where(y[:, None] == y, 0.05, 0.01)
    edge_index = torch.triu(same, 1).nonzero().T
    x = 2 * F.one_hot(y, 3) + torch.randn(150, 3)
    torch.save(Data(x=x, edge_index=torch.cat([edge_index, edge_index.flip(0)], 1), y=y), tmp_path / "graph.pt")
    return tmp_path / "graph.pt"


def run(graph_file, *, out="out", splits=2, inits=2, device="auto", **more):
    few = {"train_each": 6, "valid_each": 6, "epochs": 12, "hidden_size": 8}
    options = TrainOptions(dataset=str(graph_file), **few | more)
    return train.run(options, TrainRuns(out=str(graph_file.parent / out), splits=splits, inits=inits, device=device))


def results(graph_file, folder="out"):
    return json.loads((graph_file.parent / folder / "results.json").read_text())


def outcomes(runs):
    return {
        name: {key: value for key, value in run.items() if key != "seconds_per_epoch"} for name, run in runs.items()
    }


def test_run_and_resume(graph_file, monkeypatch):
    run(graph_file)
    straight = results(graph_file)
    assert sorted(straight["runs"]) == [f"split{s}-init{i}" for s in (0, 1) for i in (0, 1)]
    assert straight["summary"]["weighted_f1"]["runs"] == 4 and straight["summary"]["weighted_f1"]["mean"] > 0.4
    assert {"torch", "torch-geometric", "scikit-learn"} <= set(straight["runs"]["split0-init0"]["environment"])

    once, calls = train.fit, []

    def dies_in_the_third(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return once(*arguments)

    monkeypatch.setattr(train, "fit", dies_in_the_third)
    with pytest.raises(KeyboardInterrupt):
        run(graph_file, out="killed")
    assert len(results(graph_file, "killed")["runs"]) == 2
    resumed = run(graph_file, out="killed")
    assert len(calls) == 5  # 2 + the one that died + the 2 that were left
    assert outcomes(resumed.runs) == outcomes(straight["runs"])
    # More splits extend the same folder; another setting does not fit into it.
    run(graph_file, out="killed", splits=3)
    assert len(calls) == 7
    with pytest.raises(OptionError, match=r"--out.*runs with loss = ce, now loss = focal"):
        run(graph_file, out="killed", loss="focal")


class Planted(torch.nn.Module):
    """Predicts what it is told to, in each epoch something else."""

    def __init__(self, epochs, classes):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.register_buffer("epoch", torch.tensor(-1))
        self.epochs, self.classes = epochs, classes

    def forward(self, x, edge_index):
        self.epoch += self.training
        return 10 * F.one_hot(torch.tensor(self.epochs[self.epoch]), self.classes) + 0 * self.weight


def test_figures_are_those_of_the_test_nodes_at_the_best_epoch(tmp_path, monkeypatch):
    """Test, validation and training nodes, first, best and last epoch, and all kinds of scores differ."""
    labelled, valid, test = [0, 1, 2], [0, 1, 2, 2], [0, 0, 0, 1, 1, 2]
    epochs = [
        [0, 0, 0, *[0, 0, 0, 0], *[1, 1, 1, 1, 1, 2]],
        [0, 1, 0, *[0, 1, 2, 0], *[0, 0, 1, 1, 1, 0]],
        [0, 1, 2, *[0, 1, 0, 0], *[0, 0, 0, 1, 1, 2]],
    ]
    data = Data(x=torch.ones(13, 1), edge_index=torch.randint(13, (2, 30)), y=torch.tensor(labelled + valid + test))
    place = torch.arange(13)
    data.train_mask, data.val_mask, data.test_mask = place < 3, (place >= 3) & (place < 7), place >= 7
    torch.save(data, tmp_path / "graph.pt")
    monkeypatch.setattr(model, "build_model", lambda *_: Planted(epochs, 3))
    options = TrainOptions(dataset=str(tmp_path / "graph.pt"), split_kind="public", epochs=3)
    run = train.run(options, TrainRuns(out=str(tmp_path / "out"), inits=1)).runs["split0-init0"]
    # In the second epoch, F1 of the test nodes' classes: 2/3, 4/5, 0; of the validation nodes': 2/3, 1, 2/3.
    expected = {
        "weighted_f1": (3 * 2 / 3 + 2 * 4 / 5) / 6,
        "macro_f1": (2 / 3 + 4 / 5) / 3,
        "accuracy": 4 / 6,
        "balanced_accuracy": (2 / 3 + 1) / 3,
        "roc_auc": (6 / 9 + 7 / 8 + 1 / 2) / 3,
        "valid_f1": (2 / 3 + 1 + 2 * 2 / 3) / 4,
        "best_epoch": 2,
        "epochs": 3,
    }
    assert {name: run[name] for name in expected} == pytest.approx(expected)


def test_every_split_and_every_initialisation_has_its_own_seed(graph_file, monkeypatch):
    seen, trained = [], []

    def recorded(model, data, split, *more):
        seen.append((torch.initial_seed(), split.train.tolist()))
        record = fit(model, data, split, *more)
        trained.append(predict(model, data))
        return record

    monkeypatch.setattr(train, "fit", recorded)
    run(graph_file, splits=2, inits=3)
    data = load_graph(str(graph_file))
    drawn = [make_split(data, "compat", seed, train_each=6, valid_each=6).train.tolist() for seed in (0, 1)]
    assert seen == [(init, nodes) for nodes in drawn for init in (0, 1, 2)] and drawn[0] != drawn[1]
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(trained, 2))


def test_changed_data_is_refused(graph_file):
    run(graph_file)
    data = torch.load(graph_file, weights_only=False)
    for part in ("x", "edge_index", "y"):
        changed = data.clone()
        changed[part][..., 0] = changed[part][..., 1]
        torch.save(changed, graph_file)
        with pytest.raises(OptionError, match=r"--out: .*results.json holds runs with inputs.graph"):
            run(graph_file)
    torch.save(data, graph_file)
    run(graph_file)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.tensor([1.0, 0, 1, 1, 0, 1]), "weight: 2 of 6 labelled nodes weigh 0: the weights are of another mask"),
        (torch.ones(5), r"weight must have one value for each of 6 labelled nodes, got torch.float32 of shape \(5,\)"),
        (torch.tensor([1.0, math.nan, 1, 1, 1, 1]), "weight must be numbers above 0, got nan"),
        ([1.0, -1, 1, 1, 1, 1], "weight must be numbers above 0, got -1.0"),
    ],
)
def test_weights_that_do_not_fit_are_refused(weight, message):
    torch.manual_seed(0)
    data = Data(x=torch.rand(12, 3), edge_index=torch.randint(12, (2, 40)), y=torch.arange(12) % 3)
    split = Split(torch.arange(6), torch.arange(6, 9), torch.arange(9, 12))
    with pytest.raises(DataError, match=message):
        fit(build_model("gcn", 3, 3), data, split, make_loss("ce", [2, 2, 2]), weight, Recipe(epochs=1))


@pytest.mark.parametrize("form", [lambda y: y[:, None], lambda y: y.int(), lambda y: y.double(), lambda y: y.numpy()])
def test_labels_of_other_forms_train_alike(form):
    torch.manual_seed(0)
    x, edge_index, y = torch.rand(12, 3), torch.randint(12, (2, 40)), torch.arange(12) % 3
    split, trained = Split(torch.arange(6), torch.arange(6, 9), torch.arange(9, 12)), []
    for labels in (y, form(y)):
        torch.manual_seed(1)
        model, data = build_model("gcn", 3, 3), Data(x=x, edge_index=edge_index, y=labels)
        record = fit(model, data, split, make_loss("focal", [2, 2, 2]), [1.0] * 6, Recipe(epochs=3))
        trained.append((predict(model, data).tolist(), record["valid_f1"], record["best_epoch"]))
    assert trained[0] == trained[1]


def test_renode_weights_reach_the_loss(graph_file, monkeypatch):
    seen = []
    monkeypatch.setattr(train, "fit", lambda *a: seen.append(a) or fit(*a))
    experiment = run(graph_file, splits=1, inits=1, w_min=0.25, w_max=1.75)
    _, _, split, _, weight, _ = seen[0]
    assert weight.min() == 0.25 and weight.max() == 1.75 and weight.mean().item() == pytest.approx(1.0)
    assert experiment.runs["split0-init0"]["totoro"] > 0
    # The weights follow the order in which nodes were drawn, not the order of their ids.
    graph = load_graph(str(graph_file))
    graph.train_mask = torch.zeros(150, dtype=torch.bool).index_fill(0, split.train, True)
    assert weight.equal(ReNode(w_min=0.25, w_max=1.75)(graph).renode_weight[split.train])
    assert not split.train.equal(split.train.sort()[0])

    run(graph_file, renode="off", out="off")
    assert seen[-1][4] is None


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"alpha": 1.2}, "--alpha must be at least 1e-06 and less than 1, got 1.2"),
        ({"w_min": 2.0}, "must satisfy 0 <= w_min <= w_max"),
        ({"backbone": "gccn"}, "--backbone: 'gccn' is not one of .*did you mean 'gcn'"),
        ({"loss": "focl"}, "--loss: 'focl' is not one of .*did you mean 'focal'"),
        ({"epochs": 0}, "--epochs must be at least 1, got 0"),
        ({"lr": math.nan}, "--lr must be finite, got nan"),
        ({"ties": "avg"}, "--ties: 'avg' is not one of"),
        ({"device": "cuda:99"}, "--device cuda:99: "),
        ({"train_each": 60}, "--train-each"),
        ({"head_classes": (0, 7), "imbalance": "step", "train_each": 20}, "--head-classes"),
    ],
)
def test_refused_before_anything_is_written(graph_file, more, message):
    with pytest.raises(OptionError, match=message):
        run(graph_file, **more)
    assert not (graph_file.parent / "out" / "results.json").exists()


def test_a_model_of_whole_graphs_is_refused(graph_file):
    with pytest.raises(OptionError, match=r"--backbone: gives \(1, 3\), not a row of logits for each of 150 nodes"):
        run(graph_file, backbone="torch_geometric.nn.models.NeuralFingerprint")


@pytest.mark.parametrize("epochs", [1, 12])
def test_a_training_that_diverges_is_named(graph_file, epochs):
    """Also in its only epoch, whose loss is that before the step."""
    with pytest.raises(OptionError, match=r"^the training has diverged, .* are not finite; lower --lr 1e\+30$"):
        run(graph_file, lr=1e30, epochs=epochs)
    assert not (graph_file.parent / "out" / "results.json").exists()
