"""Training: the deferred bonus, paired runs, what a kill leaves behind, the command line."""

from __future__ import annotations

import errno
import json
import multiprocessing
import shutil
import signal
import time

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric import seed_everything
from torch_geometric.data import Data, InMemoryDataset
from torch_geometric.loader import DataLoader

from fairseq_ext.losses import encouraging_loss
from fairseq_ext.training.errors import CheckpointError, DataError, OptionError
from fairseq_ext.training.files import load_safely, read_json
from graph.graph_classification import train as training
from graph.graph_classification.__main__ import main
from graph.graph_classification.data import load_dataset
from graph.graph_classification.loss import make_loss
from graph.graph_classification.model import SAGPoolClassifier
from graph.graph_classification.options import DEFER_START, Options
from graph.graph_classification.splits import Split, random_splits
from graph.graph_classification.train import train as train_one
from tests.graph.graph_classification.conftest import write_tu
from tests.helpers import python_blocks, require_data

SMALL = {"hidden_size": 16, "num_layers": 1, "batch_size": 16, "lr": 0.01, "patience": 100}
SMALL_OPTIONS = [word for name, value in SMALL.items() for word in (f"--{name.replace('_', '-')}", str(value))]


@pytest.fixture
def dataset(rings):
    return load_dataset(rings, "RINGS")


def options_of(**changes):
    return Options(**{"dataset": "RINGS", **SMALL, **changes})


def run(dataset, options, **more):
    return train_one(dataset, random_splits(dataset.y, 1)[0], options, **more)


def without_time(record):
    return {name: value for name, value in record.items() if name != "seconds_per_epoch"}


@pytest.fixture
def weights(monkeypatch):
    """The weights after each epoch of the trainings of a test."""
    kept, real = [], training.train_epoch

    def train_epoch(model, *more):
        loss = real(model, *more)
        kept.append({name: value.clone() for name, value in model.state_dict().items()})
        return loss

    monkeypatch.setattr(training, "train_epoch", train_epoch)
    return kept


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.parametrize("defer_start", [-1, 0, 25])
def test_the_loss_is_cross_entropy_up_to_the_deferred_start(defer_start):
    logits, target = torch.randn(5, 3), torch.tensor([0, 2, 1, 0, 2])
    criterion = make_loss(options_of(defer_start=defer_start))
    for epoch in range(defer_start + 1):
        criterion.set_epoch(epoch + 1)
        torch.testing.assert_close(criterion(logits, target), F.cross_entropy(logits, target))
    criterion.set_epoch(defer_start + 2)
    torch.testing.assert_close(criterion(logits, target), encouraging_loss(logits, target, log_end=0.5))
    assert criterion(logits, target) < F.cross_entropy(logits, target)


def test_cross_entropy_never_gets_a_bonus():
    logits, target = torch.randn(5, 3), torch.tensor([0, 2, 1, 0, 2])
    criterion = make_loss(options_of(loss="cross-entropy"))
    criterion.set_epoch(1000)
    torch.testing.assert_close(criterion(logits, target), F.cross_entropy(logits, target))


def test_published_settings():
    assert DEFER_START == {"PROTEINS": 25, "NCI1": 130}
    options = Options(dataset="PROTEINS")
    assert (options.lr, options.weight_decay, options.batch_size) == (5e-4, 1e-4, 128)
    assert (options.patience, options.dropout, options.log_end) == (50, 0.5, 0.5)
    each = [Options(dataset=name) for name in ("PROTEINS", "NCI1", "MUTAG")]
    assert [options.last_epoch_without_bonus for options in each] == [25, 130, 25]
    assert [options.as_dict()["defer_start"] for options in each] == [25, 130, 25]
    for options in each:  # as results hold them, for a --config with another loss
        other = Options(**options.as_dict() | {"loss": "cross-entropy"})
        assert other == Options(dataset=options.dataset, loss="cross-entropy")


def test_pairs_are_equal_to_the_bit_until_the_bonus_starts(dataset, weights):
    run(dataset, options_of(loss="cross-entropy", epochs=4))
    run(dataset, options_of(defer_start=2, epochs=4))
    pairs = zip(weights[:4], weights[4:], strict=True)
    assert [same(*pair) for pair in pairs] == [True, True, True, False]


def test_learns_and_tests_the_best_epoch(dataset):
    _, record = run(dataset, options_of(epochs=30, defer_start=5))
    assert record["test_accuracy"] == 1
    assert (record["epochs"], record["bonus_epochs"]) == (30, 24)
    assert [entry["epoch"] for entry in record["history"]] == [*range(1, 31)]
    best = max(entry["accuracy"] for entry in record["history"])
    assert record["valid_accuracy"] == best
    assert record["best_epoch"] == next(entry["epoch"] for entry in record["history"] if entry["accuracy"] == best)


class Planted(InMemoryDataset):
    """Graphs of one class each whose features tell it well in training, less well in validation, and badly in test."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(11)
        graphs = []
        for number in range(90):
            y = (0, 0, 0, 1, 1, 2)[number % 6]
            noise = (0.3, 1.0, 2.0)[number // 30]
            x = F.one_hot(torch.tensor(y), 3) + noise * torch.randn(5, 3, generator=generator)
            graphs.append(Data(x=x, edge_index=torch.tensor([[0, 1, 2, 3, 4], [1, 2, 3, 4, 0]]), y=torch.tensor([y])))
        self.data, self.slices = self.collate(graphs)

    split = Split("repeat0-run0", 3, torch.arange(30), torch.arange(30, 60), torch.arange(60, 90))


def shares(model, dataset, part):
    """Accuracy and mean recall of one graph at a time."""
    model.eval()
    right = [[], [], []]
    for graph in dataset[part]:
        right[int(graph.y)].append(int(model(graph.x, graph.edge_index).argmax()) == int(graph.y))
    recalls = [sum(of_class) / len(of_class) for of_class in right]
    return sum(map(sum, right)) / len(part), sum(recalls) / 3


def test_the_figures_are_those_of_the_test_graphs_at_the_first_best_epoch(weights):
    dataset, split = Planted(), Planted.split
    _, record = train_one(dataset, split, options_of(epochs=10, defer_start=3, lr=0.03))

    model = SAGPoolClassifier(3, 3, SMALL["hidden_size"], SMALL["num_layers"])
    right = {}
    for name, part in (("train", split.train), ("valid", split.valid), ("test", split.test)):
        for epoch, state in enumerate(weights, 1):
            model.load_state_dict(state)
            right[name, epoch] = shares(model, dataset, part)
    valid = [right["valid", epoch][0] for epoch in range(1, 11)]
    assert valid == pytest.approx([entry["accuracy"] for entry in record["history"]])
    best = valid.index(max(valid)) + 1
    figures = {right[name, epoch] for name in ("valid", "test") for epoch in (best, 10)}
    assert 1 < best < 10 and len({share for pair in figures for share in pair}) == 8, "planted so that all differ"
    assert record["best_epoch"] == best and record["valid_accuracy"] == pytest.approx(max(valid))
    assert (record["test_accuracy"], record["test_balanced_accuracy"]) == pytest.approx(right["test", best])


def test_a_training_is_that_of_a_plain_loop():
    dataset, split = Planted(), Planted.split
    options = options_of(epochs=4, defer_start=1, lr=0.03, weight_decay=0.05, hidden_size=4, dropout=0.2)
    model, record = train_one(dataset, split, options)

    seed_everything(split.seed)
    plain = SAGPoolClassifier(3, 3, 4, 1, dropout=0.2)
    optimizer = torch.optim.Adam(plain.parameters(), lr=0.03, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.05)
    weights = {}
    for part in (split.valid, split.test):  # which draws from the generator too
        list(DataLoader(dataset[part], 16))
    for epoch, entry in enumerate(record["history"], 1):
        plain.train()
        for batch in DataLoader([dataset[int(number)] for number in split.train], 16, shuffle=True):
            logits = plain(batch.x, batch.edge_index, batch.batch)
            loss = F.cross_entropy(logits, batch.y) if epoch <= 2 else encouraging_loss(logits, batch.y, log_end=0.5)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        plain.eval()
        weights[epoch] = {name: value.clone() for name, value in plain.state_dict().items()}
        assert (entry["epoch"], entry["accuracy"]) == (epoch, pytest.approx(shares(plain, dataset, split.valid)[0]))
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, weights[record["best_epoch"]][name])


def test_every_seed_is_a_run_of_its_own(tmp_path):
    dataset, options = Planted(), options_of(loss="cross-entropy", epochs=1)
    models = [train_one(dataset, Planted.split._replace(seed=seed), options)[0] for seed in (0, 1, 0)]
    assert same(models[0].state_dict(), models[2].state_dict())
    assert not same(models[0].state_dict(), models[1].state_dict())


@pytest.mark.parametrize("form", ["column", "int32", "double"])
def test_classes_of_any_form_train_alike(form):
    options = options_of(loss="cross-entropy", epochs=2)
    dataset = Planted()
    y = dataset.data.y
    dataset.data.y = {"column": y[:, None], "int32": y.int(), "double": y.double()}[form]
    records = [train_one(graphs, Planted.split, options)[1] for graphs in (dataset, Planted())]
    assert without_time(records[0]) == without_time(records[1])


def test_parts_and_features_of_any_form_train_alike():
    options, split = options_of(loss="cross-entropy", epochs=2), Planted.split
    mask = torch.zeros(90, dtype=torch.bool)
    mask[split.test] = True
    whole = Planted()
    whole.data.x = whole.data.x.round()
    expected = train_one(whole, split, options)[1]
    whole.data.x = whole.data.x.long()
    other = split._replace(train=split.train.numpy(), valid=split.valid.int(), test=mask)
    for test in (mask, mask.double(), mask.long().tolist()):
        assert without_time(train_one(whole, other._replace(test=test), options)[1]) == without_time(expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"valid": torch.tensor([])}, "split: valid has no graph"),
        (
            {"valid": torch.ones(5, dtype=torch.bool)},
            r"graph ids .* mask of shape \(90,\), got torch.bool of shape \(5,\)",
        ),
        ({"valid": torch.tensor([60.0])}, r"split: valid must be graph ids .* got torch.float32 of shape \(1,\)"),
        ({"valid": torch.tensor([60, 60])}, "split: valid: a graph is listed twice"),
        ({"test": torch.arange(80, 91)}, "split: test: ids 80 to 90 do not fit 90 graphs"),
        ({"test": torch.arange(50, 90)}, "split: a graph is in two parts"),
    ],
)
def test_a_split_that_does_not_fit(change, message):
    with pytest.raises(DataError, match=message):
        train_one(Planted(), Planted.split._replace(**change), options_of())


def test_graphs_without_features():
    dataset = Planted()
    del dataset.data.x
    with pytest.raises(DataError, match="dataset: the graphs have no features x; CappedDegree"):
        train_one(dataset, Planted.split, options_of())


def test_changed_graphs_are_another_experiment(rings, tmp_path):
    command = train(rings, tmp_path / "out", "--runs", "1", "--epochs", "1", "--defer-start", "-1")
    main(command)
    path = rings / "RINGS" / "raw" / "RINGS_A.txt"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[2:]))  # an edge less
    with pytest.raises(OptionError, match=r"--out: .* holds runs with inputs\.graphs"):
        main(command)


def test_a_checkpoint_of_other_graphs_is_refused(tmp_path):
    options = options_of(epochs=2, defer_start=0)
    train_one(Planted(), Planted.split, options, folder=tmp_path)
    dataset = Planted()
    dataset.data.x[0, 0] += 1
    with pytest.raises(OptionError, match=r"checkpoint\.pt was trained with other inputs\.graphs"):
        train_one(dataset, Planted.split, options, folder=tmp_path)


def test_stops_after_patience_epochs_without_a_better_one(dataset):
    _, record = run(dataset, options_of(patience=3))
    assert record["epochs"] - record["best_epoch"] == 3
    assert record["bonus_epochs"] == 0


def stopped(monkeypatch, after):
    """From now on a training is interrupted in the epoch after so many."""
    real, seen = training.train_epoch, []

    def train_epoch(*arguments):
        if len(seen) == after:
            raise KeyboardInterrupt
        seen.append(1)
        return real(*arguments)

    monkeypatch.setattr(training, "train_epoch", train_epoch)


@pytest.mark.parametrize("epochs", [1, 5])
def test_a_run_is_resumed_where_it_was_stopped(dataset, tmp_path, weights, epochs):
    options = options_of(epochs=7, defer_start=3)
    straight, expected = run(dataset, options, folder=tmp_path / "straight")
    with pytest.MonkeyPatch.context() as patch:
        stopped(patch, epochs)
        with pytest.raises(KeyboardInterrupt):
            run(dataset, options, folder=tmp_path / "killed")
    weights.clear()
    resumed, record = run(dataset, options, folder=tmp_path / "killed")
    assert len(weights) == 7 - epochs
    assert without_time(record) == without_time(expected)
    assert same(straight.state_dict(), resumed.state_dict())
    files = [load_safely(tmp_path / name / "checkpoint.pt") for name in ("straight", "killed")]
    assert all(same(*(file[part] for file in files)) for part in ("model", "best"))


def test_a_checkpoint_of_other_settings_or_splits_is_refused(dataset, tmp_path):
    options, file = options_of(epochs=2, defer_start=0), tmp_path / "checkpoint.pt"
    run(dataset, options, folder=tmp_path)
    before, split = file.read_bytes(), random_splits(dataset.y, 1)[0]
    for other, parts, name in (
        (options_of(epochs=2, defer_start=0, dropout=0.1), split, "dropout"),
        (options, random_splits(dataset.y, 2)[1]._replace(seed=0), r"inputs\.split"),
        (options, split._replace(seed=1), r"inputs\.split"),
    ):
        with pytest.raises(OptionError, match=rf"checkpoint\.pt was trained with other {name}: choose another folder"):
            train_one(dataset, parts, other, folder=tmp_path)
    assert file.read_bytes() == before


def test_a_damaged_checkpoint_is_refused(dataset, tmp_path):
    options, file = options_of(epochs=2, defer_start=0), tmp_path / "checkpoint.pt"
    run(dataset, options, folder=tmp_path)
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=r"checkpoint.pt: truncated"):
        run(dataset, options, folder=tmp_path)
    torch.save([1, 2], file)
    with pytest.raises(CheckpointError, match=r"checkpoint.pt: not a checkpoint of this training"):
        run(dataset, options, folder=tmp_path)


def test_what_cannot_be_saved_is_not_trained(dataset, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    monkeypatch.setattr(training, "train_epoch", lambda *_: pytest.fail("a step was taken"))
    with pytest.raises(CheckpointError, match=r"cannot write .*checkpoint.pt.tmp: No space left on device"):
        run(dataset, options_of(), folder=tmp_path)
    assert not list(tmp_path.glob("checkpoint.pt*"))


def test_the_graphs_are_digested_once_for_all_runs(rings, tmp_path, monkeypatch):
    real, calls = training.dataset_digest, []
    monkeypatch.setattr(training, "dataset_digest", lambda graphs: calls.append(1) or real(graphs))
    main(train(rings, tmp_path / "out", "--runs", "3", "--epochs", "1", "--defer-start", "-1"))
    assert len(calls) == 1


def train(root, out, *options):
    arguments = ["--dataset", "RINGS", "--root", str(root), "--out", str(out), *SMALL_OPTIONS]
    return ["train", *arguments, "--device", "cpu", *options]


def test_command_line_and_comparison(rings, tmp_path, capsys):
    folders = [tmp_path / "ce", tmp_path / "el"]
    for folder, loss in zip(folders, ("cross-entropy", "encouraging"), strict=True):
        options = ["--folds", "3", "--repeats", "2", "--epochs", "3", "--loss", loss]
        options += ["--defer-start", "0"] if loss == "encouraging" else []
        main(train(rings, folder, *options))
        printed = capsys.readouterr().out
        assert f"6 runs: {folder / 'results.json'}" in printed and "test_accuracy of the repeats ± 0." in printed
        names = [f"repeat{repeat}-fold{fold}" for repeat in range(2) for fold in range(3)]
        assert {path.name for path in folder.iterdir()} == {"results.json", "tensorboard"}
        assert {path.name for path in (folder / "tensorboard").iterdir()} == set(names)
    results = [read_json(folder / "results.json") for folder in folders]
    assert results[1]["settings"]["defer_start"] == 0
    assert list(results[1]["runs"]) == names
    assert [results[i]["runs"]["repeat0-fold0"]["bonus_epochs"] for i in range(2)] == [0, 2]

    main(["compare", *map(str, folders), "--metric", "test_accuracy"])
    settings, pairs = map(json.loads, capsys.readouterr().out.splitlines())
    assert settings["settings"]["loss"] == ["cross-entropy", "encouraging"] and pairs["runs"] == 6
    means = [result["summary"]["test_accuracy"]["mean"] for result in results]
    assert (pairs["first"], pairs["second"]) == pytest.approx(means)
    assert pairs["difference"] == pytest.approx(means[1] - means[0])
    assert pairs["better"] + pairs["equal"] + pairs["worse"] == 6


def test_the_published_start_is_the_default_of_its_data_set(rings, tmp_path):
    (rings / "RINGS").rename(rings / "NCI1")
    for file in (rings / "NCI1" / "raw").iterdir():
        file.rename(file.with_name(file.name.replace("RINGS", "NCI1")))
    options = train(rings, tmp_path / "out", "--runs", "1", "--epochs", "132", "--patience", "1")
    main([*options, "--dataset", "NCI1"])
    assert read_json(tmp_path / "out" / "results.json")["settings"]["defer_start"] == 130
    with pytest.raises(OptionError, match=r"--epochs 131, as the bonus starts after epoch 130"):
        main([*options, "--dataset", "NCI1", "--epochs", "131"])
    main([*options, "--dataset", "NCI1", "--loss", "cross-entropy", "--out", str(tmp_path / "other")])


def test_a_killed_command_ends_like_a_straight_one(rings, tmp_path):
    options = ["--runs", "2", "--epochs", "10", "--defer-start", "3"]
    main(train(rings, tmp_path / "straight", *options))
    # A fork, because a new interpreter spends seconds on imports.
    process = multiprocessing.get_context("fork").Process(
        target=main, args=(train(rings, tmp_path / "killed", *options),)
    )
    process.start()
    while not list(tmp_path.glob("killed/*/checkpoint.pt")) and process.is_alive():
        time.sleep(0.005)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    main(train(rings, tmp_path / "killed", *options))
    straight, killed = (read_json(tmp_path / name / "results.json") for name in ("straight", "killed"))
    for name, record in straight["runs"].items():
        assert without_time(killed["runs"].pop(name)) == without_time(record)
    assert not killed["runs"]


def test_finished_runs_are_never_run_again(rings, tmp_path, monkeypatch):
    options = train(rings, tmp_path / "out", "--runs", "2", "--epochs", "1", "--defer-start", "-1")
    main(options)
    before = (tmp_path / "out" / "results.json").read_bytes()
    monkeypatch.setattr(training, "train", None)
    main(options)
    assert (tmp_path / "out" / "results.json").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dataset", "MUTAGG"], "--dataset: 'MUTAGG' .*did you mean 'MUTAG'"),
        (["--loss", "cross_entropy"], "--loss: 'cross_entropy' .*did you mean 'cross-entropy'"),
        (["--folds", "1"], "--folds: 1, must be at least 3"),
        (["--folds", "-1"], "--folds must be at least 0, got -1"),
        (["--folds", "4", "--runs", "3"], "--runs 3: has no effect with --folds 4"),
        (["--folds", "21"], "--folds: 21, but the smallest class has 20 graphs"),
        (["--runs", "0"], "--runs must be at least 1, got 0"),
        (["--repeats", "-1"], "--repeats must be at least 1, got -1"),
        (["--log-end", "1.5"], "--log-end must be at least 0 and at most 1, got 1.5"),
        (["--log-end", "nan"], "--log-end must be finite, got nan"),
        (["--defer-start", "-3"], "--defer-start must be at least -2, got -3"),
        (["--hidden-size", "1"], "--hidden-size must be at least 2, got 1"),
        (["--num-layers", "0"], "--num-layers must be at least 1, got 0"),
        (["--ratio", "0"], "--ratio must be greater than 0 and at most 1, got 0.0"),
        (["--dropout", "1"], "--dropout must be at least 0 and less than 1, got 1.0"),
        (["--lr", "0"], "--lr must be greater than 0, got 0.0"),
        (["--lr", "1e30"], "epoch 1: the loss is (nan|inf); lower --lr"),
        (["--lr", "1e30", "--batch-size", "99"], "the training has diverged, .* are not finite; lower --lr"),
        (["--weight-decay", "-1"], "--weight-decay must be at least 0, got -1.0"),
        (["--batch-size", "0"], "--batch-size must be at least 1, got 0"),
        (["--patience", "0"], "--patience must be at least 1, got 0"),
        (["--epochs", "0"], "--epochs must be at least 1, got 0"),
        (["--device", "tpu"], "--device tpu: "),
        (["--device", "cuda:99"], "--device cuda:99: "),
    ],
    ids=" ".join,
)
def test_bad_options_end_in_one_line(rings, tmp_path, options, message):
    with pytest.raises(SystemExit, match=message) as refusal:
        main([*train(rings, tmp_path / "out"), *options])
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "out").exists() or options[:2] == ["--lr", "1e30"]  # whose TensorBoard file is there
    assert not (tmp_path / "out" / "results.json").exists()


def test_other_settings_need_another_folder(rings, tmp_path):
    options = ["--runs", "1", "--defer-start", "-1", "--epochs"]
    main(train(rings, tmp_path / "out", *options, "1"))
    with pytest.raises(OptionError, match=r"--out: .*holds runs with epochs = 1, now epochs = 2"):
        main(train(rings, tmp_path / "out", *options, "2"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--seed", "5"], "seed = 0, now seed = 5"),
        (["--runs", "3"], "runs = 2, now runs = 3"),
        (["--repeats", "2"], "repeats = 1, now repeats = 2"),
        (["--runs", "10", "--folds", "3"], "folds = 0, now folds = 3"),
    ],
    ids=lambda change: change[0] if isinstance(change, list) else "",
)
def test_other_splits_need_another_folder(rings, tmp_path, monkeypatch, change, message):
    """Their runs would have the names of those that are there, and be taken for them."""
    monkeypatch.setattr(training, "train", lambda *_, **__: (None, {"test_accuracy": 0.5}))
    main(train(rings, tmp_path / "out", "--runs", "2"))
    with pytest.raises(OptionError, match=f"--out: .*holds runs with {message}"):
        main(train(rings, tmp_path / "out", "--runs", "2", *change))


def test_a_negative_seed_is_refused():
    with pytest.raises(OptionError, match="--seed must be at least 0 and at most 4294967295, got -1"):
        main(["train", "--dataset", "MUTAG", "--seed", "-1"])


def test_mutag_end_to_end(tmp_path, capsys):
    shutil.copytree(require_data("pyg") / "TUDataset" / "MUTAG" / "raw", tmp_path / "MUTAG" / "raw")
    options = [
        "--defer-start",
        "0",
        "--dataset",
        "MUTAG",
        "--root",
        str(tmp_path),
        "--out",
        str(tmp_path / "out"),
        "--device",
        "cpu",
    ]
    main(["train", *options, "--runs", "1", "--epochs", "2"])
    assert capsys.readouterr().out.startswith("test_accuracy 0.")
    results = read_json(tmp_path / "out" / "results.json")
    assert results["runs"]["repeat0-run0"]["epochs"] == 2


def test_the_code_of_the_readme_runs(tmp_path, monkeypatch, capsys):
    write_tu(tmp_path / "data" / "TUDataset", "PROTEINS")
    monkeypatch.chdir(tmp_path)
    (code,) = python_blocks("graph/graph_classification/README.md")
    exec(code, {})
    assert capsys.readouterr().out
