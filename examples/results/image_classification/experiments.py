"""What is trained, on which data, and what is done with each model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from examples.results.report import unpacked
from fairseq_ext.training.files import read_json, write_json
from fairseq_ext.training.settings import digest
from vision_language.image_classification.detection import detection_metrics
from vision_language.image_classification.evaluate import RADII, AttackOptions, OodOptions, attack, ood

__all__ = ["EXPERIMENTS", "HALF_RATE", "HALF_RATE_BASELINE", "LONG", "USUAL", "Experiment", "Places", "sources"]

CROSS_ENTROPY: dict[str, Any] = {"loss": "cross-entropy"}
ENCOURAGING: dict[str, Any] = {"loss": "encouraging", "log_end": 1.0}
BOTH = {"cross-entropy": CROSS_ENTROPY, "encouraging": ENCOURAGING}
# No images are held out, so none pick an epoch.
LAST: dict[str, Any] = {"valid_fraction": 0.0, "select_on": "last"}
PUBLISHED: dict[str, Any] = {**LAST, "normalize": False, "shuffle": False, "epochs": 5, "batch_size": 128, "lr": 1e-3}

DEFERRED = 9
"""First of ten epochs with re-weighting, as 181 of 200 in the released code."""

HALF_RATE = "encouraging, LE 1, half the rate"
"""As the authors advise with LE 1; the usual learning rate of these tables is Adam's own."""
HALF_RATE_BASELINE = "cross-entropy, half the rate"
"""What it is compared with."""

TAIL_ROWS: dict[str, dict[str, Any]] = {
    "cross-entropy": CROSS_ENTROPY,
    "class-balanced": {**CROSS_ENTROPY, "reweight": "loss"},
    "DRW": {**CROSS_ENTROPY, "reweight": "loss", "reweight_from": DEFERRED},
    "LDAM, DRW": {
        **CROSS_ENTROPY,
        **{"adjust_logits": "ldam", "cosine_scale": 30.0, "reweight": "loss", "reweight_from": DEFERRED},
    },
    "logit adjustment": {**CROSS_ENTROPY, "adjust_logits": "prior"},
    "cRT": {**CROSS_ENTROPY, "init": "cross-entropy", "freeze": True},
    "focal": {"loss": "focal"},
    "halted focal": {"loss": "halted-focal"},
    "encouraging, LE 0.5": {**ENCOURAGING, "log_end": 0.5},
    "encouraging, LE 1": ENCOURAGING,
    HALF_RATE_BASELINE: {**CROSS_ENTROPY, "lr": 5e-4},
    HALF_RATE: {**ENCOURAGING, "lr": 5e-4},
    "aggressive": {**ENCOURAGING, "bonus_start": 0.5},
    "class-weighted bonus": {**ENCOURAGING, "reweight": "bonus"},
    "DRW + bonus": {**ENCOURAGING, "reweight": "both", "reweight_from": DEFERRED, "bonus_from": DEFERRED},
}
# For what takes longer: those that the paper compares.
FEWER_ROWS = {
    name: TAIL_ROWS[name]
    for name in (
        *("cross-entropy", "class-balanced", "DRW", "LDAM, DRW"),
        *("encouraging, LE 0.5", "encouraging, LE 1", HALF_RATE_BASELINE, HALF_RATE),
        *("class-weighted bonus", "DRW + bonus"),
    )
}
LONG, LONG_DEFERRED = 40, 37
"""Epochs of a training whose losses have time to converge, and the first of its deferred ones."""
LONG_ROWS = {
    name: {key: LONG_DEFERRED if value == DEFERRED else value for key, value in TAIL_ROWS[name].items()}
    for name in (
        *("cross-entropy", "DRW", "encouraging, LE 0.5", "encouraging, LE 1", HALF_RATE_BASELINE, HALF_RATE),
        *("aggressive", "DRW + bonus", "focal", "halted focal"),
    )
}
TAIL: dict[str, Any] = {**LAST, "long_tail": "exponential", "epochs": 10}
DIGITS: dict[str, Any] = {**TAIL, "normalize": False, "largest_class": 1500}
PHOTOGRAPHS: dict[str, Any] = {**TAIL, "largest_class": 1000, "image_size": 28, "batch_size": 32}

L_SOFTMAX: dict[str, Any] = {
    **{**LAST, "network": "large-margin-cnn", "optimizer": "sgd", "lr": 0.1, "batch_size": 256, "epochs": 100},
    **{"lr_schedule": "steps", "lr_steps": (51, 65)},
}
SMOOTHED = {
    "cross-entropy": CROSS_ENTROPY,
    "cross-entropy, smoothed": {**CROSS_ENTROPY, "label_smoothing": 0.1},
    "encouraging": ENCOURAGING,
    "encouraging, smoothed": {**ENCOURAGING, "label_smoothing": 0.1},
}

PGD_RADII, PGD_IMAGES = (0.0, 0.1, 0.2, 0.3), 1000

PLACES = ("model", "data", "others", "out", "device", "eval_batch_size")
"""Options of a test that change no figure: where it reads, writes and computes."""

OTHERS = {"notMNIST": ("notmnist_test", False), "Omniglot": ("omniglot", True), "USPS": ("usps", False)}
"""Folder of the images of another kind, and whether their ink is dark."""


MNIST, CIFAR10, OMNIGLOT = "images/mnist", "images/cifar10_jpeg", "images/omniglot_small"


class Places(NamedTuple):
    """Where the data sets are, and where the archives of some are unpacked."""

    data: Path
    out: Path

    def mnist(self) -> Path:
        return self.data / MNIST

    def cifar10(self) -> Path:
        folder = self.data / CIFAR10
        return unpacked([folder / f"{split}.tar.xz" for split in ("train", "test")], self.out / "cifar10_jpeg")

    def other(self, name: str) -> Path:
        folder = self.data / "images" / name
        if name != "omniglot":
            return folder
        archive = self.data / OMNIGLOT / "images_background_small2.zip"
        return unpacked([archive], self.out / "omniglot")


def under_attack(model: Path, places: Places) -> dict[str, Any]:
    """FGSM on all test images, PGD on the first."""
    shared: dict[str, Any] = {"model": str(model), "data": str(places.mnist())}
    made = {
        "fgsm": AttackOptions(**shared, attack="fgsm", epsilons=RADII),
        "pgd": AttackOptions(**shared, attack="pgd", epsilons=PGD_RADII, limit=PGD_IMAGES),
    }
    return {name: _kept(name, options, partial(attack, options)) for name, options in made.items()}


def against_others(model: Path, places: Places) -> dict[str, Any]:
    """Every score, and the largest probability in float32 as it is usually ranked by."""
    detected: dict[str, Any] = {}
    for name, (folder, invert) in OTHERS.items():
        other = places.other(folder)
        options = OodOptions(
            **{"model": str(model), "data": str(places.mnist()), "others": (str(other),)},
            invert=invert,
            out=str(model / "ood" / name),
        )
        detected[name] = _kept(f"ood-{name}", options, partial(_detected, options, other.name))
    return detected


def _detected(options: OodOptions, name: str) -> dict[str, Any]:
    result = ood(options)[name]
    with np.load(Path(options.out) / "ood.npz") as arrays:
        largest = [torch.from_numpy(arrays[part]).softmax(1).amax(1).numpy() for part in ("test", name)]
    return {**result, "msp-float32": detection_metrics(*largest)}


class Experiment(NamedTuple):
    """Rows that are trained alike on one data set, and what is done with each model."""

    trainings: str
    data: Callable[[Places], Path]
    settings: dict[str, Any]
    rows: dict[str, dict[str, Any]]
    then: Callable[[Path, Places], dict[str, Any]] | None = None


EXPERIMENTS = {
    "attacks": Experiment("plain", Places.mnist, PUBLISHED, BOTH, under_attack),
    "others": Experiment("plain", Places.mnist, PUBLISHED, BOTH, against_others),
    "mnist_r100": Experiment("mnist_r100", Places.mnist, {**DIGITS, "imbalance_factor": 100.0}, TAIL_ROWS),
    "cifar10_r100": Experiment("cifar10_r100", Places.cifar10, {**PHOTOGRAPHS, "imbalance_factor": 100.0}, FEWER_ROWS),
    "mnist_r100_long": Experiment(
        "mnist_r100_long", Places.mnist, {**DIGITS, "imbalance_factor": 100.0, "epochs": LONG}, LONG_ROWS
    ),
    "clean": Experiment(
        "clean",
        Places.mnist,
        {
            **{**L_SOFTMAX, "width": 16, "long_tail": "exponential", "imbalance_factor": 1.0, "largest_class": 600},
            **{"epochs": 4, "lr_steps": (3, 4)},
        },
        SMOOTHED,
    ),
    "mnist_r10": Experiment("mnist_r10", Places.mnist, {**DIGITS, "imbalance_factor": 10.0}, FEWER_ROWS),
    "cifar10_r10": Experiment("cifar10_r10", Places.cifar10, {**PHOTOGRAPHS, "imbalance_factor": 10.0}, FEWER_ROWS),
    "adversarial_training": Experiment(
        "adversarial", Places.mnist, {**PUBLISHED, "attack": "fgsm", "epsilon": 0.3}, BOTH, under_attack
    ),
    "l_softmax": Experiment("l_softmax", Places.mnist, L_SOFTMAX, SMOOTHED),
    "trial": Experiment("trial", Places.mnist, {**L_SOFTMAX, "width": 2, "epochs": 3, "lr_steps": (2, 3)}, BOTH),
}
USUAL = [name for name in EXPERIMENTS if name not in ("l_softmax", "trial")]
"""l_softmax is for a GPU, and trial shows only that everything runs."""


def sources(experiment: Experiment, data: Path) -> list[Path]:
    """The folders below ``data`` that an experiment is trained and tested on."""
    others = [folder for folder, _ in OTHERS.values()] if experiment.then is against_others else []
    tested = [data / (OMNIGLOT if folder == "omniglot" else f"images/{folder}") for folder in others]
    return [data / (CIFAR10 if experiment.data == Places.cifar10 else MNIST), *tested]


def _kept(name: str, options: Any, result: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A test of a model, which is kept beside it for its options."""
    settings = {key: value for key, value in asdict(options).items() if key not in PLACES}
    file = Path(options.model) / f"{name}-{digest(settings)[:8]}.json"
    if not file.exists():
        write_json(file, result())
    return {key: value for key, value in read_json(file).items() if key not in PLACES}
