"""Scores of the captions of a whole split against those that people wrote, with intervals over the images."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from fairseq_ext.captions import java
from fairseq_ext.captions.scores import DocumentFrequencies, bleu_of, bleu_statistics, cider_d, rouge_l
from fairseq_ext.captions.store import Split
from fairseq_ext.captions.tokenizer import tokenize
from fairseq_ext.training.errors import DataError, OptionError
from fairseq_ext.training.settings import digest

__all__ = ["METRICS", "TOKENIZERS", "Evaluation"]

METRICS = {
    "bleu1": "BLEU-1",
    "bleu2": "BLEU-2",
    "bleu3": "BLEU-3",
    "bleu4": "BLEU-4",
    "rouge_l": "ROUGE-L",
    "cider_d": "CIDEr-D",
}
"""Names in results, and in tables."""

TOKENIZERS: dict[str, Callable[[Sequence[str]], list[str]]] = {
    "words": lambda captions: [tokenize(caption) for caption in captions],
    "ptb-java": java.tokenize,
}
UNKNOWN = "<unk>"


class Evaluation:
    """The scores of the captions of a split.

    Args:
        captions: one per image.
        split: the images and their references.
        tokenizer: one of :data:`TOKENIZERS`, for captions and references.
        references: other references of the same images. Default: those of the split.

    Attributes:
        hypotheses, references: tokenised captions.
        rouge_l, cider_d: ``(N,)``, the score of each image.
        key: digest of images, references and tokeniser; scores with different keys cannot be compared.

    Raises:
        DataError: an image without references.
        OptionError: a tokeniser that is not installed.
    """

    def __init__(
        self,
        captions: Sequence[str],
        split: Split,
        tokenizer: str = "words",
        references: Sequence[Sequence[str]] | None = None,
    ) -> None:
        self.captions, self.split, self.tokenizer = list(captions), split, tokenizer
        originals = split.references if references is None else references
        self.key = digest(split.image_ids.tolist(), [list(others) for others in originals], tokenizer)
        tokenized = TOKENIZERS[tokenizer]
        self.hypotheses = tokenized(self.captions)
        flat = iter(tokenized([reference for others in originals for reference in others]))
        self.references = [[next(flat) for _ in others] for others in originals]
        empty = [image for image, references in enumerate(self.references) if not any(references)]
        if empty:
            raise DataError(
                f"{split.folder}: {len(empty)} images of {split.name} without a reference, such as "
                f"{split.image_ids[empty[0]]}"
            )
        self.frequencies = DocumentFrequencies(self.references)
        self.rouge_l = rouge_l(self.hypotheses, self.references)
        self.cider_d = cider_d(self.hypotheses, self.references, self.frequencies)
        self._bleu = bleu_statistics(self.hypotheses, self.references)
        self._samples: dict[tuple[int, int], dict[str, np.ndarray]] = {}

    def metrics(self, counts: np.ndarray | None = None) -> dict[str, float]:
        """The :data:`METRICS` of the set, in natural units.

        Args:
            counts: ``(N,)``, how often the set has each image. Default: once.
        """
        counts = np.ones(len(self.split), dtype=np.int64) if counts is None else counts
        means = [counts @ values / counts.sum() for values in (self.rouge_l, self.cider_d)]
        return dict(zip(METRICS, map(float, [*bleu_of(counts @ self._bleu), *means]), strict=True))

    def samples(self, number: int, seed: int) -> dict[str, np.ndarray]:
        """The metrics of bootstrap samples of the images, drawn once; a seed draws the same images for every model."""
        if (number, seed) not in self._samples:
            rng, size = np.random.default_rng(seed), len(self.split)
            drawn = [self.metrics(rng.multinomial(size, np.full(size, 1 / size))) for _ in range(number)]
            self._samples[number, seed] = {name: np.array([metrics[name] for metrics in drawn]) for name in METRICS}
        return self._samples[number, seed]

    def intervals(self, number: int = 1000, seed: int = 1) -> dict[str, list[float]]:
        """The 95 % interval of each metric over the images; over repeated trainings it would be wider.

        Args:
            number: number of bootstrap samples.
            seed: seed that draws them.
        """
        return {name: _interval(values) for name, values in self.samples(number, seed).items()}

    def differences(self, other: Evaluation, number: int = 1000, seed: int = 1) -> dict[str, dict[str, object]]:
        """How much higher this scores than another evaluation: a paired bootstrap over the images.

        Args:
            other: evaluation with the same split, references and tokeniser.
            number: number of bootstrap samples.
            seed: seed that draws them.

        Returns:
            For each metric the ``difference``, its 95 % ``interval``, and the share of samples that are ``better``.

        Raises:
            OptionError: another split, references or tokeniser.
        """
        if self.key != other.key:
            raise OptionError("only captions of the same images, references and tokeniser can be compared")
        metrics, others = self.metrics(), other.metrics()
        samples, other_samples = self.samples(number, seed), other.samples(number, seed)
        return {
            name: {
                "difference": metrics[name] - others[name],
                "interval": _interval(samples[name] - other_samples[name]),
                "better": float(np.mean(samples[name] > other_samples[name])),
            }
            for name in METRICS
        }

    def counts(self) -> dict[str, float]:
        """Numbers of images, references per image, distinct and empty captions, words; the share with ``<unk>``."""
        size = len(self.split)
        return {
            "images": size,
            "references": sum(map(len, self.references)) / size,
            "distinct": len(set(self.hypotheses)),
            "words": sum(len(hypothesis.split()) for hypothesis in self.hypotheses) / size,
            "empty": sum(not hypothesis for hypothesis in self.hypotheses),
            "with_unknown": sum(UNKNOWN in hypothesis.split() for hypothesis in self.hypotheses) / size,
        }

    def without_idf(self) -> bool:
        """Whether CIDEr-D is 0 whatever the captions: all words occur in all images, as they do with a single image."""
        return all(count == self.frequencies.images for count in self.frequencies.counts.values())


def _interval(values: np.ndarray) -> list[float]:
    return [float(bound) for bound in np.percentile(values, (2.5, 97.5))]
