"""Figures of evaluations, of hand-made classifiers with which every mean, minimum, start and crop shows."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vision_language.image_classification import evaluate as evaluation
from vision_language.image_classification.attacks import Attack
from vision_language.image_classification.evaluate import AttackOptions, EvaluationOptions, OodOptions, attack, ood
from vision_language.image_classification.image_set import ImageFiles, ImageSet
from vision_language.image_classification.preprocessing import Preprocessing

PLACE: dict[str, Any] = {"model": "x", "data": "y", "device": "cpu"}


class Linear(nn.Module):
    """A linear map of grey pixels in [0, 1]."""

    def __init__(self, weight: Tensor, bias: Tensor, size: int, resized: int = 0) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)
        self.preprocessing = Preprocessing((0.0,), (1.0,), size, resized)
        self.mean, self.channels = torch.zeros(1), 1
        self.classes = tuple(map(str, range(len(bias))))

    def forward(self, pixels: Tensor) -> Tensor:
        return pixels.flatten(1) @ self.weight.T + self.bias


def grey(pixels: Any, labels: Any = None, name: str = "y") -> ImageSet:
    array = np.asarray(pixels, dtype=np.uint8)
    return ImageSet(array, np.zeros(len(array), np.int64) if labels is None else np.array(labels), ("0", "1"), name)


@pytest.fixture
def loaded(monkeypatch):
    """Makes the options load a classifier and its images."""
    return lambda *both: monkeypatch.setattr(EvaluationOptions, "load", lambda options: both)


def steep() -> tuple[Linear, ImageSet]:
    """Margins of 1000 (x - 1/2) with x the first pixel, of 0.6, 0.9 and 0.502: p is 1 in float32 but for the last."""
    pixels = np.zeros((3, 2, 2))
    pixels[:, 0, 0] = 153, 230, 128
    weight, bias = torch.zeros(2, 4), torch.tensor([-500.0, 0.0])
    weight[0, 0] = 1000
    return Linear(weight, bias, 2), grey(pixels)


def test_a_model_is_as_robust_as_the_stronger_objective_finds_it(loaded):
    """Through the cross-entropy an image whose p is 1 is safe; the batches, of 2 and of 1, differ in that."""
    loaded(*steep())
    figures = attack(AttackOptions(**PLACE, eval_batch_size=2, epsilons=(0.0, 0.2)))
    expected = {"cross-entropy": {"0": 1, "0.2": 2 / 3}, "log-odds": {"0": 1, "0.2": 1 / 3}}
    assert figures["accuracy"].keys() == expected.keys()
    for objective, accuracies in expected.items():
        assert figures["accuracy"][objective] == pytest.approx(accuracies)
    assert figures["robust_accuracy"] == pytest.approx({"0": 1, "0.2": 1 / 3})
    for objective, moved in (("cross-entropy", 1 / 3), ("log-odds", 1)):  # the share of the images that have a gradient
        assert figures["perturbation"][objective] == pytest.approx({"0": 0, "0.2": 0.2 * moved})
    assert (figures["zero_gradient"], figures["probability_is_one"]) == pytest.approx((2 / 3, 2 / 3))


def test_a_random_start_is_that_of_the_image_and_of_the_seed(loaded, monkeypatch):
    loaded(*steep())
    starts, start = [], Attack._start

    def watched(made: Attack, images: Tensor, numbers: Any, epoch: int) -> Tensor | None:
        starts.append((made.seed, list(numbers), epoch))
        return start(made, images, numbers, epoch)

    monkeypatch.setattr(Attack, "_start", watched)
    objective = {"objectives": ("log-odds",), "epsilons": (0.1,)}
    attack(AttackOptions(**PLACE, attack="pgd", attack_steps=1, seed=3, eval_batch_size=2, **objective))
    assert starts == [(3, [0, 1], 0), (3, [2], 0)]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"attack": "fgsm"}, Attack("fgsm", "cross-entropy")),
        (
            {"attack": "pgd", "attack_steps": 7, "attack_step_size": 0.01, "random_start": False, "seed": 3},
            Attack("pgd", "cross-entropy", 7, 0.01, False, 3),
        ),
        ({"attack": "pgd-l2", "attack_steps": 7}, Attack("pgd-l2", "cross-entropy", 7)),
    ],
)
def test_an_attack_is_that_of_its_options(options, expected):
    assert AttackOptions(**PLACE, **options).make("cross-entropy") == expected


@pytest.mark.parametrize("name", ["fgsm", "pgd", "pgd-l2"])
def test_the_radii_are_the_published_ones_of_the_attack(name):
    euclidean = (0, 0.3, 1, 3, 10, 30, 100)
    expected = euclidean if name == "pgd-l2" else (0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3)
    assert AttackOptions(**PLACE, attack=name).epsilons == expected
    assert AttackOptions(**PLACE, attack=name, epsilons=expected[:2]).epsilons == expected[:2]


def test_an_objective_has_its_published_name():
    assert AttackOptions(**PLACE, objectives=("ce", "cross-entropy")).objectives == ("cross-entropy",)


def of_others(monkeypatch: pytest.MonkeyPatch, images: ImageSet) -> None:
    monkeypatch.setattr(evaluation, "read_unlabelled", lambda folder, split: images)


@pytest.mark.parametrize("invert", [False, True])
def test_other_images_are_cropped_once_as_those_of_the_test(loaded, monkeypatch, tmp_path, invert):
    draw = np.random.default_rng(0)
    classifier = Linear(torch.from_numpy(draw.normal(size=(3, 16))).float(), torch.zeros(3), size=4, resized=6)
    own, others = (grey(draw.integers(0, 256, (5, 9, 9)), name=name) for name in ("own", "others"))
    loaded(classifier, own)
    of_others(monkeypatch, others)
    told = ood(OodOptions(**PLACE, others=("others",), invert=invert, out=str(tmp_path)))["others"]
    transform = classifier.preprocessing.transform()
    with np.load(tmp_path / "ood.npz") as arrays:
        for name, images, turned in (("test", own, False), ("others", others, invert)):
            pixels = np.stack([transform.test(image) for image in images.images]) / 255
            pixels = 1 - pixels if turned else pixels
            with torch.no_grad():
                expected = classifier(torch.from_numpy(pixels).float()).numpy()
            np.testing.assert_allclose(arrays[name], expected, rtol=1e-4, atol=1e-5)
    assert told["images"] == 5 and told["size"] == [9, 9]
    assert told["mean"] == pytest.approx(pixels.mean()) and 0.3 < told["mean"] < 0.7


class Counted(ImageFiles):
    """Made-up files; counts how often each is decoded, how many decoded images live, and the digests."""

    def __init__(self, count: int) -> None:
        super().__init__([Path(str(number)) for number in range(count)], grey=True)
        self.reads, self.digests, self.most = Counter[int](), 0, 0
        self.decoded: list[weakref.ref] = []

    def __getitem__(self, index: Any) -> Any:
        image = np.full((2, 2), 20 * index, np.uint8)
        self.reads[index] += 1
        self.decoded.append(weakref.ref(image))
        self.most = max(self.most, sum(each() is not None for each in self.decoded))
        return image

    def digest(self) -> str:
        self.digests += 1
        return str(len(self))


def counted(count: int, name: str) -> ImageSet:
    return ImageSet(Counted(count), np.zeros(count, np.int64), ("0", "1"), name)


def test_an_attack_reads_a_set_once_and_holds_one_batch(loaded, monkeypatch):
    """A set of files need not fit into the memory."""
    images, made, most = counted(6, "own"), [], []
    loaded(steep()[0], images)
    read = evaluation.batches_of

    def watched(*asked: Any) -> Iterator[tuple[Tensor, Tensor]]:
        for pixels, labels in read(*asked):
            made.append(weakref.ref(pixels))
            most.append(sum(each() is not None for each in made))
            yield pixels, labels

    monkeypatch.setattr(evaluation, "batches_of", watched)
    attack(AttackOptions(**PLACE, eval_batch_size=1, epsilons=(0.0, 0.1, 0.2)))
    assert all(images.images.reads[number] == 1 for number in range(1, 6)) and images.images.digests == 1
    assert len(made) == 6 and max(most) <= 2


def test_other_images_are_read_once_and_batch_by_batch(loaded, monkeypatch):
    own, sets = counted(6, "own"), {name: counted(7 + len(name), name) for name in ("a", "bb")}
    loaded(steep()[0], own)
    monkeypatch.setattr(evaluation, "read_unlabelled", lambda folder, split: sets[folder])
    told = ood(OodOptions(**PLACE, others=("a", "bb"), eval_batch_size=2))
    for images in (own, *sets.values()):
        files = images.images
        assert all(files.reads[number] == 1 for number in range(1, len(files)))
        assert files.digests == 1 and files.most <= 3
    assert told["a"]["mean"] == pytest.approx(70 / 255)


@pytest.mark.parametrize(("temperature", "auroc"), [(1.0, 0.0), (0.1, 1.0)])
def test_energies_have_the_temperature_that_is_asked_for(loaded, monkeypatch, temperature, auroc):
    """Logits of 2 and 0 inside, of 1.5 and 1.5 outside: log(e² + 1) = 2.13 < 2.19 = 1.5 + log 2."""
    weight = torch.tensor([[2.0, 0, 0, 1.5], [0.0, 0, 0, 1.5]])
    loaded(Linear(weight, torch.zeros(2), 2), grey([[[255, 0], [0, 0]]]))
    of_others(monkeypatch, grey([[[0, 0], [0, 255]]]))
    scores = ("msp", "energy", "max-logit", "margin")
    told = ood(OodOptions(**PLACE, others=("z",), scores=scores, temperature=temperature))["z"]
    assert {score: told[score]["auroc"] for score in scores} == {
        "msp": 1, "energy": auroc, "max-logit": 1, "margin": 1,
    }  # fmt: skip
