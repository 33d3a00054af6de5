"""Scores of captions against several references per image: BLEU, ROUGE-L and CIDEr-D, as the COCO evaluation has them.

Captions are tokenised texts (:func:`~fairseq_ext.captions.tokenizer.tokenize`), tokens separated by single spaces:
``hypotheses`` has one per image, ``references`` a list of at least one per image. Scores are in natural units: BLEU and
ROUGE-L up to 1, CIDEr-D up to 10; tables of papers show them times 100.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

__all__ = ["DocumentFrequencies", "bleu", "bleu_of", "bleu_statistics", "cider_d", "ngrams", "rouge_l"]

ORDER = 4
NGram = tuple[str, ...]
References = Sequence[Sequence[str]]


def ngrams(sentence: str) -> list[Counter[NGram]]:
    """How often each n-gram occurs in a sentence, for n from 1 to 4."""
    words = sentence.split()
    return [
        Counter(tuple(words[start : start + n]) for start in range(len(words) - n + 1)) for n in range(1, ORDER + 1)
    ]


def bleu_statistics(hypotheses: Sequence[str], references: References) -> np.ndarray:
    """The counts that BLEU is computed from, one image per row; rows of images, sets or processes may be added up.

    Args:
        hypotheses: N captions.
        references: N lists of captions.

    Returns:
        ``(N, 10)`` int64: the matches of n = 1 to 4, each n-gram counted at most as often as in the reference that has
        it most often; the n-grams of the hypothesis; its length; the length of the reference that is closest in length,
        or of the shorter of two equally close ones.
    """
    rows = []
    for hypothesis, others in zip(hypotheses, references, strict=True):
        counts = ngrams(hypothesis)
        most = [Counter[NGram]() for _ in counts]
        for other in others:
            most = [limit | count for limit, count in zip(most, ngrams(other), strict=True)]
        matches = [(count & limit).total() for count, limit in zip(counts, most, strict=True)]
        length = len(hypothesis.split())
        closest = min((len(other.split()) for other in others), key=lambda other: (abs(other - length), other))
        rows.append([*matches, *(count.total() for count in counts), length, closest])
    return np.array(rows, dtype=np.int64).reshape(-1, 2 * ORDER + 2)


def bleu_of(statistics: np.ndarray) -> np.ndarray:
    """BLEU-1 to BLEU-4 of summed statistics (Papineni et al., ACL 2002), without smoothing.

    ``min(1, exp(1 - r / h)) (p_1 ... p_n)^(1/n)`` with the lengths h of the hypotheses and r of the closest references.

    Args:
        statistics: ``(..., 10)``, sums of rows of :func:`bleu_statistics`.

    Returns:
        ``(..., 4)``; 0 where no n-gram matches.
    """
    matches, totals = statistics[..., :ORDER], statistics[..., ORDER : 2 * ORDER]
    length, closest = np.maximum(statistics[..., -2], 1), statistics[..., -1]
    with np.errstate(divide="ignore"):
        logs = np.log(matches / np.maximum(totals, 1))
    means = np.cumsum(logs, axis=-1) / np.arange(1, ORDER + 1)
    return np.exp(means + np.minimum(0, 1 - closest / length)[..., None])


def bleu(hypotheses: Sequence[str], references: References) -> list[float]:
    """BLEU-1 to BLEU-4 of a set, as sacreBLEU computes it with ``tokenize="none", smooth_method="none"``.

    Args:
        hypotheses: N captions.
        references: N lists of captions.
    """
    return bleu_of(bleu_statistics(hypotheses, references).sum(axis=0)).tolist()


def rouge_l(hypotheses: Sequence[str], references: References, beta: float = 1.2) -> np.ndarray:
    """ROUGE-L of each image (Lin, 2004), by the longest common subsequence of the tokens.

    ``(1 + b^2) P R / (R + b^2 P)``. As in the COCO evaluation, precision P and recall R are each the highest over the
    references, not necessarily of the same one.

    Args:
        hypotheses: N captions.
        references: N lists of captions.
        beta: b, how much more recall counts than precision.

    Returns:
        ``(N,)``; the score of a set is the mean.
    """
    scores = []
    for hypothesis, others in zip(hypotheses, references, strict=True):
        # An empty caption is one empty token in the COCO evaluation.
        words, lists = hypothesis.split(" "), [other.split(" ") for other in others]
        common = [_common(words, other) for other in lists]
        precision = max(common) / len(words)
        recall = max(length / len(other) for length, other in zip(common, lists, strict=True))
        scores.append((1 + beta**2) * precision * recall / (recall + beta**2 * precision) if precision else 0.0)
    return np.array(scores)


def _common(first: list[str], second: list[str]) -> int:
    """Length of the longest common subsequence; a number holds a row of the table in its bits (Hyyrö, 2004)."""
    places: dict[str, int] = {}
    for place, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << place
    row = full = (1 << len(first)) - 1
    for word in second:
        kept = row & places.get(word, 0)
        row = (row + kept | row - kept) & full
    return len(first) - row.bit_count()


class DocumentFrequencies:
    """The number of images in a set that have an n-gram in any of their references.

    Args:
        references: N lists of captions.

    Attributes:
        counts: number of images by n-gram, a tuple of tokens.
        images: number N of all images.
    """

    def __init__(self, references: References) -> None:
        self.images = len(references)
        self.counts = Counter(
            ngram for others in references for ngram in {key for other in others for key in _keys(other)}
        )

    def weight(self, ngram: NGram) -> float:
        """``ln(N / max(1, df))``."""
        return math.log(self.images) - math.log(max(1, self.counts[ngram]))


def _keys(sentence: str) -> Iterable[NGram]:
    return (key for counts in ngrams(sentence) for key in counts)


def cider_d(
    hypotheses: Sequence[str],
    references: References,
    frequencies: DocumentFrequencies | None = None,
    sigma: float = 6.0,
) -> np.ndarray:
    """CIDEr-D of each image (Vedantam et al., CVPR 2015, arXiv 1411.5726): TF-IDF n-grams that the references share.

    For n = 1 to 4 it takes the cosine of the two vectors, where an n-gram of the hypothesis counts at most as often as
    in the reference, times ``exp(-d^2 / (2 sigma^2))`` with the difference d of their numbers of bigrams; the score is
    the mean over references and n, times 10. A word that occurs in every image has weight 0, so the score depends on
    the set: it is 0 for one image, and scores of other sets, or with other numbers of references, cannot be compared.

    Args:
        hypotheses: N captions.
        references: N lists of captions.
        frequencies: those of the set that the images are a part of. Default: those of ``references``.
        sigma: width of the penalty for another length; the smaller, the more it costs.

    Returns:
        ``(N,)``; the score of a set is the mean.
    """
    frequencies = frequencies or DocumentFrequencies(references)
    scores = []
    for hypothesis, others in zip(hypotheses, references, strict=True):
        own = _Vectors(hypothesis, frequencies)
        similarities = [own.similarity(_Vectors(other, frequencies), sigma) for other in others]
        scores.append(10 * math.fsum(similarities) / len(others))
    return np.array(scores)


class _Vectors:
    """A caption's TF-IDF vectors of n = 1 to 4."""

    def __init__(self, sentence: str, frequencies: DocumentFrequencies) -> None:
        self.weights = [
            {key: count * frequencies.weight(key) for key, count in counts.items()} for counts in ngrams(sentence)
        ]
        self.norms = [math.sqrt(sum(weight**2 for weight in weights.values())) for weights in self.weights]
        self.bigrams = max(0, len(sentence.split()) - 1)

    def similarity(self, reference: _Vectors, sigma: float) -> float:
        total = 0.0
        for own, other, norm in zip(
            self.weights, reference.weights, np.multiply(self.norms, reference.norms), strict=True
        ):
            product = sum(min(weight, other.get(key, 0.0)) * other.get(key, 0.0) for key, weight in own.items())
            total += product / (norm or 1.0)
        return total / ORDER * math.exp(-((self.bigrams - reference.bigrams) ** 2) / (2 * sigma**2))
