"""Captions without a trained model: those of people, and those of training images that look alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.neighbors import NearestNeighbors

from fairseq_ext.captions.evaluation import Evaluation
from fairseq_ext.captions.scores import ngrams
from fairseq_ext.captions.store import Split
from fairseq_ext.captions.tokenizer import tokenize

__all__ = ["BASELINES", "human"]

Baseline = Callable[[Split, Split], list[str]]


def most_frequent(train: Split, test: Split) -> list[str]:
    """The caption that most training images have."""
    captions = Counter(tokenize(caption) for captions in train.references for caption in captions)
    return [captions.most_common(1)[0][0]] * len(test)


def nearest(train: Split, test: Split) -> list[str]:
    """The first caption of the training image whose vector has the highest cosine."""
    return [train.references[image][0] for image in _neighbours(train, test, 1)[:, 0]]


def consensus(train: Split, test: Split, count: int = 5) -> list[str]:
    """Of all captions of the ``count`` nearest images that which is most like the others."""
    return [
        _central([caption for image in images for caption in train.references[image]])
        for images in _neighbours(train, test, count)
    ]


def _neighbours(train: Split, test: Split, count: int) -> np.ndarray:
    """``(N, count)``: training images by cosine; of TF-IDF weights of the classes, else of the mean feature vector."""
    vectors, queries = _vectors(train), _vectors(test)
    if train.features is None:
        weights = TfidfTransformer(sublinear_tf=True).fit(vectors)
        vectors, queries = weights.transform(vectors), weights.transform(queries)
    search = NearestNeighbors(n_neighbors=min(count, len(train)), metric="cosine", algorithm="brute").fit(vectors)
    return search.kneighbors(queries, return_distance=False)


def _vectors(split: Split) -> np.ndarray:
    rows = [split.rows(image) for image in range(len(split))]
    if split.features is not None:
        return np.stack([np.float32(split.features[row]).mean(axis=0) for row in rows])
    classes = split.preparation.num_classes
    return np.stack([np.bincount(split.labels[row], minlength=classes) for row in rows])


def _central(captions: Sequence[str]) -> str:
    """The caption with the highest mean overlap of words and pairs of words with the others (Dice's coefficient)."""
    bags = [sum(ngrams(tokenize(caption))[:2], Counter()) for caption in captions]

    def overlap(bag: Counter, other: Counter) -> float:
        return 2 * (bag & other).total() / max(bag.total() + other.total(), 1)

    overlaps = [sum(overlap(bag, other) for other in bags) for bag in bags]
    return captions[int(np.argmax(overlaps))]


def human(test: Split) -> Evaluation | None:
    """The last caption of people against the others, of which there is one less; None where images have one."""
    if min(map(len, test.references)) < 2:
        return None
    others = [references[:-1] for references in test.references]
    return Evaluation([references[-1] for references in test.references], test, references=others)


BASELINES: dict[str, Baseline] = {
    "most frequent caption": most_frequent,
    "nearest training image": nearest,
    "consensus of the 5 nearest": partial(consensus, count=5),
}
