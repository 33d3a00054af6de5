"""Training: the deferred bonus, paired runs, what a kill leaves behind, the command line."""

from __future__ import annotations

import errno
import multiprocessing
import re
import shutil
import signal
import subprocess
import sys
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
from graph.graph_classification.__main__ import main
from graph.graph_classification.compare import compare
from graph.graph_classification.data import load_dataset
from graph.graph_classification.model import SAGPoolClassifier
from graph.graph_classification.splits import Split, random_splits
from graph.graph_classification.train import DEFER_START, Options, make_loss, train_run
from tests.helpers import ROOT, require_data

from .conftest import write_tu

SMALL = {"hidden_channels": 16, "num_layers": 1, "batch_size": 16, "learning_rate": 0.01, "patience": 100}
SMALL_OPTIONS = [word for name, value in SMALL.items() for word in (f"--{name.replace('_', '-')}", str(value))]


@pytest.fixture
def dataset(rings):
    return load_dataset(rings, "RINGS")


def run(dataset, settings, **options):
    return train_run(dataset, random_splits(dataset.y, 1)[0], settings, **options)


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.parametrize("defer_start", [-1, 0, 25])
def test_the_loss_is_cross_entropy_up_to_the_deferred_start(defer_start):
    logits, target = torch.randn(5, 3), torch.tensor([0, 2, 1, 0, 2])
    criterion = make_loss(Options(defer_start=defer_start))
    for epoch in range(defer_start + 1):
        criterion.set_epoch(epoch + 1)
        torch.testing.assert_close(criterion(logits, target), F.cross_entropy(logits, target))
    criterion.set_epoch(defer_start + 2)
    torch.testing.assert_close(criterion(logits, target), encouraging_loss(logits, target, log_end=0.5))
    assert criterion(logits, target) < F.cross_entropy(logits, target)


def test_cross_entropy_never_gets_a_bonus():
    logits, target = torch.randn(5, 3), torch.tensor([0, 2, 1, 0, 2])
    criterion = make_loss(Options(loss="cross-entropy"))
    criterion.set_epoch(1000)
    torch.testing.assert_close(criterion(logits, target), F.cross_entropy(logits, target))


def test_published_settings():
    assert DEFER_START == {"PROTEINS": 25, "NCI1": 130}
    settings = Options()
    assert (settings.learning_rate, settings.weight_decay, settings.batch_size) == (5e-4, 1e-4, 128)
    assert (settings.patience, settings.dropout, settings.log_end) == (50, 0.5, 0.5)


def test_pairs_are_equal_to_the_bit_until_the_bonus_starts(dataset, tmp_path):
    models = {"cross-entropy": [], "encouraging": []}
    for loss, of_epochs in models.items():
        checkpoint, defer = tmp_path / f"{loss}.pt", {"defer_start": 2} if loss == "encouraging" else {}
        run(
            dataset,
            Options(loss=loss, **defer, max_epochs=4, **SMALL),
            checkpoint=checkpoint,
            on_epoch=lambda *_, of=of_epochs, file=checkpoint: of.append(load_safely(file)["model"]),
        )
    assert [same(*pair) for pair in zip(*models.values(), strict=True)] == [True, True, True, False]


def test_learns_and_tests_the_best_epoch(dataset):
    seen = []
    _, result = run(dataset, Options(max_epochs=30, defer_start=5, **SMALL), on_epoch=lambda *epoch: seen.append(epoch))
    assert result["test_accuracy"] == 1
    assert (result["epochs"], result["bonus_epochs"]) == (30, 24)
    best = max(accuracy for _, accuracy in seen)
    assert result["valid_accuracy"] == best
    assert result["best_epoch"] == next(epoch for epoch, accuracy in seen if accuracy == best)


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

    split = Split("0/0", 3, torch.arange(30), torch.arange(30, 60), torch.arange(60, 90))


def shares(model, dataset, part):
    """Accuracy and mean recall of one graph at a time."""
    model.eval()
    right = [[], [], []]
    for graph in dataset[part]:
        right[int(graph.y)].append(int(model(graph.x, graph.edge_index).argmax()) == int(graph.y))
    recalls = [sum(of_class) / len(of_class) for of_class in right]
    return sum(map(sum, right)) / len(part), sum(recalls) / 3


def test_the_figures_are_those_of_the_test_graphs_at_the_first_best_epoch(tmp_path):
    dataset, split, file = Planted(), Planted.split, tmp_path / "run.pt"
    weights, seen = [], []

    def keep(_, accuracy):
        seen.append(accuracy)
        weights.append(load_safely(file)["model"])

    options = Options(max_epochs=10, defer_start=3, **{**SMALL, "learning_rate": 0.03})
    _, result = train_run(dataset, split, options, checkpoint=file, on_epoch=keep)

    model = SAGPoolClassifier(3, 3, SMALL["hidden_channels"], SMALL["num_layers"])
    found = {}
    for name, part in (("train", split.train), ("valid", split.valid), ("test", split.test)):
        for epoch, state in enumerate(weights):
            model.load_state_dict(state)
            found[name, epoch] = shares(model, dataset, part)
    valid = [found["valid", epoch][0] for epoch in range(10)]
    assert valid == pytest.approx(seen)
    best = valid.index(max(valid))
    figures = {found[name, epoch] for name in ("valid", "test") for epoch in (best, 9)}
    assert 0 < best < 9 and len({share for pair in figures for share in pair}) == 8, "planted so that all differ"
    assert result["best_epoch"] == best and result["valid_accuracy"] == pytest.approx(valid[best])
    assert (result["test_accuracy"], result["test_balanced_accuracy"]) == pytest.approx(found["test", best])


def test_a_training_is_that_of_a_plain_loop():
    dataset, split = Planted(), Planted.split
    rates = {"learning_rate": 0.03, "weight_decay": 0.05}
    options = Options(max_epochs=4, defer_start=1, **{**SMALL, **rates, "hidden_channels": 4}, dropout=0.2)
    epochs = []
    model, result = train_run(dataset, split, options, on_epoch=lambda *epoch: epochs.append(epoch))

    seed_everything(split.seed)
    plain = SAGPoolClassifier(3, 3, 4, 1, dropout=0.2)
    optimizer = torch.optim.Adam(plain.parameters(), lr=0.03, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.05)
    weights = []
    for part in (split.valid, split.test):  # which draws from the generator too
        list(DataLoader(dataset[part], 16))
    for epoch in range(4):
        plain.train()
        for batch in DataLoader([dataset[int(number)] for number in split.train], 16, shuffle=True):
            logits = plain(batch.x, batch.edge_index, batch.batch)
            loss = F.cross_entropy(logits, batch.y) if epoch <= 1 else encouraging_loss(logits, batch.y, log_end=0.5)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        plain.eval()
        weights.append({name: value.clone() for name, value in plain.state_dict().items()})
        assert epochs[epoch] == (epoch, pytest.approx(shares(plain, dataset, split.valid)[0]))
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, weights[result["best_epoch"]][name])


def test_every_seed_is_a_run_of_its_own(tmp_path):
    dataset, options = Planted(), Options(loss="cross-entropy", max_epochs=1, **SMALL)
    models = [train_run(dataset, Planted.split._replace(seed=seed), options)[0] for seed in (0, 1, 0)]
    assert same(models[0].state_dict(), models[2].state_dict())
    assert not same(models[0].state_dict(), models[1].state_dict())


@pytest.mark.parametrize("form", ["column", "int32", "double"])
def test_classes_of_any_form_train_alike(form):
    options = Options(loss="cross-entropy", max_epochs=2, **SMALL)
    dataset = Planted()
    y = dataset.data.y
    dataset.data.y = {"column": y[:, None], "int32": y.int(), "double": y.double()}[form]
    assert train_run(dataset, Planted.split, options)[1] == train_run(Planted(), Planted.split, options)[1]


def test_parts_and_features_of_any_form_train_alike():
    options, split = Options(loss="cross-entropy", max_epochs=2, **SMALL), Planted.split
    mask = torch.zeros(90, dtype=torch.bool)
    mask[split.test] = True
    whole = Planted()
    whole.data.x = whole.data.x.round()
    expected = train_run(whole, split, options)[1]
    whole.data.x = whole.data.x.long()
    other = split._replace(train=split.train.numpy(), valid=split.valid.int(), test=mask)
    assert train_run(whole, other, options)[1] == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"valid": torch.tensor([])}, r"split: valid must be numbers of graphs, .* got torch.float32 of shape \(0,\)"),
        ({"valid": torch.ones(5, dtype=torch.bool)}, r"a mask over all 90, got torch.bool of shape \(5,\)"),
        ({"test": torch.arange(80, 91)}, "split: test has graphs 80 to 90, of 90"),
        ({"test": torch.arange(50, 90)}, "split: a graph is in two parts"),
    ],
)
def test_a_split_that_does_not_fit(change, message):
    with pytest.raises(DataError, match=message):
        train_run(Planted(), Planted.split._replace(**change), Options(**SMALL))


def test_graphs_without_features():
    dataset = Planted()
    del dataset.data.x
    with pytest.raises(DataError, match="dataset: the graphs have no features x; CappedDegree"):
        train_run(dataset, Planted.split, Options(**SMALL))


def test_changed_graphs_are_another_experiment(rings, tmp_path):
    command = train(rings, tmp_path / "out", "--runs", "1", "--max-epochs", "1", "--defer-start", "-1")
    main(command)
    path = rings / "RINGS" / "raw" / "RINGS_A.txt"
    path.write_text("\n".join(path.read_text().splitlines()[2:]))  # an edge less
    with pytest.raises(OptionError, match=r"--out: .* holds runs with inputs\.graphs"):
        main(command)


def test_a_checkpoint_of_other_graphs_is_refused(tmp_path):
    options, file = Options(max_epochs=2, defer_start=0, **SMALL), tmp_path / "run.pt"
    train_run(Planted(), Planted.split, options, checkpoint=file)
    dataset = Planted()
    dataset.data.x[0, 0] += 1
    with pytest.raises(OptionError, match=r"run\.pt was trained with other inputs\.graphs"):
        train_run(dataset, Planted.split, options, checkpoint=file)


def test_stops_after_patience_epochs_without_a_better_one(dataset):
    _, result = run(dataset, Options(**{**SMALL, "patience": 3}))
    assert result["epochs"] - 1 - result["best_epoch"] == 3
    assert result["bonus_epochs"] == 0


@pytest.mark.parametrize("stop", [0, 4])
def test_a_run_goes_on_where_it_was_stopped(dataset, tmp_path, stop):
    settings, checkpoint = Options(max_epochs=7, defer_start=3, **SMALL), tmp_path / "run.pt"
    straight, expected = run(dataset, settings, checkpoint=tmp_path / "straight.pt")

    def interrupt(epoch, _):
        if epoch == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(dataset, settings, checkpoint=checkpoint, on_epoch=interrupt)
    seen = []
    resumed, result = run(dataset, settings, checkpoint=checkpoint, on_epoch=lambda epoch, _: seen.append(epoch))
    assert seen == list(range(stop + 1, 7))
    assert result == expected
    assert same(straight.state_dict(), resumed.state_dict())
    assert same(*(load_safely(path)["model"] for path in (tmp_path / "straight.pt", checkpoint)))


def test_a_checkpoint_of_other_settings_or_splits_is_refused(dataset, tmp_path):
    settings, checkpoint = Options(max_epochs=2, defer_start=0, **SMALL), tmp_path / "run.pt"
    run(dataset, settings, checkpoint=checkpoint)
    before = checkpoint.read_bytes()
    for other, split, name in (
        (Options(max_epochs=2, defer_start=0, **{**SMALL, "dropout": 0.1}), random_splits(dataset.y, 1)[0], "dropout"),
        (settings, random_splits(dataset.y, 2)[1]._replace(name="0/0", seed=0), "split"),
    ):
        with pytest.raises(OptionError, match=rf"run\.pt was trained with other {name}: choose another folder"):
            train_run(dataset, split, other, checkpoint=checkpoint)
    assert checkpoint.read_bytes() == before


def test_a_damaged_checkpoint_is_refused(dataset, tmp_path):
    settings, checkpoint = Options(max_epochs=2, defer_start=0, **SMALL), tmp_path / "run.pt"
    run(dataset, settings, checkpoint=checkpoint)
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=r"run.pt: truncated"):
        run(dataset, settings, checkpoint=checkpoint)
    torch.save([1, 2], checkpoint)
    with pytest.raises(CheckpointError, match=r"run.pt: not a checkpoint of this training"):
        run(dataset, settings, checkpoint=checkpoint)


def test_what_cannot_be_saved_is_not_trained(dataset, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    monkeypatch.setattr("graph.graph_classification.train.train_epoch", lambda *_: pytest.fail("a step was taken"))
    with pytest.raises(CheckpointError, match=r"cannot write .*run.pt: No space left on device"):
        run(dataset, Options(**SMALL), checkpoint=tmp_path / "run.pt")
    assert not list(tmp_path.glob("run.pt*"))


def train(root, out, *options):
    arguments = ["--dataset", "RINGS", "--root", str(root), "--out", str(out), *SMALL_OPTIONS]
    return ["train", *arguments, "--device", "cpu", *options]


def test_command_line_and_comparison(rings, tmp_path, capsys):
    folders = [tmp_path / "ce", tmp_path / "el"]
    for folder, loss in zip(folders, ("cross-entropy", "encouraging"), strict=True):
        options = ["--folds", "3", "--repeats", "2", "--max-epochs", "3", "--loss", loss]
        options += ["--defer-start", "0"] if loss == "encouraging" else []
        main(train(rings, folder, *options))
        assert "over 6 runs" in capsys.readouterr().out
        assert {path.name for path in folder.iterdir()} == {"results.json"}
    results = [read_json(folder / "results.json") for folder in folders]
    assert results[1]["settings"]["defer_start"] == 0
    assert list(results[1]["runs"]) == [f"{repeat}/{fold}" for repeat in range(2) for fold in range(3)]
    assert [results[i]["runs"]["0/0"]["bonus_epochs"] for i in range(2)] == [0, 2]

    main(["compare", *map(str, folders)])
    assert capsys.readouterr().out.startswith("6 pairs: ")
    found = compare(*folders)
    means = [result["summary"]["test_accuracy"]["mean"] for result in results]
    assert (found["first"], found["second"]) == pytest.approx(means)
    assert found["difference"] == pytest.approx(means[1] - means[0])
    assert found["better"] + found["equal"] + found["worse"] == 6


def test_the_published_start_is_the_default_of_its_data_set(rings, tmp_path):
    (rings / "RINGS").rename(rings / "NCI1")
    for file in (rings / "NCI1" / "raw").iterdir():
        file.rename(file.with_name(file.name.replace("RINGS", "NCI1")))
    options = train(rings, tmp_path / "out", "--runs", "1", "--max-epochs", "132", "--patience", "1")
    main([*options, "--dataset", "NCI1"])
    assert read_json(tmp_path / "out" / "results.json")["settings"]["defer_start"] == 130
    with pytest.raises(OptionError, match=r"--max-epochs 131, as the bonus starts after epoch 130"):
        main([*options, "--dataset", "NCI1", "--max-epochs", "131"])
    main([*options, "--dataset", "NCI1", "--loss", "cross-entropy", "--out", str(tmp_path / "other")])


def test_a_killed_command_ends_like_a_straight_one(rings, tmp_path):
    options = ["--runs", "2", "--max-epochs", "10", "--defer-start", "3"]
    main(train(rings, tmp_path / "straight", *options))
    # A fork, because a new interpreter spends seconds on imports.
    process = multiprocessing.get_context("fork").Process(
        target=main, args=(train(rings, tmp_path / "killed", *options),)
    )
    process.start()
    while not (tmp_path / "killed" / "run0-0.pt").exists() and process.is_alive():
        time.sleep(0.005)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    main(train(rings, tmp_path / "killed", *options))
    straight, killed = (read_json(tmp_path / name / "results.json") for name in ("straight", "killed"))
    assert killed["runs"] == straight["runs"]


def test_finished_runs_are_never_run_again(rings, tmp_path, monkeypatch):
    options = train(rings, tmp_path / "out", "--runs", "2", "--max-epochs", "1", "--defer-start", "-1")
    main(options)
    before = (tmp_path / "out" / "results.json").read_bytes()
    monkeypatch.setattr("graph.graph_classification.train.train_run", None)
    main(options)
    assert (tmp_path / "out" / "results.json").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dataset", "MUTAGG"], "--dataset: 'MUTAGG' .*did you mean 'MUTAG'"),
        (["--loss", "cross_entropy"], "--loss: 'cross_entropy' .*did you mean 'cross-entropy'"),
        (["--folds", "1"], "--folds: 1, must be at least 3"),
        (["--folds", "21"], "--folds: 21, but the smallest class has 20 graphs"),
        (["--runs", "0"], "--runs must be at least 1, got 0"),
        (["--repeats", "-1"], "--repeats must be at least 1, got -1"),
        (["--log-end", "1.5"], "--log-end must be at least 0 and at most 1, got 1.5"),
        (["--log-end", "nan"], "--log-end must be finite, got nan"),
        (["--defer-start", "-2"], "--defer-start must be at least -1, got -2"),
        (["--hidden-channels", "1"], "--hidden-channels must be at least 2, got 1"),
        (["--num-layers", "0"], "--num-layers must be at least 1, got 0"),
        (["--ratio", "0"], "--ratio must be greater than 0 and at most 1, got 0.0"),
        (["--dropout", "1"], "--dropout must be at least 0 and less than 1, got 1.0"),
        (["--learning-rate", "0"], "--learning-rate must be greater than 0, got 0.0"),
        (["--learning-rate", "1e30"], "--learning-rate: 1e.30: the loss is (nan|inf) in epoch 0"),
        (["--weight-decay", "-1"], "--weight-decay must be at least 0, got -1.0"),
        (["--batch-size", "0"], "--batch-size must be at least 1, got 0"),
        (["--patience", "0"], "--patience must be at least 1, got 0"),
        (["--max-epochs", "0"], "--max-epochs must be at least 1, got 0"),
        (["--device", "tpu"], "--device tpu: "),
        (["--device", "cuda:99"], "--device cuda:99: "),
    ],
    ids=" ".join,
)
def test_bad_options_end_in_one_line(rings, tmp_path, options, message):
    with pytest.raises(SystemExit, match=message) as refusal:
        main([*train(rings, tmp_path / "out"), *options])
    assert "\n" not in str(refusal.value)
    assert not list(tmp_path.glob("out/*"))


def test_other_settings_need_another_folder(rings, tmp_path):
    options = ["--runs", "1", "--defer-start", "-1", "--max-epochs"]
    main(train(rings, tmp_path / "out", *options, "1"))
    with pytest.raises(OptionError, match=r"--out: .*max_epochs = 1, now max_epochs = 2"):
        main(train(rings, tmp_path / "out", *options, "2"))


def test_a_negative_seed_is_refused():
    with pytest.raises(OptionError, match="--seed must be at least 0, got -1"):
        main(["train", "--dataset", "MUTAG", "--seed", "-1"])


def test_importing_the_package_is_light():
    script = (
        "import graph.graph_classification, sys; sys.exit('torch_geometric' in sys.modules or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False).returncode == 0


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
    main(["train", *options, "--runs", "1", "--max-epochs", "2"])
    assert "MUTAG, encouraging: test accuracy" in capsys.readouterr().out
    result = read_json(tmp_path / "out" / "results.json")
    assert result["runs"]["0/0"]["epochs"] == 2


def test_the_code_of_the_readme_runs(tmp_path, monkeypatch, capsys):
    write_tu(tmp_path / "data" / "TUDataset", "PROTEINS")
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall("```python\n(.*?)```", (ROOT / "graph/graph_classification/README.md").read_text(), re.DOTALL)
    exec(code, {})
    assert capsys.readouterr().out
