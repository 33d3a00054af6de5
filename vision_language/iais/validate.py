"""Recall and ISD of a split, its captions shared out among the processes."""

from __future__ import annotations

from dataclasses import replace

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from vision_language.iais.data import Collator, RegionData
from vision_language.iais.evaluate import pair_measures, recall_at_k, released_image_recall, score_matrix
from vision_language.iais.model import RegionRetriever

__all__ = ["first_images", "metrics"]


def first_images(data: RegionData, count: int) -> RegionData:
    """The first ``count`` images with their captions; all where it is 0."""
    return RegionData(data.images[:count], data.labels, data.feature_size) if count else data


def _share(data: RegionData, accelerator: Accelerator) -> tuple[Tensor, RegionData]:
    """This process's captions, those of every n-th image: their numbers, and the split without the others."""
    rank, processes = accelerator.process_index, accelerator.num_processes
    images = [
        image if number % processes == rank else replace(image, captions=()) for number, image in enumerate(data.images)
    ]
    numbers = [text for number in range(rank, len(data.images), processes) for text in data.texts_of(number)]
    return torch.tensor(numbers, dtype=torch.long), RegionData(images, data.labels, data.feature_size)


def metrics(
    model: RegionRetriever,
    data: RegionData,
    collator: Collator,
    batch_size: int,
    accelerator: Accelerator,
    released: bool = False,
) -> dict[str, float]:
    """Recalls, mean ranks, and means of :func:`pair_measures` of a split, equal on every process.

    The model is left in the mode it was in.

    Args:
        batch_size: pairs in a forward pass.
        released: add image recall as the released code counts it, as ``released_ir_r1`` and so on.
    """
    numbers, share = _share(data, accelerator)
    with accelerator.autocast():
        rows = score_matrix(model, share, collator, batch_size, progress=False)
        part = (numbers, rows, pair_measures(model, share, collator, batch_size))
    matrix = torch.empty(len(data), len(data.images))
    measures = {name: torch.empty(len(data)) for name in part[2]}
    for texts, scores, values in gather_object([part]):
        matrix[texts] = scores
        for name, value in values.items():
            measures[name][texts] = value
    found = recall_at_k(matrix, data.text_to_image) | {name: value.mean().item() for name, value in measures.items()}
    if released:
        recall = released_image_recall(matrix, data.text_to_image)
        found |= {f"released_{name}": value for name, value in recall.items()}
    return found
