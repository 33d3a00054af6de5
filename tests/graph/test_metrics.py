"""Accuracy, balanced accuracy and the area under the ROC curve, by hand."""

from __future__ import annotations

import warnings

import pytest
import torch

from graph.metrics import classification_metrics


def test_two_classes_by_hand():
    # the first of equal logits wins; ranked by z1 - z0: gold 1 has 3 and 0, gold 0 has 1, -1 and -2
    logits = torch.tensor([[0.0, 3.0], [0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [2.0, 0.0]])
    metrics = classification_metrics(logits, torch.tensor([1, 1, 0, 0, 0]))
    assert metrics == pytest.approx({"accuracy": 3 / 5, "balanced_accuracy": (1 / 2 + 2 / 3) / 2, "roc_auc": 5 / 6})


def test_three_classes_are_each_ranked_against_the_others():
    logits = torch.tensor([[9.0, 0.0, 0.0], [0.0, 9.0, 0.0], [0.0, 8.0, 0.0], [0.0, 0.0, 9.0]])
    metrics = classification_metrics(logits, torch.tensor([0, 1, 2, 2]))
    # of class 1, one of three others ranks below it and two do too: 3 of 3; of class 2, (2 + 1.5 ... ) by pairs
    assert metrics["accuracy"] == 3 / 4 and metrics["balanced_accuracy"] == pytest.approx((1 + 1 + 1 / 2) / 3)
    probabilities = logits.double().softmax(1)

    def area(kind, gold):
        pairs = [(a, b) for a, y in zip(probabilities[:, kind], gold, strict=True) if y == kind
                 for b, z in zip(probabilities[:, kind], gold, strict=True) if z != kind]  # fmt: skip
        return sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs) / len(pairs)

    assert metrics["roc_auc"] == pytest.approx(sum(area(kind, [0, 1, 2, 2]) for kind in range(3)) / 3)


def test_large_logits_are_still_ranked():
    logits = torch.tensor([[0.0, 90.0], [0.0, 80.0], [0.0, 70.0], [0.0, 60.0]])
    assert classification_metrics(logits, torch.tensor([1, 0, 1, 0]))["roc_auc"] == 3 / 4


def test_a_class_that_is_not_there_has_no_area():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metrics = classification_metrics(torch.eye(3), torch.tensor([0, 1, 1]))
    assert metrics == {"accuracy": 2 / 3, "balanced_accuracy": 3 / 4, "roc_auc": None}
