"""Do the scores find the right teacher, and does the student know all classes? Analyses that need gold labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from fairseq_ext.losses import soft_target_kl
from vision_language.calibration import reliability
from vision_language.muka.targets import LabelUnion

__all__ = [
    "accuracy_by_teacher",
    "all_diagnostics",
    "kl_to_supervised",
    "score_auroc",
    "selected_right",
    "specialty",
    "teacher_accuracy",
    "teachers_right",
]


def specialty(labels: Tensor, union: LabelUnion) -> Tensor:
    """Whether a teacher knows the gold class of an example: its specialty, ``(B, T)``.

    Args:
        labels: gold classes as numbers of the union, ``(B)``.
        union: the classes of the teachers.
    """
    return union.membership(labels.device)[:, labels].T


def selected_right(scores: Tensor, labels: Tensor, union: LabelUnion) -> Tensor:
    """Whether the teacher of the highest score knows the gold class, ``(B)``; its mean is the selection accuracy.

    Args:
        scores: ``(B, T)``.
        labels: gold classes as numbers of the union, ``(B)``.
        union: the classes of the teachers.
    """
    return specialty(labels, union).gather(1, scores.argmax(-1, keepdim=True)).squeeze(1)


def teachers_right(teacher_logits: Sequence[Tensor], labels: Tensor, union: LabelUnion) -> Tensor:
    """Whether each teacher predicts the gold class, ``(B, T)``; it never does outside of its specialty.

    Args:
        teacher_logits: ``(B, C_t)`` each.
        labels: gold classes as numbers of the union, ``(B)``.
        union: the classes of the teachers.
    """
    union.check(teacher_logits)
    columns = [union.columns(teacher, labels.device) for teacher in range(len(teacher_logits))]
    predictions = [column[logits.argmax(-1)] for column, logits in zip(columns, teacher_logits, strict=True)]
    return torch.stack(predictions, -1) == labels[:, None]


def teacher_accuracy(teacher_logits: Sequence[Tensor], labels: Tensor, union: LabelUnion) -> list[float | None]:
    """Accuracy of each teacher on the examples of its classes; ``None`` where there are none."""
    right, inside = teachers_right(teacher_logits, labels, union), specialty(labels, union)
    return [
        float(hits[rows].double().mean()) if rows.any() else None for hits, rows in zip(right.T, inside.T, strict=True)
    ]


def score_auroc(scores: Tensor, labels: Tensor, union: LabelUnion) -> list[float | None]:
    """For each teacher, how often an example of its classes has a higher score than one of the others, ties half.

    The area under the ROC curve of its score; 0.5 is chance. ``None`` where all examples are of one side.
    """

    inside, values = specialty(labels, union).cpu().numpy(), scores.detach().cpu().double().numpy()
    return [
        None if rows.all() or not rows.any() else float(roc_auc_score(rows, column))
        for rows, column in zip(inside.T, values.T, strict=True)
    ]


def accuracy_by_teacher(predictions: Tensor, labels: Tensor, union: LabelUnion) -> list[float | None]:
    """Accuracy of the student on the examples of each teacher's classes; ``None`` where there are none.

    Args:
        predictions: classes as numbers of the union, ``(B)``.
        labels: gold classes, ``(B)``.
        union: the classes of the teachers.
    """
    right = predictions == labels
    return [float(right[inside].double().mean()) if inside.any() else None for inside in specialty(labels, union).T]


def kl_to_supervised(target: Tensor, supervised_logits: Tensor) -> float:
    r"""Mean :math:`\mathrm{KL}(q \,\|\, p)` of a target from a teacher that was trained on all classes with labels.

    In this direction it is finite for targets that are 0 on most classes, such as the hard ones.

    Args:
        target: :math:`q`, ``(B, N)``, see :func:`~vision_language.muka.targets.amalgamation_targets` and
            :func:`~vision_language.muka.baselines.ensemble_probabilities`.
        supervised_logits: of the supervised teacher, ``(B, N)``, in the order of the union.
    """
    return float(soft_target_kl(supervised_logits, target))


def all_diagnostics(
    scores: Tensor,
    labels: Tensor,
    union: LabelUnion,
    teacher_logits: Sequence[Tensor] = (),
    student_logits: Tensor | None = None,
) -> dict[str, Any]:
    """All of the above that the arguments allow, as fractions, ready for JSON.

    Args:
        scores: ``(B, T)``.
        labels: gold classes as numbers of the union, ``(B)``.
        union: the classes of the teachers.
        teacher_logits: ``(B, C_t)`` each: how good each teacher is where it knows the class.
        student_logits: ``(B, N)``: its accuracy, overall and by teacher, and its calibration error.

    Returns:
        ``selection_accuracy``, ``chance_selection_accuracy`` (the share that a teacher knows, mean over the teachers)
        and ``score_auroc``; ``teacher_accuracy``; ``accuracy``, ``accuracy_by_teacher`` and ``calibration_error``.
    """
    inside = specialty(labels, union)
    results: dict[str, Any] = {
        "selection_accuracy": float(selected_right(scores, labels, union).double().mean()),
        "chance_selection_accuracy": float(inside.double().mean()),
        "score_auroc": score_auroc(scores, labels, union),
    }
    if teacher_logits:
        results["teacher_accuracy"] = teacher_accuracy(teacher_logits, labels, union)
    if student_logits is not None:
        confidence, predictions = student_logits.softmax(-1).max(-1)
        right = predictions == labels
        results["accuracy"] = float(right.double().mean())
        results["accuracy_by_teacher"] = accuracy_by_teacher(predictions, labels, union)
        results["calibration_error"] = reliability(confidence, right).calibration_error
    return results
