"""The command line: each command end to end, one-line errors, real Cora where it is."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import time

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from torch_geometric.data import Data
from torch_geometric.datasets import KarateClub

from fairseq_ext.training.errors import InputError
from fairseq_ext.training.runs import Experiment
from graph.renode import train, train_large
from graph.renode.__main__ import main
from graph.renode.splits import labelled_nodes
from tests.helpers import ROOT, load_golden, require_data

FIGURES = ["totoro_by_class.png", "rank_to_weight.png", "layout.png", "totoro_by_neighbors.png"]


@pytest.fixture(scope="module")
def cora_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("root")
    shutil.copytree(require_data("pyg") / "Planetoid" / "Cora", root / "Cora")
    return str(root)


def test_score(tmp_path, capsys):
    main(["score", "--dataset", "KarateClub", "--split-kind", "public", "--out", str(tmp_path)])
    printed = json.loads(capsys.readouterr().out)
    rows = [line.split("\t") for line in (tmp_path / "scores.tsv").read_text().splitlines()]
    arrays, summary = np.load(tmp_path / "scores.npz"), json.loads((tmp_path / "scores.json").read_text())
    assert rows[0] == ["node", "label", "totoro", "rank", "weight"] == arrays.files
    values = [[float(cell) for cell in row] for row in rows[1:]]
    np.testing.assert_allclose(values, np.stack([*arrays.values()], 1), 1e-5)
    assert sorted(arrays["rank"]) == [0, 1, 2, 3]
    np.testing.assert_allclose(arrays["weight"][arrays["totoro"].argsort()], [1.5, 1.25, 0.75, 0.5], atol=1e-6)
    assert summary["totoro"] == pytest.approx(arrays["totoro"].sum())
    assert {label: of["labelled"] for label, of in summary["classes"].items()} == dict.fromkeys("0123", 1)
    for label, score in zip(arrays["label"], arrays["totoro"], strict=True):
        assert summary["classes"][str(label)]["mean_totoro"] == pytest.approx(score)
    assert (summary["nodes"], summary["edges"], summary["labelled"]) == (34, 156, 4)
    assert printed == summary


def test_mean_score_of_a_class(tmp_path):
    main(["score", "--dataset", "KarateClub", "--train-each", "3", "--out", str(tmp_path)])
    arrays, summary = np.load(tmp_path / "scores.npz"), json.loads((tmp_path / "scores.json").read_text())
    for label, of in summary["classes"].items():
        scores = arrays["totoro"][arrays["label"] == int(label)]
        assert of == {"labelled": 3, "mean_totoro": pytest.approx(scores.sum() / 3)}


def test_score_and_plot_need_no_more_than_they_use(tmp_path):
    """No features, no validation nodes, no labels but those of the labelled nodes."""
    graph = KarateClub()[0]
    for name, labels in (("full", graph.y), ("few", torch.where(graph.train_mask, graph.y, -1))):
        torch.save(Data(edge_index=graph.edge_index, y=labels, train_mask=graph.train_mask), tmp_path / f"{name}.pt")
        for command in ("score", "plot"):
            options = f"--dataset {tmp_path / name}.pt --split-kind public --out {tmp_path / name}"
            main([command, *options.split()])
    full, few = (np.load(tmp_path / name / "scores.npz") for name in ("full", "few"))
    assert all(np.array_equal(full[name], few[name]) for name in full.files)
    assert sorted(path.name for path in (tmp_path / "few").glob("*.png")) == sorted(FIGURES)
    # All nodes of a class may be labelled, too, so that none is left for validation.
    main(["score", "--dataset", "KarateClub", "--train-each", "4", "--out", str(tmp_path / "all")])
    assert len(np.load(tmp_path / "all" / "scores.npz")["node"]) == 16


def test_score_of_another_split_and_without_features(tmp_path):
    graph = KarateClub()[0]
    graph.x = None
    torch.save(graph, tmp_path / "graph.pt")
    drawn = []
    for seed in (0, 1):
        command = f"score --dataset {tmp_path / 'graph.pt'} --split-kind compat --train-each 3 --split-seed {seed}"
        main([*command.split(), "--out", str(tmp_path / "out")])
        drawn.append(np.load(tmp_path / "out" / "scores.npz")["node"].tolist())
    assert [sorted(nodes) for nodes in drawn] == [sorted(labelled(graph, seed)) for seed in (0, 1)]
    assert drawn[0] != drawn[1]


def labelled(graph, seed):
    return labelled_nodes(graph, "compat", seed, train_each=3).tolist()


def test_score_of_cora_is_the_released_one(tmp_path, cora_root):
    main(["score", "--root", cora_root, "--out", str(tmp_path)])
    golden, arrays = load_golden("renode", "cora_none_seed0"), np.load(tmp_path / "scores.npz")
    np.testing.assert_array_equal(arrays["node"], golden["labelled"])
    np.testing.assert_allclose(arrays["totoro"], golden["totoro"], atol=1e-6)
    np.testing.assert_allclose(arrays["weight"], golden["weight_0.5_1.0"], atol=0.02)
    assert json.loads((tmp_path / "scores.json").read_text())["totoro"] == pytest.approx(float(golden["totoro_sum"]))


def test_train_on_cora(tmp_path, cora_root, capsys):
    command = ["train", "--root", cora_root, "--splits", "1", "--inits", "1", "--out", str(tmp_path)]
    main(command)
    before = (tmp_path / "results.json").read_text()
    scores = json.loads(before)["runs"]["split0-init0"]
    assert 0.76 < scores["weighted_f1"] < 0.84
    printed = capsys.readouterr().out
    assert printed.splitlines() == [
        f"weighted_f1 {scores['weighted_f1']:.4g} ± 0",
        f"macro_f1 {scores['macro_f1']:.4g} ± 0",
        f"1 runs: {tmp_path / 'results.json'}",
    ]
    main(command)
    assert (tmp_path / "results.json").read_text() == before and capsys.readouterr().out == printed


def test_train_prints_what_the_runs_have(tmp_path, monkeypatch, capsys):
    """Mean and population standard deviation, of each score its own."""
    experiment = Experiment(tmp_path, {}, device="cpu")
    for name, weighted, macro in (("a", 0.5, 0.2), ("b", 0.7, 0.6)):
        experiment.add(name, {"weighted_f1": weighted, "macro_f1": macro, "valid_f1": 0.9})
    for module, command in ((train, "train"), (train_large, "train-large")):
        monkeypatch.setattr(module, "run", lambda *_: experiment)
        main([command, "--renode", "off"])
        printed = capsys.readouterr().out.splitlines()
        assert printed[:2] == ["weighted_f1 0.6 ± 0.1", "macro_f1 0.4 ± 0.2"]


def test_train_survives_a_kill(tmp_path):
    graph = tmp_path / "graph.pt"
    torch.save(KarateClub()[0], graph)
    few = "--split-kind compat --train-each 2 --valid-each 1 --hidden-size 4 --splits 3 --inits 4 --epochs 15"
    command = ["train", "--dataset", str(graph), *few.split()]

    def runs(out):
        content = json.loads((tmp_path / out / "results.json").read_text())["runs"]
        return {name: {key: run[key] for key in run if key != "seconds_per_epoch"} for name, run in content.items()}

    killed = [*command, "--out", str(tmp_path / "killed")]
    process = multiprocessing.get_context("fork").Process(target=main, args=(killed,))
    process.start()
    results = tmp_path / "killed" / "results.json"
    while process.is_alive() and not (results.exists() and "split0-init0" in results.read_text()):
        time.sleep(0.02)
    process.kill()
    process.join()
    kept = runs("killed")
    assert 0 < len(kept) < 12
    main(killed)
    main([*command, "--out", str(tmp_path / "straight")])
    assert kept.items() <= runs("killed").items() and runs("killed") == runs("straight")


def test_plot(tmp_path):
    main(["plot", "--dataset", "KarateClub", "--split-kind", "public", "--out", str(tmp_path)])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FIGURES)
    for name in FIGURES:
        figure = imread(tmp_path / name)[..., :3]
        assert figure.shape[1] > 800 and 0.002 < (figure < 0.9).any(-1).mean() < 0.6


def test_plot_of_a_part(tmp_path, cora_root):
    main(["plot", "--root", cora_root, "--layout-nodes", "60", "--out", str(tmp_path)])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FIGURES)
    figure = imread(tmp_path / "layout.png")[..., :3]
    assert 0.002 < (figure < 0.9).any(-1).mean() < 0.6


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (
            "score --dataset KarateClub --split-kind public --alpha 0",
            "--alpha must be at least 1e-06 and less than 1, got 0.0",
        ),
        ("score --dataset KarateClub --split-kind public --w-min 2", "w_min"),
        ("score --dataset KarateKlub", "did you mean 'KarateClub'"),
        ("train --dataset KarateClub --split-kind public", "the graph has no val_mask"),
        ("train --splits -1", "--splits must be at least 0, got -1"),
        ("train-large --splits 0", "--splits must be at least 1, got 0"),
        ("train --inits 0", "--inits must be at least 1, got 0"),
        ("train --dataset KarateClub --train-each 2 --valid-each 1 --out setup.py", "--out: cannot write"),
        ("score --dataset KarateClub --split-kind public --out setup.py", "--out: cannot write"),
        ("plot --dataset KarateClub --split-kind public --out setup.py", "--out: cannot write"),
        ("plot --dataset KarateClub --split-kind public --layout-nodes 0", "--layout-nodes must be at least 1"),
    ],
)
def test_one_line_errors(command, message, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(InputError, match=message) as refusal:
        main(command.split())
    # A SystemExit with a text: the interpreter prints it and exits with 1, without a traceback.
    assert isinstance(refusal.value, SystemExit) and refusal.value.code == 2
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("command", ["train", "score", "plot", "train-large"])
def test_help(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0 and "--dataset" in capsys.readouterr().out
