"""Metrics of a classifier, by scikit-learn."""

from __future__ import annotations

import numpy as np
from sklearn.metrics import accuracy_score, recall_score, roc_auc_score
from torch import Tensor

__all__ = ["classification_metrics"]


def classification_metrics(logits: Tensor, labels: Tensor) -> dict[str, float | None]:
    """Accuracy, balanced accuracy and the area under the ROC curve.

    Balanced accuracy is the mean recall of the classes that ``labels`` hold. With more than two classes, the area is
    the mean over the classes, each against all others.

    Args:
        logits: ``(n, classes)``; the class with the largest is predicted, the first of several with equal logits.
        labels: class numbers, ``(n)``.

    Returns:
        ``accuracy``, ``balanced_accuracy`` and ``roc_auc``, which is None where ``labels`` lack a class.
    """
    scores, gold = logits.detach().double().cpu(), labels.cpu().numpy()
    predicted, present = scores.argmax(1).numpy(), np.unique(gold)
    metrics: dict[str, float | None] = {
        "accuracy": float(accuracy_score(gold, predicted)),
        # balanced_accuracy_score gives the same, but warns of a predicted class that is not among the labels
        "balanced_accuracy": float(recall_score(gold, predicted, labels=present, average="macro")),
        "roc_auc": None,
    }
    if len(present) == scores.size(1):
        # For two classes the difference of logits: probabilities may all be 1 where these still differ.
        ranked = scores[:, 1] - scores[:, 0] if scores.size(1) == 2 else scores.softmax(1)
        metrics["roc_auc"] = float(roc_auc_score(gold, ranked.numpy(), multi_class="ovr"))
    return metrics
