r"""Long-tailed versions of a balanced data set, and how well each part of the tail is classified.

As in Cao, Wei, Gaidon, Arechiga, Ma, "Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss",
arXiv:1906.07413, and Kang et al., "Decoupling Representation and Classifier for Long-Tailed Recognition",
arXiv:1910.09217.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from sklearn.metrics import accuracy_score, f1_score, recall_score
from torch import Tensor

__all__ = ["GROUPS", "THIRDS", "group_metrics", "groups", "is_long_tailed", "long_tail_counts", "long_tail_subset"]

GROUPS = ("many", "medium", "few")
"""Groups of classes: those with more than 100, with 20 to 100, and with fewer than 20 training images."""

THIRDS = ("head", "middle", "tail")
"""Thirds of the classes, from the largest to the smallest; they tell apart even ten classes of the same group."""

KINDS = ("exponential", "step")


def long_tail_counts(classes: int, largest: int, factor: float, kind: str = "exponential") -> list[int]:
    r"""How many images each class keeps.

    .. math::
        \text{exponential: } n_c = \lfloor n_{max}\, r^{-c / (C - 1)} \rfloor \qquad
        \text{step: } n_c = n_{max} \text{ for the first } \lceil C/2 \rceil, \; \lfloor n_{max} / r \rfloor
        \text{ for the others}

    Args:
        classes: number of classes, C.
        largest: number of images of the largest class, :math:`n_{max}`.
        factor: r, the size of the largest class over the size of the smallest; at least 1, which keeps the set
            balanced.
        kind: ``"exponential"`` or ``"step"``. Default ``"exponential"``.

    Raises:
        ValueError: an argument out of its range, or a class that would be empty.
    """
    if classes < 2:
        raise ValueError(f"a long tail needs at least 2 classes, got {classes}")
    if not 1 <= factor < math.inf:
        raise ValueError(f"factor must be at least 1, got {factor}")
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    if kind == "exponential":
        counts = [int(largest * (1 / factor) ** (c / (classes - 1))) for c in range(classes)]
    else:
        head = math.ceil(classes / 2)
        counts = [largest] * head + [int(largest / factor)] * (classes - head)
    if min(counts) < 1:
        raise ValueError(f"factor {factor:g} leaves class {counts.index(0)} without an image of {largest}")
    return counts


def long_tail_subset(labels: Tensor, counts: list[int], seed: int = 0) -> Tensor:
    """The images that a long-tailed version keeps: each class is permuted at random, and its first images stay.

    Args:
        labels: labels of the whole set, ``(N)``.
        counts: images to keep of each class, as :func:`long_tail_counts` gives them.
        seed: seed of the permutations; it is not the seed of a training, so that runs may share one subset. Default 0.

    Returns:
        The indices of the images, ascending. If the count of one class grows, this class keeps its images.

    Raises:
        ValueError: a class has fewer images than its count.
    """
    generator = torch.Generator().manual_seed(seed)
    kept = []
    for label, count in enumerate(counts):
        members = (labels == label).nonzero()[:, 0]
        if len(members) < count:
            raise ValueError(f"class {label} must have at least {count} images, got {len(members)}")
        kept.append(members[torch.randperm(len(members), generator=generator)[:count]])
    return torch.cat(kept).sort().values


def groups(train_counts: list[int]) -> list[str]:
    """The group of each class, one of ``GROUPS``, by its number of training images."""
    return ["many" if count > 100 else "medium" if count >= 20 else "few" for count in train_counts]


def is_long_tailed(train_counts: list[int]) -> bool:
    """Whether the largest class has at least twice the training images of the smallest."""
    return max(train_counts) >= 2 * min(train_counts)


def group_metrics(labels: Tensor, predicted: Tensor, train_counts: list[int]) -> dict[str, Any]:
    """Accuracy over all images, of each class, of the groups of classes, and of the thirds of classes.

    Args:
        labels: labels of the test set, ``(N)``; a class that is not among them counts in no mean.
        predicted: predicted class of each image, ``(N)``.
        train_counts: number of training images of each class.

    Returns:
        - ``accuracy``
        - ``class_accuracy``: None for a class without test images; ``balanced_accuracy``: the mean over classes
        - ``many``, ``medium`` and ``few``: means over the classes of a group, None for an empty group
        - ``head``, ``middle`` and ``tail``: means over the thirds of the classes, from the largest class on; where
          three does not divide the number of classes, the first thirds have one class more; None for an empty third
        - ``macro_f1``
        - ``train_weighted_accuracy``: the mean over classes weighted by ``train_counts``
    """
    gold, guess = labels.cpu().numpy(), predicted.cpu().numpy()
    present = np.unique(gold)
    accuracies = recall_score(gold, guess, labels=present, average=None, zero_division=0)
    of_class, counts = np.array(groups(train_counts))[present], np.array(train_counts)[present]
    thirds = np.empty(len(train_counts), dtype="<U6")
    for name, part in zip(THIRDS, np.array_split(np.argsort(-np.array(train_counts), kind="stable"), 3), strict=True):
        thirds[part] = name
    parts = [(name, of_class) for name in GROUPS] + [(name, thirds[present]) for name in THIRDS]
    by_class = dict(zip(present.tolist(), accuracies.tolist(), strict=True))
    return {
        "accuracy": float(accuracy_score(gold, guess)),
        "class_accuracy": [by_class.get(label) for label in range(len(train_counts))],
        "balanced_accuracy": float(accuracies.mean()),
        **{name: float(accuracies[own == name].mean()) if name in own else None for name, own in parts},
        "macro_f1": float(f1_score(gold, guess, labels=present, average="macro", zero_division=0)),
        "train_weighted_accuracy": float((accuracies * counts).sum() / counts.sum()),
    }
