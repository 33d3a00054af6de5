"""Training of one network on one set of images, and all runs of an experiment."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from fairseq_ext.training.accelerator import make_accelerator, share_buffers
from fairseq_ext.training.board import log_test
from fairseq_ext.training.checkpoint import BestWeights
from fairseq_ext.training.errors import OptionError, first_line
from fairseq_ext.training.loop import Training, seed_of
from fairseq_ext.training.modes import evaluating
from fairseq_ext.training.pretrained import fingerprint
from fairseq_ext.training.runs import Experiment, run_name
from fairseq_ext.training.settings import Settings
from vision_language.image_classification.attacks import Attack
from vision_language.image_classification.data import Batches, in_channels, mean_and_std, read_data
from vision_language.image_classification.gradients import binned_gradients, gradient_norms, mean_gradients
from vision_language.image_classification.image_set import ImageSet
from vision_language.image_classification.model import ImageClassifier, build, load
from vision_language.image_classification.objective import Objective
from vision_language.image_classification.options import Options
from vision_language.image_classification.predict import classification_metrics, predict_logits, short_metrics
from vision_language.image_classification.preprocessing import Preprocessing
from vision_language.image_classification.transforms import Transform

__all__ = ["run", "train"]

PACKAGES = ("transformers", "accelerate", "pillow")


def run(options: Options, out: str | Path, runs: int = 1, device: str = "auto") -> Experiment:
    """Train with every seed that ``out`` does not hold yet.

    Args:
        options: everything that a run depends on; ``seed`` is the first one.
        out: gets ``results.json``, and the model of each seed in a folder of its name.
        runs: how many seeds.
        device: as ``--device``.

    Raises:
        InputError: options, data or models that cannot be used.
    """
    accelerator = make_accelerator(options.mixed_precision, device)
    splits = read_data(options)
    if options.select_on == "valid" and "valid" not in splits:
        raise OptionError("--select-on valid: there are no validation images, with --valid-fraction 0")
    inputs = {split: images.digest() for split, images in splits.items()}
    for name in ("network", "init"):
        if Path(getattr(options, name) or "-").is_dir():
            inputs[name] = fingerprint(getattr(options, name))
    own = ("seed",)  # of each run
    experiment = Experiment(
        out, Settings.of(options, inputs=inputs, leave_out=own), PACKAGES, device=accelerator.device
    )

    def one(seed: int) -> dict[str, Any]:
        folder, settings = (
            Path(out) / run_name(seed=seed),
            Settings.of(options, inputs=inputs, leave_out=own, run=seed),
        )
        _, record = train(replace(options, seed=seed), splits, folder, settings, accelerator)
        return record

    seeds = range(options.seed, options.seed + runs)
    return experiment.complete({run_name(seed=seed): partial(one, seed) for seed in seeds}, accelerator)


def train(
    options: Options,
    splits: dict[str, ImageSet],
    folder: Path,
    settings: Settings,
    accelerator: Accelerator | None = None,
) -> tuple[ImageClassifier, dict[str, Any]]:
    """Train, test the last epoch and the one that ``--select-on`` picks, and save the latter.

    Args:
        options: everything that the run depends on.
        splits: of :func:`~vision_language.image_classification.data.read_data`.
        folder: of checkpoint and model; a training that was killed is resumed, to the bit on a CPU.
        settings: a checkpoint of others is refused.
        accelerator: devices and processes.

    Returns:
        The classifier, and ``test_accuracy`` and the other figures of the selected epoch, ``last_test_accuracy``, and
        the history.

    Raises:
        OptionError: images that the network cannot take; a loss that is not finite.
        CheckpointError: a checkpoint that is damaged or cannot be written.
    """
    accelerator = accelerator or make_accelerator(options.mixed_precision)
    torch.manual_seed(seed_of(options.seed))
    classifier = _classifier(options, splits["train"]).to(accelerator.device)
    classifier.preprocessing = classifier.preprocessing.after(options.augment)
    images = in_channels(splits["train"], classifier.channels)
    transform = classifier.preprocessing.transform(options.augment)
    objective = Objective(options, images.counts, options.epochs, getattr(classifier.last_linear(), "scale", 1.0))
    rank, world = accelerator.process_index, accelerator.num_processes
    per_epoch = len(_batches(np.arange(len(images)), options.batch_size, world))
    learned = [parameter for parameter in classifier.parameters() if parameter.requires_grad]
    optimizer = accelerator.prepare_optimizer(_optimizer(options, learned))
    schedule = LambdaLR(optimizer.optimizer, lambda step: lr_factor(options, step // per_epoch + 1))
    parallel, best = accelerator.prepare_model(classifier), BestWeights(classifier)
    attack = _attack(options)
    reading: dict[str, Any] = {"workers": options.workers, "accelerator": accelerator}
    split = "test" if options.select_on == "test" else "valid" if "valid" in splits else None

    def step(pixels: Tensor, labels: Tensor, epoch: int, batch: np.ndarray) -> Tensor:
        pixels, labels = pixels.to(accelerator.device), labels.to(accelerator.device)
        if attack:
            pixels = attack(classifier, pixels, labels, options.epsilon, batch[rank::world], epoch)
        classifier.train()
        # Gradients are averaged over the processes, whose shares of a batch may differ.
        share = len(labels) * world / len(batch)
        whole = torch.from_numpy(images.labels[batch]).to(labels.device) if world > 1 else None
        loss = share * objective(parallel(pixels, labels), labels, epoch, whole)
        optimizer.zero_grad()
        accelerator.backward(loss)
        optimizer.step()
        schedule.step()
        return loss

    def logits(split: str) -> Tensor:
        share_buffers(classifier, accelerator)
        return predict_logits(classifier, splits[split], options.eval_batch_size, **reading)

    shape = _prove(classifier, images, transform, accelerator)
    if attack:
        try:
            attack.check_radius(options.epsilon, shape)
        except ValueError as error:
            raise OptionError(f"--epsilon: {error}") from error
    training = Training(
        per_epoch * options.epochs,
        select="accuracy",
        validate_every=per_epoch if split else 0,
        save_every=per_epoch,
        seed=options.seed,
        folder=folder,
        settings=settings,
        parts={
            "model": classifier,
            "optimizer": optimizer,
            "schedule": schedule,
            "scaler": accelerator.scaler,
            "best": best,
        },
        accelerator=accelerator,
        name=folder.name,
        advice=f"lower --lr {options.lr:g}",
    )
    loader = None
    for number in training:
        epoch, position = divmod(number - 1, per_epoch)
        if loader is None or position == 0:
            order = _order(options, images, epoch)
            rest = _batches(order, options.batch_size, world)[position:]
            shares = [batch[rank::world] for batch in rest]
            view = Batches(images, transform, shares, augmented=(options.seed, epoch))
            loader = zip(rest, DataLoader(view, batch_size=None, num_workers=options.workers), strict=True)
        batch, (pixels, labels) = next(loader)
        lr = optimizer.param_groups[0]["lr"]  # of this step; behind it the schedule is at the next
        training.log(train_loss=step(pixels, labels, epoch + 1, batch), lr=lr)
        if split and training.validates:
            gold, scores = torch.from_numpy(splits[split].labels), logits(split)
            pull = mean_gradients(gradient_norms(objective, scores, gold, epoch + 1, classifier.last_linear()))
            improved = training.improved({"epoch": epoch + 1, **short_metrics(scores, gold), **pull})
            if improved and options.select_on != "last":
                best.keep()

    gold, counts = torch.from_numpy(splits["test"].labels), images.counts if options.long_tail else None
    scores = logits("test")
    last = classification_metrics(scores, gold, counts)
    norms = gradient_norms(objective, scores, gold, options.epochs, classifier.last_linear())
    best.restore()
    selected = last if options.select_on == "last" else classification_metrics(logits("test"), gold, counts)
    if accelerator.is_main_process:
        classifier.save(folder)
    record = {f"test_{name}": value for name, value in selected.items()} | {
        f"last_test_{name}": last[name] for name in ("accuracy", "nll")
    }
    log_test(selected, training.step if options.select_on == "last" else training.best_step)
    record |= {
        "test_gradients": binned_gradients(norms, scores, gold),
        "selected_on": options.select_on,
        "validated_on": split,
        "train_images": len(images),
        "train_counts": images.counts,
    }
    return classifier, record | {"steps_per_epoch": per_epoch} | training.record()


def _classifier(options: Options, images: ImageSet) -> ImageClassifier:
    if options.init:
        classifier = load(options.init)
        if classifier.classes != images.classes:
            raise OptionError(
                f"--init: {options.init} has {len(classifier.classes)} classes, not those of --data in their order"
            )
        if options.freeze:
            for parameter in classifier.parameters():
                parameter.requires_grad_(False)
            layer = classifier.last_linear().requires_grad_(True)
            layer.reset_parameters()
        return classifier
    side = options.image_size or max(images.images[0].shape[:2])
    mean, std = mean_and_std(images) if options.normalize else ([0.0] * images.channels, [1.0] * images.channels)
    return build(options, images.classes, Preprocessing(tuple(mean), tuple(std), side))


def _optimizer(options: Options, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    if options.optimizer == "adam":
        return torch.optim.Adam(parameters, options.lr, weight_decay=options.weight_decay)
    return torch.optim.SGD(
        parameters, options.lr, options.momentum, weight_decay=options.weight_decay, nesterov=options.nesterov
    )


def lr_factor(options: Options, epoch: int) -> float:
    """What ``--lr`` is multiplied by in an epoch, counted from 1."""
    if epoch <= options.warmup_epochs:
        return epoch / options.warmup_epochs
    if options.lr_schedule == "cosine":
        return (1 + math.cos(math.pi * (epoch - 1) / options.epochs)) / 2
    return options.lr_factor ** sum(first <= epoch for first in options.lr_steps)


def _attack(options: Options) -> Attack | None:
    """That of adversarial training, which raises the cross-entropy whatever the loss, as published."""
    if not options.attack:
        return None
    steps: dict[str, Any] = {"steps": options.attack_steps, "step_size": options.attack_step_size}
    return Attack(options.attack, "cross-entropy", **({} if options.attack == "fgsm" else steps), seed=options.seed)


def _order(options: Options, images: ImageSet, epoch: int) -> np.ndarray:
    """The numbers of an epoch's images; with ``--freeze`` every class is drawn equally often."""
    generator = np.random.default_rng([options.seed, epoch])
    if options.freeze:
        of_class = [np.flatnonzero(images.labels == label) for label in range(len(images.classes))]
        drawn = generator.permuted(np.arange(len(images)) % len(of_class))
        return np.array([generator.choice(of_class[label]) for label in drawn])
    return generator.permutation(len(images)) if options.shuffle else np.arange(len(images))


def _batches(order: np.ndarray, size: int, processes: int) -> list[np.ndarray]:
    """A last batch with less than two images for each process joins the one before: batch norm cannot learn from one.

    Raises:
        OptionError: several processes, and less than two images for each in any batch.
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


def _prove(classifier: ImageClassifier, images: ImageSet, transform: Transform, accelerator: Accelerator) -> torch.Size:
    """The shape of an image; images of a size that the network cannot take are refused."""
    pixels, _ = Batches(images, transform, [np.array([0, len(images) - 1])])[0]
    try:
        with evaluating(classifier), torch.no_grad():
            logits = classifier(pixels.to(accelerator.device))
    except (RuntimeError, ValueError) as error:
        size = " x ".join(map(str, pixels.shape[1:]))
        reason = f"the network cannot take images of {size}: {first_line(error)}"
        raise OptionError(f"--image-size: {reason}") from error
    if logits.shape != (2, len(images.classes)):
        raise OptionError(f"--network: gives {tuple(logits.shape)} for 2 images of {len(images.classes)} classes")
    return pixels.shape[1:]
