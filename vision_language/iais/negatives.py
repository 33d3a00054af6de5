"""Anchors of a training step and their sampled candidates.

Everything random comes from (seed, step): every process draws the same global batch, and a resumed training needs no
state of a generator.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fairseq_ext.training.errors import OptionError

__all__ = ["IMAGE", "TEXT", "AnchorSampler", "Anchors"]

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
        """The anchors with their first candidates alone."""
        return Anchors(self.kind, self.texts[:, : candidates + 1], self.images[:, : candidates + 1])


class AnchorSampler:
    """Draws image-anchored and text-anchored samples.

    A caption anchors one gold image and N others; an image anchors one of its captions and N captions of other images.
    Captions and images each pass in a random order of their own, without repetition within an epoch.

    Args:
        text_to_image: (num_texts,) index of the image of every caption. Every image has a caption.
        batch_size: anchors of each kind in a step.
        source: ``"sampled"``: N = ``negative_size`` distinct candidates from the whole set. ``"in-batch"``: the
            N = ``batch_size - 1`` other pairs of the step; two captions of one image never meet in a step.
        seed: of the order and of the candidates.

    Raises:
        OptionError: more candidates than the training set has.
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
        else:  # places in the list of all captions by image, those of the anchor stepped over
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
        """The step's part of an endless row of shuffled epochs."""
        epochs, places = np.divmod(np.arange(step * self.batch_size, (step + 1) * self.batch_size), size)
        orders = [
            np.random.default_rng([self.seed, epoch, kind == TEXT, 1]).permutation(size)
            for epoch in range(epochs[0], epochs[-1] + 1)
        ]
        return np.stack(orders)[epochs - epochs[0], places]

    def _sample(self, sizes: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        return np.stack([generator.choice(size, self.negative_size, replace=False) for size in sizes])
