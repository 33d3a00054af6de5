"""The commands as a user types them, what each option of theirs changes, and what is refused in one line."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from fairseq_ext.training.errors import InputError
from tests.helpers import ROOT, Row, options_of, words_of
from vision_language.image_classification.__main__ import main
from vision_language.image_classification.options import Options

TRAIN = "train --data DATA --out OUT --epochs 1 --batch-size 40 --device cpu"
EVALUATE = "--model MODEL --data DATA --device cpu"


@pytest.fixture(scope="module")
def model(images, tmp_path_factory):
    """A trained experiment."""
    folder = tmp_path_factory.mktemp("trained") / "el"
    main([*TRAIN.replace("DATA", str(images)).replace("OUT", str(folder)).split(), *"--log-end 1 --epochs 3".split()])
    return folder


@pytest.fixture
def command(model, images, others, colours, tmp_path, monkeypatch, capsys):
    """Runs a command in an empty folder, and gives what it prints and writes."""
    monkeypatch.chdir(tmp_path)
    places = {"DATA": images, "MODEL": model / "seed1", "TRAINED": model, "OTHERS": others, "COLOURS": colours}

    def run(words: str) -> str:
        names = [str(places.get(word, word)) for word in words.split()]
        main(names)
        return capsys.readouterr().out

    return run


def test_evaluate_tells_what_the_training_told(command, model):
    result = json.loads(command(f"evaluate {EVALUATE} --out results"))
    record = json.loads((model / "results.json").read_text())["runs"]["seed1"]
    for name in ("accuracy", "nll", "ece", "margin", "class_accuracy"):
        assert result[name] == pytest.approx(record[f"test_{name}"])
    with np.load("results/evaluation.npz", allow_pickle=False) as arrays:
        assert (arrays["logits"].argmax(1) == arrays["labels"]).mean() == pytest.approx(result["accuracy"])
    assert json.loads(open("results/evaluation.json").read())["environment"]["torch"]


def test_the_crop_of_the_training_is_that_of_the_model(command, model, tmp_path):
    """Its folder says it; --crop says otherwise."""
    command(f"{TRAIN} --augment resized-crop")
    told = json.loads((tmp_path / "OUT" / "results.json").read_text())["runs"]["seed1"]["test_nll"]
    place = EVALUATE.replace("MODEL", "OUT/seed1")
    assert json.loads(command(f"evaluate {place}"))["nll"] == pytest.approx(told)
    assert json.loads(command(f"evaluate {place} --crop none"))["nll"] != pytest.approx(told)
    plain = json.loads(command(f"evaluate {EVALUATE}"))["nll"]
    assert json.loads(command(f"evaluate {EVALUATE} --crop resized-crop"))["nll"] != pytest.approx(plain)
    attacked, cropped = (
        json.loads(command(f"attack {place} --epsilons 0 {crop}"))["accuracy"] for crop in ("", "--crop resized-crop")
    )
    assert attacked == cropped


def test_attacks_lower_the_accuracy_and_both_objectives_are_told(command, model):
    result = json.loads(command(f"attack {EVALUATE} --epsilons 0 0.3 --out results"))
    clean = json.loads(command(f"evaluate {EVALUATE}"))["accuracy"]
    for accuracy in result["accuracy"].values():
        assert accuracy["0"] == pytest.approx(clean) and accuracy["0.3"] < clean
    assert result["robust_accuracy"]["0.3"] == min(row["0.3"] for row in result["accuracy"].values())
    assert {"zero_gradient", "probability_is_one"} <= result.keys()


def test_images_are_drawn_of_what_is_there(command, model, tmp_path):
    (tmp_path / "el").mkdir()
    (tmp_path / "el" / "results.json").write_text((model / "results.json").read_text())
    drawn = command("plot el --out few")
    assert drawn.startswith("training, losses, loss_gradients, gradients, gradient_training:")
    command(f"evaluate {EVALUATE} --out el/test")
    command(f"ood {EVALUATE} --others OTHERS --out el/test")
    command(f"attack {EVALUATE} --epsilons 0 0.1 --out el/test")
    drawn = command("plot el --out all").partition(":")[0].split(", ")
    of_tests = ["probabilities", "margins", "training", "energies", "class_energies", "robustness", "reliability"]
    assert drawn == [*of_tests, "losses", "loss_gradients", "gradients", "gradient_training"]
    for name in drawn:
        assert (tmp_path / "all" / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
        assert json.loads((tmp_path / "all" / f"{name}.json").read_text())


# Beside "data" and "device", an option of training by another value, where it acts, and where it would do nothing.
CROSS_ENTROPY, ADAM, TWO = "--loss cross-entropy", "--optimizer adam", "--epochs 2"
ROWS = {
    "long_tail": Row("step", "--imbalance-factor 3"),
    "imbalance_factor": Row("4", "--long-tail step --imbalance-factor 3", ("",)),
    "largest_class": Row("6", "--long-tail step --imbalance-factor 3", ("",)),
    "valid_fraction": Row("0.3"),
    "subset_seed": Row("1"),
    "network": Row("large-margin-cnn", ""),
    "image_size": Row("16", "--network resnet32"),
    "width": Row("4", "--network large-margin-cnn", ("",)),
    "margin": Row("2", "--network large-margin-cnn --width 4", ("",)),
    "cosine_scale": Row("9"),
    "from_scratch": Row(idle=("",)),
    "normalize": Row(),
    "loss": Row("focal"),
    "label_smoothing": Row("0.2", "", ("--loss focal", "--loss mse")),
    "bonus": Row("cosine", "", (CROSS_ENTROPY,)),
    "log_end": Row("0.05", "", (CROSS_ENTROPY, "--bonus power")),
    "bonus_start": Row("0.05", "", (CROSS_ENTROPY,)),
    "bonus_power": Row("2", "--bonus power", ("",)),
    "bonus_weight": Row("0.5", "", (CROSS_ENTROPY,)),
    "bonus_from": Row("2", TWO, (CROSS_ENTROPY,)),
    "schedule": Row("linear", TWO, (CROSS_ENTROPY,)),
    "activation": Row("sigmoid", "--loss mirror-mse", ("", "--loss focal", CROSS_ENTROPY)),
    "mirror_power": Row("3", "--loss mirror-mse", ("", "--loss mse")),
    "gamma": Row("3", "--loss focal", ("",)),
    "adjust_logits": Row("ldam"),
    "reweight": Row("both", "--long-tail step --imbalance-factor 3"),
    "beta": Row("0.5", "--reweight both --long-tail step --imbalance-factor 3", ("",)),
    "reweight_from": Row("2", f"{TWO} --reweight both --long-tail step --imbalance-factor 3", ("",)),
    "mixed_precision": Row("bf16"),
    "augment": Row("pad-crop"),
    "optimizer": Row("sgd"),
    "lr": Row("0.01"),
    "momentum": Row("0.5", "--optimizer sgd", (ADAM,)),
    "nesterov": Row("", "--optimizer sgd", (ADAM,)),
    "weight_decay": Row("0.5"),
    "lr_schedule": Row("cosine", TWO),
    "lr_steps": Row("2", f"{TWO} --lr-schedule steps", ("", "--lr-schedule cosine")),
    "lr_factor": Row("0.5", f"{TWO} --lr-schedule steps --lr-steps 2", ("",)),
    "warmup_epochs": Row("2", TWO),
    "epochs": Row("2"),
    "batch_size": Row("30"),
    "eval_batch_size": Row("7"),
    "shuffle": Row(),
    "select_on": Row("last", TWO),
    "freeze": Row("", "--init MODEL"),
    "init": Row("MODEL"),
    "workers": Row("1"),
    "attack": Row("fgsm"),
    "epsilon": Row("0.1", "--attack fgsm", ("",)),
    "attack_steps": Row("1", "--attack pgd", ("--attack fgsm", "")),
    "attack_step_size": Row("0.05", "--attack pgd --attack-steps 2", ("--attack fgsm", "")),
    "seed": Row("2"),
}
SAME = {"workers"}
"""It changes how the work is done, and no figure."""
OPTIONS = options_of(main.parser())


def test_every_option_of_training_has_a_row():
    beside = {"data", "device", "out", "runs"}
    assert set(OPTIONS["train"]) - beside == set(ROWS) == set(Options.defaults())


@pytest.fixture(scope="module")
def outcomes():
    """What trainings that several options are compared with came to."""
    return {}


@pytest.mark.parametrize("option", ROWS)
def test_an_option_changes_what_comes_out_or_is_refused(command, outcomes, option, tmp_path):
    row, words = ROWS[option], " ".join(words_of(OPTIONS["train"][option], ROWS[option].value))
    for place in row.idle:
        with pytest.raises(InputError, match=f"^{words.split()[0]}.*: has no effect"):
            command(f"{TRAIN} {place} {words}")
        assert not (tmp_path / "OUT").exists()
    if option == "from_scratch":  # acts on models of others: see test_train
        return

    def outcome(name: str, more: str) -> dict:
        command(f"{TRAIN.replace('OUT', name)} {more}")
        record = next(iter(json.loads((tmp_path / name / "results.json").read_text())["runs"].values()))
        return {key: value for key, value in record.items() if not key.startswith("seconds") and key != "environment"}

    base = {"lr_steps": TWO, "long_tail": ""}.get(option, row.given)  # refused without the option
    if base not in outcomes:
        outcomes[base] = outcome("base", base)
    assert (outcome("changed", f"{row.given} {words}") == outcomes[base]) == (option in SAME)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("train --data absent", "--data: absent does not exist"),
        ("train --data DATA --loss encourage", "--loss: 'encourage' is not one of .*; did you mean 'encouraging'"),
        ("train --data DATA --imbalance-factor 0.5 --long-tail step", "--imbalance-factor must be at least 1, got 0.5"),
        (
            "train --data DATA --long-tail exp",
            "--long-tail: 'exp' is not one of exponential, step; did you mean",
        ),
        ("train --data DATA --freeze", "--freeze: needs the model of the first stage, --init FOLDER"),
        ("train --data DATA --lr-schedule steps", "--lr-schedule steps: needs the epochs, --lr-steps"),
        ("train --data DATA --lr-schedule steps --lr-steps 9", "--lr-steps must rise, from 2 to --epochs 5, got 9"),
        (
            "train --data DATA --lr-schedule cosine-released --epochs 1",
            "--lr-schedule cosine-released: its last epoch learns nothing, and --epochs 1 has no other",
        ),
        ("train --data DATA --bonus-from 6", "--bonus-from 6: there are only --epochs 5"),
        ("train --data DATA --reweight bonus --loss mse", "--reweight bonus: --loss mse has no bonus"),
        ("train --data DATA --attack fgms", "--attack: 'fgms' is not one of fgsm, pgd, pgd-l2; did you mean 'fgsm'?"),
        (
            "train --data DATA --network large-margin-cnn --margin 2 --cosine-scale 3",
            "--margin 2: has no effect with --cosine-scale 3",
        ),
        ("train --data DATA --attack pgd --epsilon 3", "--epsilon must be at most 1 with --attack pgd, .*, got 3"),
        ("train --data DATA --init MODEL --cosine-scale 3", "--cosine-scale 3.0: has no effect with --init"),
        ("train --data DATA --init MODEL --no-normalize", "--no-normalize: has no effect with --init"),
        ("train --data DATA --init MODEL --freeze --no-shuffle", "--no-shuffle: has no effect with --freeze"),
        ("train --data DATA --network MODEL --no-normalize", "--no-normalize: has no effect with --network"),
        ("train --data DATA --network timm:x --from-scratch", "--from-scratch: has no effect with --network timm:x"),
        (f"ood {EVALUATE} --others OTHERS --scores margin --temperature 2", "--temperature 2.0: has no effect without"),
        (f"evaluate {EVALUATE} --split valid", "--split valid: .* has none"),
        ("evaluate --model OTHERS --data DATA", "no config.json in it"),
        ("evaluate --model MODEL --data COLOURS --out file", None),
        (f"ood {EVALUATE} --others DATA", "--others: .* holds the images of --data"),
        (f"ood {EVALUATE} --others absent", "absent does not exist"),
        (f"ood {EVALUATE} --others OTHERS OTHERS", "--others: two folders are called"),
        (f"ood {EVALUATE} --others OTHERS --scores mps", "--scores: 'mps' is not one of .*; did you mean 'msp'"),
        (f"evaluate {EVALUATE} --crop centre", "--crop: 'centre' is not one of none, pad-crop, resized-crop"),
        (f"attack {EVALUATE} --epsilons 8", r"--epsilons must be in \[0, 1\], in pixels from 0 to 1, got 8"),
        (f"attack {EVALUATE} --epsilons nan", "--epsilons must be finite, got nan"),
        (f"attack {EVALUATE} --attack pgd-l2 --epsilons -1", "--epsilons must be at least 0, got -1"),
        (f"attack {EVALUATE} --attack pgd-l2 --epsilons inf", "--epsilons must be finite, got inf"),
        (f"attack {EVALUATE} --objectives margin", "--objectives: 'margin' is not one of"),
        (f"attack {EVALUATE} --attack-steps 3", "--attack-steps 3: has no effect with --attack fgsm"),
        ("compare TRAINED absent", "absent/results.json"),
        ("compare TRAINED TRAINED --metric accuracy", "--metric accuracy: the runs have test_accuracy"),
        ("plot DATA", "holds no finished run of train"),
        ("plot TRAINED TRAINED", "two experiments are called el"),
        (f"plot {'TRAINED ' * 11}", "plot: at most 8 experiments can be told apart, got 11"),
        ("synthesize --images 3", "--images must be at least 50, got 3"),
    ],
)
def test_refused_commands(command, words, message):
    if message is None:  # grey images for a model of them are made of coloured ones
        command(words)
        return
    with pytest.raises(InputError, match=message) as refusal:
        command(words)
    assert "\n" not in str(refusal.value)


def test_equal_experiments_are_equal_pairs(command):
    settings, *rows = map(json.loads, command("compare TRAINED TRAINED").splitlines())
    assert settings == {"settings": {}} and "test_accuracy" in [row["metric"] for row in rows]
    assert all((row["runs"], row["difference"], row["equal"]) == (1, 0, 1) for row in rows)


def test_a_killed_command_is_resumed(images, tmp_path):
    start = [sys.executable, "-m", "vision_language.image_classification"]
    words = TRAIN.replace("DATA", str(images)).replace("--epochs 1", "--epochs 4")
    environment = {"cwd": tmp_path, "env": {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}}
    process = subprocess.Popen([*start, *words.split()], **environment, stderr=subprocess.DEVNULL)
    checkpoint, deadline = tmp_path / "OUT" / "seed1" / "checkpoint.pt", time.monotonic() + 300
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert checkpoint.exists()
    subprocess.run([*start, *words.split()], **environment, check=True, capture_output=True)
    main(words.replace("OUT", str(tmp_path / "straight")).split())
    files = [(tmp_path / place / "seed1" / "model.safetensors").read_bytes() for place in ("OUT", "straight")]
    assert files[0] == files[1]
