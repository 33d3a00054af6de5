"""Training of one network on one set of images, and all runs of an experiment."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from fairseq_ext.training.accelerator import make_accelerator, share_buffers
from fairseq_ext.training.board import log_test
from fairseq_ext.training.checkpoint import BestWeights
from fairseq_ext.training.errors import OptionError
from fairseq_ext.training.loop import Training, seed_of
from fairseq_ext.training.options import check_seeds
from fairseq_ext.training.pretrained import fingerprint
from fairseq_ext.training.runs import Experiment, run_name
from fairseq_ext.training.settings import Settings
from vision_language.image_classification.data import in_channels, mean_and_std, read_data
from vision_language.image_classification.gradients import binned_gradients, gradient_norms, mean_gradients
from vision_language.image_classification.image_set import ImageSet
from vision_language.image_classification.long_tail import is_long_tailed
from vision_language.image_classification.model import ImageClassifier, build, load
from vision_language.image_classification.options import NETWORKS, Options
from vision_language.image_classification.predict import classification_metrics, predict_logits, short_metrics
from vision_language.image_classification.preprocessing import Preprocessing
from vision_language.image_classification.training_step import TrainingStep

__all__ = ["run", "train"]

PACKAGES = ("transformers", "accelerate", "pillow")


def run(options: Options, out: str | Path, runs: int = 1, device: str = "auto") -> Experiment:
    """Train with every seed that ``out`` does not hold yet.

    Args:
        options: everything that a run depends on; ``seed`` is the first one.
        out: folder that gets ``results.json``, and a folder for each seed with its model.
        runs: number of seeds. Default 1.
        device: as ``--device``. Default ``"auto"``.

    Raises:
        InputError: options, data or models that cannot be used.
    """
    check_seeds(options.seed, runs)
    accelerator = _accelerator(options, device)
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
    """Train, test the last epoch and the epoch that ``--select-on`` picks, and save the model of the latter.

    Args:
        options: everything that the run depends on.
        splits: as :func:`~vision_language.image_classification.data.read_data` gives them.
        folder: gets checkpoint and model; a training that was killed is resumed, to the bit on a CPU.
        settings: what the checkpoint is stamped with; a checkpoint with other settings is refused.
        accelerator: devices and processes. Default: one made from ``options``.

    Returns:
        The classifier, and a record: ``test_accuracy`` and the other metrics of the selected epoch,
        ``last_test_accuracy`` and ``last_test_nll``, and the history.

    Raises:
        OptionError: images that the network cannot take; a loss that is not finite.
        CheckpointError: a checkpoint that is damaged or cannot be written.
    """
    accelerator = accelerator or _accelerator(options)
    torch.manual_seed(seed_of(options.seed))
    classifier = _classifier(options, splits["train"]).to(accelerator.device)
    classifier.preprocessing = classifier.preprocessing.after(options.augment)
    classifier.model.config.train_counts = splits["train"].counts
    images = in_channels(splits["train"], classifier.channels)
    step, best = TrainingStep(classifier, images, options, accelerator), BestWeights(classifier)
    split = "test" if options.select_on == "test" else "valid" if "valid" in splits else None
    step.prove()
    per_epoch = step.batches.per_epoch
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
            "optimizer": step.optimizer,
            "schedule": step.schedule,
            "scaler": accelerator.scaler,
            "best": best,
        },
        accelerator=accelerator,
        name=folder.name,
        advice=f"lower --lr {options.lr:g}",
    )
    for number in training:
        training.log(**step(number))
        if split and training.validates:
            improved = training.improved(_validated(step, splits[split], step.epoch(number)))
            if improved and options.select_on != "last":
                best.keep()

    selected, record = _tested(step, splits["test"], best)
    if accelerator.is_main_process:
        classifier.save(folder)
    log_test(selected, training.step if options.select_on == "last" else training.best_step)
    record |= {
        "selected_on": options.select_on,
        "validated_on": split,
        "train_images": len(images),
        "train_counts": images.counts,
        "steps_per_epoch": per_epoch,
    }
    return classifier, record | training.record()


def _logits(step: TrainingStep, images: ImageSet) -> Tensor:
    """Logits of the images with the present weights."""
    share_buffers(step.classifier, step.accelerator)
    reading: dict[str, Any] = {"workers": step.options.workers, "accelerator": step.accelerator}
    return predict_logits(step.classifier, images, step.options.eval_batch_size, **reading)


def _validated(step: TrainingStep, images: ImageSet, epoch: int) -> dict[str, Any]:
    """The validation metrics after an epoch, counted from 1."""
    gold, scores = torch.from_numpy(images.labels), _logits(step, images)
    pull = mean_gradients(gradient_norms(step.objective, scores, gold, epoch, step.classifier.last_linear()))
    return {"epoch": epoch, **short_metrics(scores, gold), **pull}


def _tested(step: TrainingStep, images: ImageSet, best: BestWeights) -> tuple[dict[str, Any], dict[str, Any]]:
    """The metrics of the selected epoch, and the record of the selected and the last epoch.

    The classifier has the weights of the selected epoch afterwards.
    """
    options = step.options
    tail = options.long_tail or is_long_tailed(step.images.counts)
    gold, counts = torch.from_numpy(images.labels), step.images.counts if tail else None
    scores = _logits(step, images)
    last = classification_metrics(scores, gold, counts)
    norms = gradient_norms(step.objective, scores, gold, options.epochs, step.classifier.last_linear())
    best.restore()
    selected = last if options.select_on == "last" else classification_metrics(_logits(step, images), gold, counts)
    record = {f"test_{name}": value for name, value in selected.items()}
    record |= {f"last_test_{name}": last[name] for name in ("accuracy", "nll")}
    return selected, record | {"test_gradients": binned_gradients(norms, scores, gold)}


def _accelerator(options: Options, device: str = "auto") -> Accelerator:
    """The accelerator of a training; a network from elsewhere may have unused weights, such as Dinov2's mask token."""
    elsewhere = bool(options.init) or options.network not in NETWORKS
    return make_accelerator(options.mixed_precision, device, unused_parameters=elsewhere)


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
