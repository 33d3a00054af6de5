"""Recall and ISD of a split, its captions shared out among the processes."""

from __future__ import annotations

from dataclasses import replace

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from vision_language.iais.data import Collator, RegionData
from vision_language.iais.evaluate import mean_isd, recall_at_k, released_image_recall, score_matrix
from vision_language.iais.model import RegionRetriever

__all__ = ["first_images", "metrics", "scores"]


def first_images(data: RegionData, count: int) -> RegionData:
    """The first ``count`` images with their captions; all where it is 0."""
    return RegionData(data.images[:count], data.labels, data.feature_size) if count else data


def scores(
    model: RegionRetriever, data: RegionData, collator: Collator, batch_size: int, accelerator: Accelerator
) -> Tensor:
    """Every caption with every image, ``(captions, images)``; each process scores the captions of its images."""
    rank, processes = accelerator.process_index, accelerator.num_processes
    images = [
        image if number % processes == rank else replace(image, captions=()) for number, image in enumerate(data.images)
    ]
    numbers = torch.tensor(
        [text for number in range(rank, len(data.images), processes) for text in data.texts_of(number)],
        dtype=torch.long,  # of none too
    )
    share = RegionData(images, data.labels, data.feature_size)
    part = score_matrix(model, share, collator, batch_size, accelerator.device, progress=False)
    found = gather_object([(numbers, part)])
    matrix = torch.empty(len(data.captions), len(data.images))
    for where, rows in found:
        matrix[where] = rows
    return matrix


def metrics(
    model: RegionRetriever,
    data: RegionData,
    collator: Collator,
    batch_size: int,
    accelerator: Accelerator,
    released: bool = False,
) -> dict[str, float]:
    """Recalls, mean ranks and ISD of a split, equal on every process; the model is left in the mode it was in.

    Args:
        batch_size: pairs in a forward pass.
        released: add image recall as the released code counts it, as ``released_ir_r1`` and so on.
    """
    with accelerator.autocast():
        matrix = scores(model, data, collator, batch_size, accelerator)
        found = {**recall_at_k(matrix, data.text_to_image), "isd": mean_isd(model, data, collator, batch_size)}
    if released:
        recall = released_image_recall(matrix, data.text_to_image)
        found |= {f"released_{name}": value for name, value in recall.items()}
    return found
