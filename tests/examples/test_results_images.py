"""What the rows of image classification run, and what their tables say."""

from __future__ import annotations

import lzma
import tarfile
import zipfile
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from examples.results import image_classification as images
from examples.results import report
from examples.results.image_classification import experiments
from examples.results.image_classification.experiments import EXPERIMENTS, Places
from fairseq_ext.training.errors import DataError
from fairseq_ext.training.files import read_json, write_json
from tests.examples.test_results_rows import ENVIRONMENT, defaults
from vision_language.image_classification.options import Options
from vision_language.image_classification.scores import OOD_SCORES

RECORD = {
    "test_accuracy": 0.5, "test_nll": 1.0, "test_margin": 2.0, "test_ece": 0.1, "train_counts": [9, 3],
    "test_class_accuracy": [1.0, 0.0], "steps": 4, "seconds_per_step": 0.5, "environment": ENVIRONMENT, "history": [1],
}  # fmt: skip


@pytest.fixture
def trained(monkeypatch):
    """Trainings and attacks, replaced by what they leave behind: all options by folder, and the tests of each model."""
    calls = SimpleNamespace(trainings={}, tests=[])

    def run(options: Options, out: Path, runs: int = 1) -> SimpleNamespace:
        calls.trainings[str(out)] = options
        names = [f"seed{seed}" for seed in range(options.seed, options.seed + runs + 1)]  # one more than is asked for
        for name in names:
            (Path(out) / name).mkdir(parents=True, exist_ok=True)
        return SimpleNamespace(runs={name: RECORD for name in names})

    def attack(options: Any) -> dict[str, Any]:
        calls.tests.append(options)
        return {"images": options.limit or 10, "attack": options.attack}

    def ood(options: Any) -> dict[str, Any]:
        calls.tests.append(options)
        (name,) = (Path(other).name for other in options.others)
        Path(options.out).mkdir(parents=True)
        # The margin tells them apart; in float32 both probabilities are 1.
        np.savez(Path(options.out) / "ood.npz", **{"test": np.float32([[90, 0]]), name: np.float32([[50, 0]])})
        return {name: {"images": 1, "msp": {"auroc": 1.0}}}

    monkeypatch.setattr(images, "run", run)
    monkeypatch.setattr(experiments, "attack", attack)
    monkeypatch.setattr(experiments, "ood", ood)
    monkeypatch.setattr(experiments, "unpacked", lambda archives, target: target)
    return calls


def changed(options: Options) -> dict[str, Any]:
    """What is not at its default."""
    default = asdict(Options(data=options.data))
    return {name: value for name, value in asdict(options).items() if value != default[name]}


def measured(tmp_path: Path, *names: str) -> list[dict[str, Any]]:
    options = defaults("image_classification", data=tmp_path, out=tmp_path / "out", seeds=2, experiments=list(names))
    return list(images.measure(options))


LAST = {"valid_fraction": 0.0, "select_on": "last"}
CE: dict[str, Any] = {"loss": "cross-entropy"}
EL: dict[str, Any] = {"log_end": 1.0}


def test_the_attacked_models_are_of_the_papers_recipe(trained, tmp_path):
    attacked, others = measured(tmp_path, "attacks", "others")
    of_loss = {Path(folder).name: changed(options) for folder, options in trained.trainings.items()}
    recipe = {**LAST, "normalize": False, "shuffle": False}
    assert of_loss == {"cross_entropy": {**recipe, **CE}, "encouraging": {**recipe, **EL}}
    options = next(iter(trained.trainings.values()))
    assert (options.epochs, options.batch_size, options.lr, options.optimizer) == (5, 128, 1e-3, "adam")
    assert options.network == "three-convolutions"

    by_attack = [options for options in trained.tests if hasattr(options, "attack")]
    assert len(by_attack) == 2 * 2 * 2 and {row["system"] for row in attacked["rows"]} == {
        "cross-entropy",
        "encouraging",
    }
    assert {(o.attack, o.limit, o.objectives) for o in by_attack} == {
        ("fgsm", 0, ("log-odds", "cross-entropy")),
        ("pgd", 1000, ("log-odds", "cross-entropy")),
    }
    assert {Path(o.model).parent.name for o in by_attack} == {"cross_entropy", "encouraging"}
    inverted = {Path(o.others[0]).name: o.invert for o in trained.tests if hasattr(o, "others")}
    assert inverted == {"notmnist_test": False, "omniglot": True, "usps": False}
    run = others["rows"][0]["runs"]["seed1"]
    assert run["USPS"]["msp-float32"]["auroc"] == 0.5, "ties of rounded probabilities"

    assert list(attacked["rows"][0]["runs"]) == ["seed1", "seed2"] and "history" not in run
    count = len(trained.tests)
    assert measured(tmp_path, "attacks", "others") == [attacked, others] and len(trained.tests) == count


TAIL: dict[str, dict[str, Any]] = {
    "cross-entropy": CE,
    "class-balanced": {**CE, "reweight": "loss"},
    "DRW": {**CE, "reweight": "loss", "reweight_from": 9},
    "LDAM, DRW": {**CE, "reweight": "loss", "reweight_from": 9, "adjust_logits": "ldam", "cosine_scale": 30.0},
    "logit adjustment": {**CE, "adjust_logits": "prior"},
    "focal": {"loss": "focal"},
    "halted focal": {"loss": "halted-focal"},
    "encouraging, LE 0.5": {"log_end": 0.5},
    "encouraging, LE 1": EL,
    "cross-entropy, half the rate": {**CE, "lr": 5e-4},
    "encouraging, LE 1, half the rate": {**EL, "lr": 5e-4},
    "aggressive": {**EL, "bonus_start": 0.5},
    "class-weighted bonus": {**EL, "reweight": "bonus"},
    "DRW + bonus": {**EL, "reweight": "both", "reweight_from": 9, "bonus_from": 9},
}


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if "_r" in name and name != "adversarial_training"])
def test_each_row_of_a_tail_trains_what_it_says(name, trained, tmp_path):
    (content,) = measured(tmp_path, name)
    data, factor = name.removesuffix("_long").split("_r")
    epochs, deferred = (40, 37) if name.endswith("_long") else (10, 9)
    shared = {**LAST, "long_tail": "exponential", "epochs": epochs} | (
        {"normalize": False, "largest_class": 1500}
        if data == "mnist"
        else {"largest_class": 1000, "image_size": 28, "batch_size": 32}
    )
    shared |= {} if factor == "100" else {"imbalance_factor": 10.0}
    of_folder = {Path(folder): changed(options) for folder, options in trained.trainings.items()}
    systems = [row["system"] for row in content["rows"]]
    folder = tmp_path / "out" / "image_classification" / name
    first = report.slug("cross-entropy")
    for system in systems:
        own = folder / report.slug(system)
        if system == "cRT":
            plain = {key: value for key, value in shared.items() if key != "normalize"}
            for seed in (1, 2):
                stage = {**plain, **CE, "freeze": True, "init": str(folder / first / f"seed{seed}"), "seed": seed}
                stage = stage if seed > 1 else {key: value for key, value in stage.items() if key != "seed"}
                assert of_folder[own / f"seed{seed}"] == stage
        else:
            row = {key: deferred if key.endswith("_from") else value for key, value in TAIL[system].items()}
            assert of_folder[own] == shared | row
    assert (name != "mnist_r100") or set(systems) == {*TAIL, "cRT"}
    assert len({report.slug(system) for system in systems}) == len(systems)


def test_the_l_softmax_network_and_the_adversarial_training(trained, tmp_path):
    measured(tmp_path, "clean", "l_softmax", "adversarial_training")
    by_name = {"/".join(Path(folder).parts[-2:]): changed(options) for folder, options in trained.trainings.items()}
    recipe = {
        **{**LAST, "network": "large-margin-cnn", "optimizer": "sgd", "lr": 0.1, "batch_size": 256, "epochs": 100},
        **{"lr_schedule": "steps", "lr_steps": (51, 65)},
    }
    smaller = {"width": 16, "long_tail": "exponential", "imbalance_factor": 1.0, "largest_class": 600, "epochs": 4}
    losses = {"cross_entropy": CE, "encouraging": EL}
    losses |= {f"{name}__smoothed": {**loss, "label_smoothing": 0.1} for name, loss in losses.items()}
    for name, loss in losses.items():
        assert by_name[f"l_softmax/{name}"] == recipe | loss
        assert by_name[f"clean/{name}"] == recipe | smaller | {"lr_steps": (3, 4)} | loss
    attacked = {**LAST, "normalize": False, "shuffle": False, "attack": "fgsm"}
    assert by_name["adversarial/encouraging"] == attacked | EL


# --- text ------------------------------------------------------------------------------------------------------------


def content(experiment: str, rows: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    record = {key: value for key, value in RECORD.items() if key != "environment"}  # that of the content is for all
    runs = {name: {f"seed{n}": record | run for n, run in enumerate(each, 1)} for name, each in rows.items()}
    listed = [{"system": name, "runs": each} for name, each in runs.items()]
    return {
        "part": "image_classification",
        "command": "image_classification",
        "name": f"images_{experiment}",
        "experiment": experiment,
        "environments": [ENVIRONMENT],
        "rows": listed,
    }


def under_attack(by_cross_entropy: float, by_log_odds: float) -> dict[str, Any]:
    accuracy = {
        "log-odds": {"0": 0.9, "0.2": by_log_odds},
        "cross-entropy": {"0": 0.9, "0.2": by_cross_entropy},
    }
    result = {"images": 10, "probability_is_one": 0.95, "zero_gradient": 0.01, "accuracy": accuracy}
    return {"fgsm": result, "pgd": result}


@pytest.fixture
def written(tmp_path):
    """RESULTS.md of the given contents."""

    def write(*contents: dict[str, Any]) -> str:
        for each in contents:
            (tmp_path / "results").mkdir(exist_ok=True)
            write_json(tmp_path / "results" / f"{each['name']}.json", each)
        report.write_report(tmp_path)
        return (tmp_path / "RESULTS.md").read_text()

    return write


def test_a_gain_by_one_objective_is_said_not_to_be_the_models(written, tmp_path):
    plain = [under_attack(0.3, 0.3), under_attack(0.4, 0.4)]
    bonus = [under_attack(0.5, 0.3), under_attack(0.6, 0.45)]
    text = written(content("attacks", {"cross-entropy": plain, "encouraging": bonus}))
    assert "| attack | raised | loss | 0 | 0.2 |" in text
    assert "| FGSM | cross-entropy | encouraging | 90.0 ± 0.0 | 55.0 ± 5.0 |" in text
    assert "| FGSM | cross-entropy | difference | +0.0 [+0.0, +0.0] | +20.0 [+20.0, +20.0] |" in text
    assert "| FGSM | cross-entropy | encouraging, *published* | 99.04 | 63.0 |" in text
    assert "| PGD | log-odds | difference | +0.0 [+0.0, +0.0] | +2.5 [" in text
    assert (
        "raises the cross-entropy, as published, and +2.5" in text and ": 88 % of that gain is not the model's." in text
    )
    assert "| encouraging | 50.00 ± 0.00 | 1.000 ± 0.000 | 2.0 ± 0.0 | 95.00 ± 0.00 | 1.00 ± 0.00 |" in text
    assert "2 seeds, 2 s a training (median)." in text and "results/images_attacks.png" in text
    assert (tmp_path / "results" / "images_attacks.png").stat().st_size > 10_000


def test_the_other_images_are_ranked_by_every_score(written):
    def run(auroc: float, rounded: float) -> dict[str, Any]:
        own = {"auroc": auroc, "fpr95": 0.2}
        return {"USPS": {"images": 7, **dict.fromkeys(OOD_SCORES, own), "msp-float32": own | {"auroc": rounded}}}

    text = written(
        content("others", {"cross-entropy": [run(0.9, 0.9)] * 2, "encouraging": [run(0.8, 0.6), run(0.79, 0.6)]})
    )
    assert "| USPS (7) | energy | 90.00 ± 0.00 | 79.50 ± 0.50 | -10.50 [" in text
    assert "AUROC falls by 0.0 (cross-entropy), 19.5 (encouraging) points" in text
    assert "the encouraging loss gains in 0 and loses in 5 of 5 rows" in text


def test_rows_above_and_below_cross_entropy(written, tmp_path):
    def runs(*accuracies: float, few: float | None = None) -> list[dict[str, Any]]:
        return [{"test_accuracy": accuracy, "test_many": 0.75, "test_few": few} for accuracy in accuracies]

    rows = {"cross-entropy": runs(0.5, 0.6), "DRW": runs(0.55, 0.651), "focal": runs(0.4, 0.501), "cRT": runs(0.5, 0.7)}
    text = written(content("mnist_r100", rows), content("clean", rows))
    assert "| DRW | 60.05 ± 5.05 | +5.05 [" in text and "| 75.0 ± 0.0 |  |  | 50.0 ± 0.0 |" in text
    said = "Against cross-entropy gains: *DRW*; loses: *focal*; the interval of the other 1 holds 0."
    assert text.count(said) == 2 and "Training images: 9, 3." in text
    assert (tmp_path / "results" / "images_tails.png").stat().st_size > 10_000
    assert "(results/images_tails.png)" in text
    assert text.index("smaller stand-in") < text.index("Long-tailed MNIST, factor 100")


def test_a_table_of_a_gpu_says_what_is_missing(written):
    rows = {"encouraging": [{"test_accuracy": 0.9956}]}
    gpu = content("l_softmax", rows) | {"shell": "make gpu", "missing": ["cross-entropy"]}
    text = written(gpu | {"environments": [{**ENVIRONMENT, "gpu": "Card 9"}]})
    assert "| encouraging | 99.56 |  | 1.000 | 2.0 | 0.100 | 99.56 ± 0.05 |" in text
    assert "Card 9; python 3" in text and "Not measured yet: cross-entropy." in text and "    make gpu" in text


# --- archives --------------------------------------------------------------------------------------------------------


def test_archives_are_unpacked_once_for_their_content(tmp_path):
    text = tmp_path / "a.txt"
    text.write_text("one")
    packed, zipped = tmp_path / "train.tar.xz", tmp_path / "letters.zip"
    with tarfile.open(packed, "w:xz") as archive:
        archive.add(text, "train/0/a.txt")
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.write(text, "b.txt")
    folder = report.unpacked([packed, zipped], tmp_path / "out")
    assert (folder / "train" / "0" / "a.txt").read_text() == (folder / "b.txt").read_text() == "one"
    (folder / "b.txt").write_text("mine")
    assert report.unpacked([packed, zipped], tmp_path / "out") == folder and (folder / "b.txt").read_text() == "mine"
    with zipfile.ZipFile(zipped, "a") as archive:
        archive.write(text, "c.txt")
    assert report.unpacked([packed, zipped], tmp_path / "out") != folder

    packed.write_bytes(lzma.compress(b"no archive"))
    before = sorted(tmp_path.glob("out*"))
    with pytest.raises(DataError, match=r"train\.tar\.xz: damaged"):
        report.unpacked([packed], tmp_path / "out")
    assert [path for path in tmp_path.glob("out*") if path not in before and not path.name.endswith(".tmp")] == []
    with pytest.raises(DataError, match=r"--data: .*gone\.zip is not there"):
        report.unpacked([tmp_path / "gone.zip"], tmp_path / "out")


def test_the_places_of_the_data_sets(monkeypatch, tmp_path):
    opened = []
    monkeypatch.setattr(experiments, "unpacked", lambda archives, target: opened.extend(archives) or target)
    places = Places(tmp_path, tmp_path / "out")
    assert places.cifar10() == tmp_path / "out" / "cifar10_jpeg" and places.mnist() == tmp_path / "images" / "mnist"
    assert (
        places.other("usps") == tmp_path / "images" / "usps"
        and places.other("omniglot") == tmp_path / "out" / "omniglot"
    )
    assert [path.name for path in opened] == ["train.tar.xz", "test.tar.xz", "images_background_small2.zip"]


def test_kept_tests_belong_to_their_options(tmp_path):
    options = experiments.AttackOptions(model=str(tmp_path), data="d", attack="fgsm")
    assert experiments._kept("fgsm", options, lambda: {"a": 1}) == {"a": 1}
    assert experiments._kept("fgsm", options, lambda: {"a": 2}) == {"a": 1}
    other = experiments.AttackOptions(model=str(tmp_path), data="d", attack="fgsm", limit=5)
    assert experiments._kept("fgsm", other, lambda: {"a": 3}) == {"a": 3}
    assert sorted(read_json(file)["a"] for file in tmp_path.glob("*.json")) == [1, 3]
