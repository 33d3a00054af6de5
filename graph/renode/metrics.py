"""F1 of predicted classes."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from fairseq_ext.training.errors import choose

__all__ = ["f1", "f1_scores"]

AVERAGES = ("weighted", "macro")


def f1(truth: ArrayLike, predicted: ArrayLike, average: str = "weighted") -> float:
    r"""F1 as a mean over the classes, of which one that is in neither ``truth`` nor ``predicted`` is none.

    .. math::
        F_1(c) = \frac{2\,|\{i : y_i = \hat y_i = c\}|}{|\{i : y_i = c\}| + |\{i : \hat y_i = c\}|}

    These are the numbers of scikit-learn's ``f1_score(zero_division=0)``, which sorts the classes of all nodes; counts
    take a twentieth of its time, and an epoch's validation has to be cheap.

    Args:
        truth: classes, whole numbers.
        predicted: predicted classes.
        average: ``"weighted"``, by the sizes of the classes in ``truth``, or ``"macro"``, all classes alike. Default:
            ``"weighted"``.

    Shape:
        - truth, predicted: :math:`(n)`, where :math:`n \geq 1`

    Raises:
        OptionError: ``average`` is unknown.
    """
    choose("average", average, AVERAGES)
    truth, predicted = np.asarray(truth), np.asarray(predicted)
    least = min(truth.min(), predicted.min())  # -1, of a node without class, is a class as in scikit-learn
    most = max(truth.max(), predicted.max())
    size, found, right = (
        np.bincount(classes - least, minlength=most - least + 1)
        for classes in (truth, predicted, truth[truth == predicted])
    )
    present = size + found > 0
    scores = 2 * right[present] / (size + found)[present]
    return float(np.average(scores, weights=size[present] if average == "weighted" else None))


def f1_scores(truth: ArrayLike, predicted: ArrayLike, prefix: str = "") -> dict[str, float]:
    """``weighted_f1`` and ``macro_f1``, with ``prefix`` before the names."""
    return {f"{prefix}{average}_f1": f1(truth, predicted, average) for average in AVERAGES}
