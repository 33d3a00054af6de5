"""A trained classifier on a test set, on images of another kind, and under attack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fairseq_ext.training.arrays import write_npz
from fairseq_ext.training.errors import OptionError, choose
from fairseq_ext.training.files import write_json, writing_to
from fairseq_ext.training.flags import Device
from fairseq_ext.training.options import SPLITS, option, seed_option
from fairseq_ext.training.progress import progress
from fairseq_ext.training.runs import environment, torch_device
from fairseq_ext.training.settings import digest
from vision_language.image_classification.attacks import ATTACKS, OBJECTIVES, Attack, vanishing_gradients
from vision_language.image_classification.detection import detection_metrics
from vision_language.image_classification.image_files import read_split, read_unlabelled
from vision_language.image_classification.image_set import ImageSet
from vision_language.image_classification.model import ImageClassifier, load
from vision_language.image_classification.predict import (
    batches_of,
    classification_metrics,
    finite_logits,
    predict_logits,
)
from vision_language.image_classification.scores import OOD_SCORES, ood_scores
from vision_language.image_classification.transforms import AUGMENTATIONS, Transform

__all__ = ["RADII", "AttackOptions", "EvaluationOptions", "OodOptions", "attack", "evaluate", "ood"]


RESERVED = ("test", "model", "data", "options", "inputs", "environment", "file", "allow_pickle", "", "..")
"""Names that a folder of ``--others`` must not have: ``ood`` names its results by folder, and uses these itself."""

ALSO_CALLED = {"ce": "cross-entropy"}
"""Other names of objectives."""

RADII = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3)
"""Radii of the paper's attacks, in pixels from 0 to 1."""
PUBLISHED_RADII = {"fgsm": RADII, "pgd": RADII, "pgd-l2": (0.0, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)}


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions(Device):
    """The model and the images."""

    model: str = option(help="folder of a trained classifier, such as runs/images/seed1")
    data: str = option(help="folder of images, as of the training")
    split: str = option("test", "split of the images", SPLITS)
    crop: str = option(
        "",
        f"--augment of the training, which decides how images are cropped: {', '.join(AUGMENTATIONS)} (default: as the "
        "model's folder says)",
    )
    eval_batch_size: int = option(512, "images of a forward pass", least=1, aliases=("batch_size",))
    limit: int = option(0, "images of each set that are used, the first; 0: all", least=0)
    out: str = option("", "folder of the results as JSON, and of scores and logits as .npz (default: none)")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.crop:
            choose("--crop", self.crop, AUGMENTATIONS)

    def load(self) -> tuple[ImageClassifier, ImageSet]:
        """The classifier and the images, with labels that are its class numbers.

        Raises:
            OptionError: the images have other classes than the model, or no such split.
        """
        classifier, images = load(self.model).to(torch_device(self.device)), read_split(self.data, self.split)
        if images is None:
            raise OptionError(f"--split {self.split}: {self.data} has none")
        if self.crop:
            classifier.preprocessing = classifier.preprocessing.after(self.crop)
        return classifier, self.first(images.named_as(classifier.classes, self.model))

    def first(self, images: ImageSet) -> ImageSet:
        """The first ``limit`` images; all of them where ``limit`` is 0."""
        return images.subset(np.arange(min(self.limit, len(images)))) if self.limit else images


@dataclass(frozen=True, kw_only=True)
class OodOptions(EvaluationOptions):
    """The other images."""

    others: tuple[str, ...] = option(help="folders of images of other kinds: in any form of --data, or of images")
    scores: tuple[str, ...] = option(tuple(OOD_SCORES), f"scores that images are ranked by: {', '.join(OOD_SCORES)}")
    temperature: float = option(1.0, "softmax temperature of --scores msp and energy", above=0)
    invert: bool = option(False, "turn the other images round: they are dark on bright")

    def __post_init__(self) -> None:
        super().__post_init__()
        for score in self.scores:
            choose("--scores", score, OOD_SCORES)
        names = [Path(other).name for other in self.others]
        for other, name in zip(self.others, names, strict=True):
            if name in RESERVED:
                raise OptionError(f"--others: {other}: results are called by the folder; {name!r} names something else")
            if names.count(name) > 1:
                raise OptionError(f"--others: two folders are called {name}")
        if not {"msp", "energy"} & set(self.scores):
            self.refuse_idle("without --scores msp or energy", "temperature")


@dataclass(frozen=True, kw_only=True)
class AttackOptions(EvaluationOptions):
    """The attack."""

    attack: str = option("fgsm", "attack on the images", tuple(ATTACKS))
    objectives: tuple[str, ...] = option(
        tuple(OBJECTIVES),
        f"losses that the attack raises: {', '.join(OBJECTIVES)} (or ce); the paper's is cross-entropy, see README",
        aliases=("attack_loss",),
    )
    epsilons: tuple[float, ...] = option(
        (),
        f"radii in pixels from 0 to 1 (default, as the paper: {' '.join(f'{e:g}' for e in RADII)}; Euclidean of "
        f"pgd-l2: {' '.join(f'{e:g}' for e in PUBLISHED_RADII['pgd-l2'])})",
    )
    attack_steps: int = option(
        40, "steps of --attack pgd and pgd-l2 (released: 40)", least=1, idle={"attack": ("fgsm",)}
    )
    attack_step_size: float = option(
        0.0, "step size of --attack pgd and pgd-l2; 0: 2/255 and 0.2 (released)", least=0, idle={"attack": ("fgsm",)}
    )
    random_start: bool = option(
        True, "begin --attack pgd at a random point of the ball", idle={"attack": ("fgsm", "pgd-l2")}
    )
    seed: int = seed_option(0, "seed of the random start", idle={"attack": ("fgsm", "pgd-l2")})

    def __post_init__(self) -> None:
        super().__post_init__()
        named = (ALSO_CALLED.get(objective, objective) for objective in self.objectives)
        objectives = tuple(choose("--objectives", objective, OBJECTIVES) for objective in dict.fromkeys(named))
        epsilons = self.epsilons or PUBLISHED_RADII[self.attack]
        euclidean = self.attack == "pgd-l2"
        if bad := [each for each in epsilons if each < 0 or (each > 1 and not euclidean)]:
            allowed = "at least 0" if euclidean else "in [0, 1], in pixels from 0 to 1"
            raise OptionError(f"--epsilons must be {allowed}, got {bad[0]:g}")
        for name, values in (("objectives", objectives), ("epsilons", epsilons)):
            object.__setattr__(self, name, values)  # the class is frozen

    def make(self, objective: str) -> Attack:
        """The attack that raises one objective."""
        if self.attack == "fgsm":
            return Attack("fgsm", objective)
        start = {"random_start": self.random_start} if self.attack == "pgd" else {}
        return Attack(self.attack, objective, self.attack_steps, self.attack_step_size or None, seed=self.seed, **start)


def evaluate(options: EvaluationOptions) -> dict[str, Any]:
    """Accuracy, loss, calibration and margins of a model; by training images too, where its folder has their number."""
    classifier, images = options.load()
    logits = predict_logits(classifier, images, options.eval_batch_size)
    gold = torch.from_numpy(images.labels)
    result = {"images": len(images), **classification_metrics(logits, gold, classifier.train_counts)}
    arrays = {"logits": logits.numpy(), "labels": images.labels}
    return _kept(options, "evaluation", result, _inputs(classifier, images), arrays)


def ood(options: OodOptions) -> dict[str, Any]:
    """How well a model tells its own kind of images from others."""
    classifier, images = options.load()
    inside = predict_logits(classifier, images, options.eval_batch_size)
    arrays, result, inputs = {"test": inside.numpy()}, {}, _inputs(classifier, images)
    for other in options.others:
        name, unknown = Path(other).name, options.first(read_unlabelled(other, options.split))
        if unknown.pixel_digest == images.pixel_digest:
            raise OptionError(f"--others: {other} holds the images of --data")
        inputs[name] = unknown.pixel_digest
        transform = _OtherTransform(**vars(classifier.preprocessing.transform()), invert=options.invert)
        outside = predict_logits(classifier, unknown, options.eval_batch_size, transform=transform)
        mean, size = float(np.mean(transform.means)), list(unknown.images[0].shape[:2])
        result[name] = {"images": len(unknown), "size": size, "mean": mean}
        arrays[name] = outside.numpy()
        for score in options.scores:
            temperature = options.temperature if score in ("msp", "energy") else 1.0
            values = [ood_scores(logits, score, temperature).numpy() for logits in (inside, outside)]
            result[name][score] = detection_metrics(*values)
    return _kept(options, "ood", result, inputs, arrays)


def attack(options: AttackOptions) -> dict[str, Any]:
    """Accuracy under attack and mean size of the perturbations, by radius, on each objective."""
    classifier, images = options.load()
    attacks = {objective: options.make(objective) for objective in options.objectives}
    radii = {f"{epsilon:g}": epsilon for epsilon in options.epsilons}
    # Numbers of right answers and sums of distances.
    told = {(objective, radius): (0, 0.0) for objective in attacks for radius in radii}
    hidden, first = [], 0
    with progress(total=len(told) * len(images), desc=options.attack, unit=" images") as bar:
        # A set need not fit into the memory, so a batch meets all attacks before the next one is read.
        for pixels, labels in batches_of(classifier, images, options.eval_batch_size):
            labels = labels.to(pixels.device)
            hidden.append(vanishing_gradients(classifier, pixels, labels) | {"n": len(labels)})
            numbers = range(first, first + len(labels))
            for (objective, radius), (correct, distance) in told.items():
                new = _attacked(classifier, attacks[objective], pixels, labels, radii[radius], numbers)
                told[objective, radius] = correct + new[0], distance + new[1]
                bar.update(len(labels))
            first += len(labels)
    accuracy, perturbation = (
        {o: {radius: told[o, radius][part] / first for radius in radii} for o in attacks} for part in (0, 1)
    )
    result: dict[str, Any] = {
        "images": len(images),
        "attack": options.attack,
        **_mean_of(hidden),
        "accuracy": accuracy,
        "perturbation": perturbation,
    }
    result["robust_accuracy"] = {radius: min(row[radius] for row in accuracy.values()) for radius in radii}
    return _kept(options, f"attack_{options.attack}", result, _inputs(classifier, images))


def _attacked(
    classifier: ImageClassifier, made: Attack, pixels: Tensor, labels: Tensor, epsilon: float, numbers: Sequence[int]
) -> tuple[int, float]:
    """How many attacked images of a batch are still told right, and the sum of their distances from the originals."""
    attacked = made(classifier, pixels, labels, epsilon, numbers)
    with torch.no_grad():
        correct = finite_logits(classifier(attacked), "under attack").argmax(1) == labels
    return int(correct.sum()), float(made.distance(pixels, attacked).double().sum())


def _mean_of(batches: Sequence[dict[str, float]]) -> dict[str, float]:
    """The means over all images, from the means over batches of ``n`` images each."""
    total = sum(batch["n"] for batch in batches)
    return {name: sum(b[name] * b["n"] for b in batches) / total for name in batches[0] if name != "n"}


@dataclass(frozen=True)
class _OtherTransform(Transform):
    """The classifier's transform of other images, inverted if ``invert``; keeps their means, to read none twice."""

    invert: bool = False
    means: list[float] = field(default_factory=list)

    def test(self, image: np.ndarray) -> np.ndarray:
        image = super().test(image)
        image = 255 - image if self.invert else image
        self.means.append(float(image.mean() / 255))
        return image


def _inputs(classifier: ImageClassifier, images: ImageSet) -> dict[str, str]:
    """Digests of the model and of the images."""
    return {"model": digest(*classifier.state_dict().values()), "data": images.digest()}


def _kept(
    options: EvaluationOptions,
    name: str,
    result: dict[str, Any],
    inputs: dict[str, str],
    arrays: dict[str, np.ndarray] | None = None,
) -> dict[str, Any]:
    """Write a command's results where ``--out`` names a folder, and return them."""
    result = {"model": options.model, "data": options.data, **result}
    if options.out:
        with writing_to(options.out) as out:
            where = environment("transformers", device=torch_device(options.device))
            made = {key: value for key, value in options.as_dict().items() if key not in ("model", "data", "out")}
            write_json(out / f"{name}.json", {**result, "options": made, "inputs": inputs, "environment": where})
            if arrays:
                write_npz(out / f"{name}.npz", arrays, compress=True)
    return result
