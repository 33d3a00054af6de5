"""Anchors of a training step, their candidates, the hardest of the candidates, and batches of them for the model.

Everything random depends on seed and step alone: all processes draw the same global batch, and a resumed training needs
no state of a generator.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fairseq_ext.training.errors import OptionError
from fairseq_ext.training.modes import evaluating
from vision_language.iais.data import Collator, RegionData
from vision_language.iais.model import RegionRetriever

__all__ = ["IMAGE", "TEXT", "AnchorSampler", "Anchors", "PairBatches", "hardest"]

IMAGE, TEXT = "image", "text"


class Anchors(NamedTuple):
    """B anchors of one kind, each with its matched pair first and N candidates after it."""

    kind: str
    texts: np.ndarray
    """(B, 1 + N) caption indices; equal within a row where captions anchor."""
    images: np.ndarray
    """(B, 1 + N) image indices; equal within a row where images anchor."""

    def rows(self, keep: slice | np.ndarray) -> Anchors:
        """Some of the anchors."""
        return Anchors(self.kind, self.texts[keep], self.images[keep])

    def first(self, candidates: int) -> Anchors:
        """The anchors with only the first so many of their candidates."""
        return Anchors(self.kind, self.texts[:, : candidates + 1], self.images[:, : candidates + 1])


class AnchorSampler:
    """Draws image-anchored and text-anchored samples.

    A caption anchors its own image and N other images; an image anchors one of its captions and N captions of other
    images. Captions pass in a random order, and so do images; none comes twice within an epoch.

    Args:
        text_to_image: index of the image of every caption, ``(num_texts,)``. Every image has a caption.
        batch_size: anchors of each kind in a step.
        source: ``"sampled"``: N = ``negative_size`` distinct candidates from the whole set. ``"in-batch"``: the other
            N = ``batch_size - 1`` pairs of the step, which are drawn so that no image comes twice. Default
            ``"sampled"``.
        negative_size: number of candidates of an anchor with ``"sampled"``. Default 399.
        seed: seed of the order and of the candidates. Default 0.

    Raises:
        OptionError: more candidates, or anchors, than the training set has.
    """

    def __init__(
        self,
        text_to_image: np.ndarray,
        batch_size: int,
        source: str = "sampled",
        negative_size: int = 399,
        seed: int = 0,
    ) -> None:
        self.text_to_image = np.asarray(text_to_image)
        self.batch_size, self.source, self.negative_size, self.seed = batch_size, source, negative_size, seed
        self.by_image = np.argsort(self.text_to_image, kind="stable")
        self.counts = np.bincount(self.text_to_image)
        self.starts = np.cumsum(self.counts) - self.counts
        self.num_texts, self.num_images = len(self.text_to_image), len(self.counts)
        if source == "sampled":
            fewest = min(self.num_images - 1, self.num_texts - int(self.counts.max()))
            if negative_size > fewest:
                raise OptionError(
                    f"--negative-size must be at most {fewest}, which the {self.num_images} training images "
                    f"and {self.num_texts} captions allow, got {negative_size}"
                )
        elif batch_size > self.num_images:
            raise OptionError(f"--batch-size must be at most the {self.num_images} training images, got {batch_size}")

    def draw(self, step: int, kind: str) -> Anchors:
        """The anchors of ``kind`` (``"image"`` or ``"text"``) of step 0, 1, ..."""
        generator = np.random.default_rng([self.seed, step, kind == TEXT])
        texts, images = self._pairs(step, kind, generator)
        if self.source == "in-batch":
            others = (np.arange(self.batch_size)[:, None] + np.arange(self.batch_size)) % self.batch_size
            candidates = (images if kind == TEXT else texts)[others]
        elif kind == TEXT:
            drawn = self._sample(np.full(self.batch_size, self.num_images - 1), generator)
            candidates = np.column_stack([images, drawn + (drawn >= images[:, None])])
        else:  # places in the list of all captions by image, which skip the anchor's own captions
            drawn = self._sample(self.num_texts - self.counts[images], generator)
            drawn += np.where(drawn >= self.starts[images, None], self.counts[images, None], 0)
            candidates = np.column_stack([texts, self.by_image[drawn]])
        repeated = np.broadcast_to((texts if kind == TEXT else images)[:, None], candidates.shape)
        return Anchors(kind, repeated, candidates) if kind == TEXT else Anchors(kind, candidates, repeated)

    def _pairs(self, step: int, kind: str, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """The matched pairs of a step, as captions and images."""
        if self.source == "in-batch":
            images = generator.choice(self.num_images, self.batch_size, replace=False)
        elif kind == TEXT:
            texts = self._next(step, self.num_texts, kind)
            return texts, self.text_to_image[texts]
        else:
            images = self._next(step, self.num_images, kind)
        return self.by_image[self.starts[images] + generator.integers(self.counts[images])], images

    def _next(self, step: int, size: int, kind: str) -> np.ndarray:
        """The numbers that belong to this step in an endless sequence of shuffled epochs."""
        epochs, places = np.divmod(np.arange(step * self.batch_size, (step + 1) * self.batch_size), size)
        orders = [
            np.random.default_rng([self.seed, epoch, kind == TEXT, 1]).permutation(size)
            for epoch in range(epochs[0], epochs[-1] + 1)
        ]
        return np.stack(orders)[epochs - epochs[0], places]

    def _sample(self, sizes: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        return np.stack([generator.choice(size, self.negative_size, replace=False) for size in sizes])


class PairBatches:
    """Batches of any captions with any images, by their numbers.

    The captions are split into word pieces only once: training reads each hundreds of times, most often as a negative.

    Args:
        data: captions and images.
        collator: turns them into tensors.
        device: where the tensors go.
    """

    def __init__(self, data: RegionData, collator: Collator, device: str | torch.device = "cpu") -> None:
        self.data, self.collator, self.device = data, collator, device
        texts = collator.texts(data.captions)
        self.input_ids, self.text_lengths = texts["input_ids"].int(), texts["attention_mask"].sum(1).numpy()
        self.region_counts = np.array([len(image.geometry) for image in data.images])

    def texts(self, numbers: Sequence[int] | np.ndarray) -> dict[str, Tensor]:
        """``input_ids`` and ``attention_mask`` ``(B, T)`` of captions."""
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
        """``anchors`` in groups of ``size``; anchors of similar lengths come together, so that little is padded."""
        longest = self.text_lengths[anchors.texts].max(1) + self.region_counts[anchors.images].max(1)
        order = np.argsort(longest, kind="stable")
        return [anchors.rows(order[start : start + size]) for start in range(0, len(order), size)]


@torch.no_grad()
def hardest(
    model: RegionRetriever, batches: PairBatches, anchors: Anchors, keep: int, batch_size: int = 400
) -> Anchors:
    """The matched pair and the ``keep`` highest-scored candidates of each anchor, highest first.

    The model scores in evaluation mode, and is in its former mode afterwards.

    Args:
        model: scores the candidates.
        batches: captions and images by their numbers.
        anchors: anchors with N candidates each; if N = ``keep``, they are returned as they are, unscored.
        keep: number of candidates that stay.
        batch_size: most pairs in a forward pass. Default 400.
    """
    if anchors.texts.shape[1] == keep + 1:
        return anchors
    kept = []
    by_text = anchors.kind == TEXT
    with evaluating(model):
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
    columns = np.stack(kept)
    return Anchors(
        anchors.kind, np.take_along_axis(anchors.texts, columns, 1), np.take_along_axis(anchors.images, columns, 1)
    )
