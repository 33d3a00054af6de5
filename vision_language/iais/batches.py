"""Numbered captions and images as the model's input, and the hardest of an anchor's candidates."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from vision_language.iais.data import Collator, RegionData
from vision_language.iais.model import RegionRetriever
from vision_language.iais.negatives import TEXT, Anchors

__all__ = ["PairBatches", "hardest"]


class PairBatches:
    """Batches of any captions with any images, by their numbers.

    The captions are split into word pieces once: training meets each hundreds of times, most often as a negative.

    Args:
        data: captions and images.
        collator: how they become tensors.
        device: where the tensors go.
    """

    def __init__(self, data: RegionData, collator: Collator, device: str | torch.device = "cpu") -> None:
        self.data, self.collator, self.device = data, collator, device
        texts = collator.texts(data.captions)
        self.input_ids, self.text_lengths = texts["input_ids"].int(), texts["attention_mask"].sum(1).numpy()
        self.region_counts = np.array([len(image.geometry) for image in data.images])

    def texts(self, numbers: Sequence[int] | np.ndarray) -> dict[str, Tensor]:
        """``input_ids`` and ``attention_mask`` ``(B, T)``."""
        index = torch.tensor(np.asarray(numbers))
        lengths = torch.from_numpy(self.text_lengths)[index]
        width = int(lengths.max())
        mask = torch.arange(width) < lengths[:, None]
        return self._moved({"input_ids": self.input_ids[index, :width].long(), "attention_mask": mask})

    def regions(self, numbers: Sequence[int] | np.ndarray) -> dict[str, Tensor]:
        """``region_boxes (B, V, 7)``, ``region_mask (B, V)``, and ``region_features`` or ``region_labels``."""
        return self._moved(self.collator.regions([self.data.images[number] for number in numbers]))

    def pairs(self, texts: np.ndarray, images: np.ndarray) -> dict[str, Tensor]:
        """Caption k with image k."""
        return {**self.texts(texts), **self.regions(images)}

    def _moved(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: value.to(self.device, non_blocking=True) for name, value in batch.items()}

    def by_length(self, anchors: Anchors, size: int) -> list[Anchors]:
        """``anchors`` in groups of ``size``, those of similar lengths together, so that little is padded."""
        longest = self.text_lengths[anchors.texts].max(1) + self.region_counts[anchors.images].max(1)
        order = np.argsort(longest, kind="stable")
        return [anchors.rows(order[start : start + size]) for start in range(0, len(order), size)]


@torch.no_grad()
def hardest(
    model: RegionRetriever, batches: PairBatches, anchors: Anchors, keep: int, batch_size: int = 400
) -> Anchors:
    """The matched pair and the ``keep`` highest-scored candidates of each anchor, highest first.

    The model scores in evaluation mode and is left in the mode it was in.

    Args:
        anchors: with N candidates each. With N = ``keep`` they come back as they are, unscored.
        batch_size: most pairs in a forward pass.
    """
    if anchors.texts.shape[1] == keep + 1:
        return anchors
    training = model.training
    model.eval()
    kept = []
    by_text = anchors.kind == TEXT
    for texts, images in zip(anchors.texts, anchors.images, strict=True):
        numbers, lengths = (images, batches.region_counts) if by_text else (texts, batches.text_lengths)
        order = 1 + np.argsort(lengths[numbers[1:]], kind="stable")
        scores = []
        fixed = batches.texts(texts[:1]) if by_text else batches.regions(images[:1])
        for start in range(0, len(order), batch_size):
            some = numbers[order[start : start + batch_size]]
            pair = (fixed, batches.regions(some)) if by_text else (batches.texts(some), fixed)
            scores.append(model.score_pairs(*pair).flatten())
        top = torch.cat(scores).float().topk(keep).indices.cpu().numpy()
        kept.append(np.append(0, order[top]))
    model.train(training)
    columns = np.stack(kept)
    return Anchors(
        anchors.kind, np.take_along_axis(anchors.texts, columns, 1), np.take_along_axis(anchors.images, columns, 1)
    )
