"""One training step: the images of a batch (attacked in adversarial training), the loss, and the optimiser."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from fairseq_ext.training.errors import OptionError, first_line
from fairseq_ext.training.modes import evaluating
from vision_language.image_classification.attacks import Attack
from vision_language.image_classification.data import Batches, pixels_on
from vision_language.image_classification.image_set import ImageSet
from vision_language.image_classification.model import ImageClassifier
from vision_language.image_classification.objective import Objective
from vision_language.image_classification.options import Options
from vision_language.image_classification.transforms import Transform

__all__ = ["TrainingBatches", "TrainingStep", "lr_factor"]


class TrainingStep:
    """Each call trains a classifier by one step of the optimiser.

    Args:
        classifier: on the accelerator's device.
        images: training images, with the classifier's channels.
        options: options of the training.
        accelerator: devices, processes and number format; each process has its share of a batch.

    Raises:
        OptionError: ``--batch-size`` leaves a process with fewer than two images.
    """

    def __init__(
        self, classifier: ImageClassifier, images: ImageSet, options: Options, accelerator: Accelerator
    ) -> None:
        self.classifier, self.images, self.options, self.accelerator = classifier, images, options, accelerator
        transform = classifier.preprocessing.transform(options.augment)
        self.batches = TrainingBatches(images, transform, options, accelerator)
        scale = getattr(classifier.last_linear(), "scale", 1.0)
        self.objective = Objective(options, images.counts, options.epochs, scale)
        learned = [parameter for parameter in classifier.parameters() if parameter.requires_grad]
        self.optimizer = accelerator.prepare_optimizer(_optimizer(options, learned))
        self.schedule = LambdaLR(self.optimizer.optimizer, lambda step: lr_factor(options, self.epoch(step + 1)))
        self.parallel = accelerator.prepare_model(classifier)
        self.attack = _attack(options)

    def epoch(self, number: int) -> int:
        """The epoch of step ``number``, both counted from 1."""
        return (number - 1) // self.batches.per_epoch + 1

    def __call__(self, number: int) -> dict[str, Tensor | float]:
        """Do step ``number``, counted from 1; returns its ``train_loss`` on this process and its ``lr``."""
        rate = self.optimizer.param_groups[0]["lr"]  # read now: the schedule then goes on to the next step
        batch, pixels, labels = self.batches(number)
        loss = self._loss(batch, pixels, labels, self.epoch(number))
        self.optimizer.zero_grad()
        self.accelerator.backward(loss)
        self.optimizer.step()
        self.schedule.step()
        return {"train_loss": loss, "lr": rate}

    def _loss(self, batch: np.ndarray, pixels: Tensor, labels: Tensor, epoch: int) -> Tensor:
        """This process's share of the mean loss of ``batch``, the numbers of the images of all processes together."""
        device, world = self.accelerator.device, self.accelerator.num_processes
        labels = labels.to(device)
        if self.attack:
            own = batch[self.accelerator.process_index :: world]
            pixels = self.attack(self.classifier, pixels, labels, self.options.epsilon, own, epoch)
        self.classifier.train()
        # Gradients are averaged over the processes, whose shares of a batch may differ.
        share = len(labels) * world / len(batch)
        whole = torch.from_numpy(self.images.labels[batch]).to(device) if world > 1 else None
        return share * self.objective(self.parallel(pixels, labels), labels, epoch, whole)

    def prove(self) -> None:
        """Refuse images of a size that the network cannot take, and a network that does not give a logit per class.

        Raises:
            OptionError: names ``--image-size`` or ``--network``.
        """
        pixels = self.batches.first_and_last()
        try:
            with evaluating(self.classifier), torch.no_grad():
                logits = self.classifier(pixels)
        except (RuntimeError, ValueError) as error:
            size = " x ".join(map(str, pixels.shape[1:]))
            reason = f"the network cannot take images of {size}: {first_line(error)}"
            raise OptionError(f"--image-size: {reason}") from error
        classes = len(self.images.classes)
        if logits.shape != (2, classes):
            raise OptionError(f"--network: gives {tuple(logits.shape)} for 2 images of {classes} classes")


class TrainingBatches:
    """The batches of all epochs, each with this process's share of its images.

    Seed and epoch alone decide the order and the augmentation of an epoch.

    Args:
        images: training images.
        transform: what each image goes through.
        options: options of the training.
        accelerator: the processes that share a batch, and the device that gets the pixels.

    Raises:
        OptionError: several processes, and a batch has fewer than two images for each.
    """

    def __init__(self, images: ImageSet, transform: Transform, options: Options, accelerator: Accelerator) -> None:
        self.images, self.transform, self.options = images, transform, options
        self.rank, self.world = accelerator.process_index, accelerator.num_processes
        self.device = accelerator.device
        self.per_epoch = len(_batches(np.arange(len(images)), options.batch_size, self.world))
        self._left: Iterator[Any] | None = None

    def __call__(self, number: int) -> tuple[np.ndarray, Tensor, Tensor]:
        """The batch of step ``number``: the numbers of all its images, and the pixels and labels of this process's.

        Steps are counted from 1; the first call may ask for any step, and each later call for the next one.
        """
        epoch, position = divmod(number - 1, self.per_epoch)
        if self._left is None or position == 0:
            rest = _batches(_order(self.options, self.images, epoch), self.options.batch_size, self.world)[position:]
            shares = [batch[self.rank :: self.world] for batch in rest]
            view = Batches(self.images, self.transform, shares, augmented=(self.options.seed, epoch))
            self._left = zip(rest, DataLoader(view, batch_size=None, num_workers=self.options.workers), strict=True)
        batch, (pixels, labels) = next(self._left)
        return batch, pixels_on(self.device, pixels), labels

    def first_and_last(self) -> Tensor:
        """The pixels of two images, without augmentation."""
        pixels, _ = Batches(self.images, self.transform, [np.array([0, len(self.images) - 1])])[0]
        return pixels_on(self.device, pixels)


def lr_factor(options: Options, epoch: int) -> float:
    """The factor by which ``--lr`` is multiplied in epoch e, counted from 1.

    With E epochs ``cosine`` is ``(1 + cos(pi (e - 1) / E)) / 2``. The paper's code for long tails steps its schedule
    before each epoch, which makes it ``(1 + cos(pi e / E)) / 2``: ``cosine-released``.
    """
    if epoch <= options.warmup_epochs:
        return epoch / options.warmup_epochs
    if options.lr_schedule.startswith("cosine"):
        ahead = options.lr_schedule == "cosine-released"
        return (1 + math.cos(math.pi * (epoch - 1 + ahead) / options.epochs)) / 2
    return options.lr_factor ** sum(first <= epoch for first in options.lr_steps)


def _optimizer(options: Options, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    if options.optimizer == "adam":
        return torch.optim.Adam(parameters, options.lr, weight_decay=options.weight_decay)
    return torch.optim.SGD(
        parameters, options.lr, options.momentum, weight_decay=options.weight_decay, nesterov=options.nesterov
    )


def _attack(options: Options) -> Attack | None:
    """The attack of adversarial training; it raises the cross-entropy whatever the loss, as published."""
    if not options.attack:
        return None
    steps: dict[str, Any] = {"steps": options.attack_steps, "step_size": options.attack_step_size}
    return Attack(options.attack, "cross-entropy", **({} if options.attack == "fgsm" else steps), seed=options.seed)


def _order(options: Options, images: ImageSet, epoch: int) -> np.ndarray:
    """The numbers of an epoch's images in their order; with ``--freeze`` every class is drawn equally often."""
    generator = np.random.default_rng([options.seed, epoch])
    if options.freeze:
        of_class = [np.flatnonzero(images.labels == label) for label in range(len(images.classes))]
        drawn = generator.permuted(np.arange(len(images)) % len(of_class))
        return np.array([generator.choice(of_class[label]) for label in drawn])
    return generator.permutation(len(images)) if options.shuffle else np.arange(len(images))


def _batches(order: np.ndarray, size: int, processes: int) -> list[np.ndarray]:
    """The batches of an order of images; batch norm cannot learn from one image.

    A last batch with fewer than two images for each process therefore joins the one before.

    Raises:
        OptionError: several processes, and a batch has fewer than two images for each.
    """
    if processes > 1 and min(size, len(order)) < 2 * processes:
        raise OptionError(
            f"--batch-size must be at least {2 * processes}, two images for each of the {processes} processes, "
            f"got {min(size, len(order))}"
        )
    batches = [order[i : i + size] for i in range(0, len(order), size)]
    if len(batches) > 1 and len(batches[-1]) < 2 * processes:
        batches[-2:] = [np.concatenate(batches[-2:])]
    return batches
