"""Scores of captions during a training: sums that processes add up, and the scores made of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from fairseq_ext.captions.scores import DocumentFrequencies, bleu_of, bleu_statistics, cider_d
from fairseq_ext.captions.tokenizer import tokenize

__all__ = ["SCORES", "SUMS", "ReferenceScores"]

_COUNTS = tuple(f"_bleu_{kind}_{n}" for kind in ("correct", "total") for n in (1, 2, 3, 4))
_BLEU = (*_COUNTS, "_bleu_sys_len", "_bleu_ref_len")
SUMS = ("_cider_sum", "_cider_n", *_BLEU)
"""The names of the sums: plain numbers, as arrays would keep torch's safe loader from a checkpoint."""


def _cider(sums: Mapping[str, float]) -> float:
    return 100 * sums["_cider_sum"] / max(sums["_cider_n"], 1)


def _bleu4(sums: Mapping[str, float]) -> float:
    return 100 * float(bleu_of(np.array([sums[name] for name in _BLEU]))[-1])


SCORES: dict[str, Callable[[Mapping[str, float]], float]] = {"cider": _cider, "bleu4": _bleu4}
"""What :data:`SUMS` over a set of images amount to, times 100."""


class ReferenceScores:
    """The references of a split, to score a part of it at a time.

    The document frequencies of CIDEr-D are those of the whole split, so that its score is a mean over images, however
    they are divided into batches.

    Args:
        references: the captions of each image, as they were written.
    """

    def __init__(self, references: Sequence[Sequence[str]]) -> None:
        self.references = [[tokenize(caption) for caption in captions] for captions in references]
        self.frequencies = DocumentFrequencies(self.references)

    def sums(self, images: Sequence[int], hypotheses: Sequence[str]) -> dict[str, float]:
        """The :data:`SUMS` of some images.

        Args:
            images: numbers of the images in the split.
            hypotheses: a caption of each image.
        """
        texts = [tokenize(hypothesis) for hypothesis in hypotheses]
        references = [self.references[image] for image in images]
        cider = cider_d(texts, references, self.frequencies).sum()
        values = (cider, len(texts), *bleu_statistics(texts, references).sum(axis=0))
        return {name: float(value) for name, value in zip(SUMS, values, strict=True)}
