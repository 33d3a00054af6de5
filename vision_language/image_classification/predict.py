"""Logits of whole sets of images, and the metrics of a classifier that follow from them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate.utils import gather_object
from torch import Tensor
from torch.utils.data import DataLoader

from fairseq_ext.training.errors import CheckpointError
from fairseq_ext.training.modes import evaluating
from fairseq_ext.training.progress import progress
from vision_language.image_classification.data import Batches, in_channels, pixels_on
from vision_language.image_classification.image_set import ImageSet
from vision_language.image_classification.long_tail import group_metrics
from vision_language.image_classification.model import ImageClassifier
from vision_language.image_classification.scores import expected_calibration_error, log_odds, margin
from vision_language.image_classification.transforms import Transform

__all__ = ["QUANTILES", "batches_of", "classification_metrics", "finite_logits", "predict_logits", "short_metrics"]

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def batches_of(
    classifier: ImageClassifier,
    images: ImageSet,
    batch_size: int,
    *,
    transform: Transform | None = None,
    workers: int = 0,
    share: slice = slice(None),
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of test images in file order, as the classifier takes them and on its device, and their labels.

    Args:
        classifier: the images get its size and channels.
        images: the test set.
        batch_size: images of a batch.
        transform: brings the images to one size. Default: as the classifier's preprocessing says.
        workers: processes that read images. Default: 0, the caller's own.
        share: which of the batches are read. Default: all.
    """
    transform = transform or classifier.preprocessing.transform()
    numbers = [np.arange(i, min(i + batch_size, len(images))) for i in range(0, len(images), batch_size)]
    view = Batches(in_channels(images, classifier.channels), transform, numbers[share])
    for pixels, labels in DataLoader(view, batch_size=None, num_workers=workers):
        yield pixels_on(classifier.mean.device, pixels), labels


def predict_logits(
    classifier: ImageClassifier,
    images: ImageSet,
    batch_size: int = 512,
    *,
    transform: Transform | None = None,
    workers: int = 0,
    accelerator: Any | None = None,
) -> Tensor:
    """Logits of every image, ``(N, C)`` in float32 on the CPU.

    Args:
        classifier: evaluated in evaluation mode, and afterwards in its former mode.
        images: the test set.
        batch_size: images of a batch. Default 512.
        transform, workers: as for :func:`batches_of`.
        accelerator: the processes, each of which reads and classifies its share. Default: one process.

    Raises:
        CheckpointError: a logit is not finite.
    """
    rank, world = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    rows: list[tuple[int, Tensor]] = []
    batches = batches_of(
        classifier, images, batch_size, transform=transform, workers=workers, share=slice(rank, None, world)
    )
    bar = progress(total=len(images), desc="logits", unit=" images", leave=False)
    with evaluating(classifier), torch.no_grad(), bar:
        for number, (pixels, _) in enumerate(batches):
            rows.append((number * world + rank, classifier(pixels).float().cpu()))
            bar.update(world * len(pixels))
    if world > 1:
        rows = gather_object(rows)
    return finite_logits(torch.cat([logits for _, logits in sorted(rows, key=lambda row: row[0])]), images.origin)


def finite_logits(logits: Tensor, origin: str) -> Tensor:
    """The logits, after a check that all are finite: an image without finite logits would count as the first class.

    Args:
        logits: ``(N, C)``.
        origin: where the images are from, for messages.

    Raises:
        CheckpointError: a logit is not finite.
    """
    bad = (~logits.isfinite()).any(1)
    if bad.any():
        number = int(bad.nonzero()[0])
        raise CheckpointError(
            f"{origin}: the classifier's logits of {int(bad.sum())} of {len(bad)} images, such as number {number + 1}, "
            "are not finite: its weights are damaged, or its training diverged"
        )
    return logits


def short_metrics(logits: Tensor, labels: Tensor) -> dict[str, Any]:
    """The metrics logged after every epoch: accuracy, loss, margin, and the quantiles of the log-odds of the labels.

    Args:
        logits: ``(N, C)``.
        labels: ``(N)``.
    """
    logits = logits.double()
    quantiles = log_odds(logits, labels).quantile(torch.tensor(QUANTILES, dtype=torch.double))
    return {
        "accuracy": float((logits.argmax(1) == labels).double().mean()),
        "nll": float(F.cross_entropy(logits, labels)),
        "margin": float(margin(logits, labels).mean()),
        "log_odds_quantiles": quantiles.tolist(),
    }


def classification_metrics(logits: Tensor, labels: Tensor, train_counts: list[int] | None = None) -> dict[str, Any]:
    """All metrics that follow from the logits of a test set.

    Args:
        logits: ``(N, C)``.
        labels: ``(N)``.
        train_counts: training images of each class, for the groups of a long tail. Default: no groups.

    Returns:
        Those of :func:`short_metrics`; ``ece`` with 15 bins; ``class_accuracy``, ``balanced_accuracy`` and
        ``macro_f1``. With ``train_counts`` also the others of
        :func:`~vision_language.image_classification.long_tail.group_metrics`.
    """
    groups = group_metrics(labels, logits.argmax(1), train_counts or [1] * logits.size(1))
    if not train_counts:
        groups = {name: groups[name] for name in ("class_accuracy", "balanced_accuracy", "macro_f1")}
    return {**short_metrics(logits, labels), "ece": expected_calibration_error(logits, labels), **groups}
