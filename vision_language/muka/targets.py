r"""Targets over the union of the teachers' classes, and the loss of a student that learns them.

    q(y | x) = Σ_t P(y ∈ C_t | x) p_t(y | x)      the teachers' uncertainty estimates the first factor

Lei Li, Yankai Lin, Xuancheng Ren, Guangxiang Zhao, Peng Li, Jie Zhou, Xu Sun, "Model Uncertainty-Aware Knowledge
Amalgamation for Pre-Trained Language Models", arXiv:2112.07327, and its revision "From Mimicking to Integrating:
Knowledge Integration for Pre-Trained Language Models", arXiv:2210.05230.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fairseq_ext.losses import soft_target_kl
from fairseq_ext.losses.common import check_temperature
from fairseq_ext.precision import compute_dtype
from fairseq_ext.training.errors import DataError

__all__ = [
    "LabelUnion",
    "amalgamation_loss",
    "amalgamation_targets",
    "margin_weights",
    "tempered_softmax",
    "union_of_labels",
]

MARGIN_FLOOR = 1e-6


@dataclass(frozen=True)
class LabelUnion:
    """The classes of all teachers together. Made by :func:`union_of_labels`, or :meth:`disjoint` from counts alone.

    Args:
        names: of the N classes of the union.
        index: for each teacher, the class of the union that each of its own classes is.
    """

    names: tuple[str, ...]
    index: tuple[tuple[int, ...], ...]

    @classmethod
    def disjoint(cls, sizes: Sequence[int]) -> LabelUnion:
        """The union of teachers that share no class, named by their numbers in the union."""
        starts = [sum(sizes[:t]) for t in range(len(sizes))]
        index = tuple(tuple(range(start, start + size)) for start, size in zip(starts, sizes, strict=True))
        return cls(tuple(str(label) for label in range(sum(sizes))), index)

    def __len__(self) -> int:
        return len(self.names)

    def columns(self, teacher: int, device: torch.device | None = None) -> Tensor:
        """``index`` of one teacher as a tensor, ``(C_t)``."""
        return torch.tensor(self.index[teacher], device=device)

    def membership(self, device: torch.device | None = None) -> Tensor:
        """Whether a teacher knows a class, ``(T, N)``."""
        membership = torch.zeros(len(self.index), len(self), dtype=torch.bool, device=device)
        for teacher in range(len(self.index)):
            membership[teacher, self.columns(teacher, device)] = True
        return membership

    def pad(self, teacher: int, values: Tensor) -> Tensor:
        """Values over the classes of one teacher, ``(*, C_t)``, as values over the union, ``(*, N)``, 0 elsewhere."""
        padded = values.new_zeros(*values.shape[:-1], len(self))
        padded[..., self.columns(teacher, values.device)] = values
        return padded

    def check(self, teacher_logits: Sequence[Tensor]) -> None:
        """Refuses logits that are not those of these teachers, in order."""
        sizes, expected = [logits.size(-1) for logits in teacher_logits], [len(index) for index in self.index]
        if sizes != expected:
            raise ValueError(f"teacher_logits must have {expected} classes, got {sizes}")


def union_of_labels(labels: Sequence[Sequence[str]]) -> LabelUnion:
    """The union of the teachers' label names, in the order of the teachers.

    A name that several teachers know is one class, at its first place. The released code has disjoint classes only.

    Args:
        labels: names of each teacher's classes, in the order of its logits.

    Raises:
        DataError: no teacher, a teacher without classes, or one that has a name twice.

    Example:
        >>> union_of_labels([["sports", "world"], ["world", "business"]])
        LabelUnion(names=('sports', 'world', 'business'), index=((0, 1), (1, 2)))
    """
    if not labels:
        raise DataError("no teacher: at least one list of labels is needed")
    for teacher, names in enumerate(labels):
        if not names:
            raise DataError(f"teacher {teacher} has no labels")
        twice = sorted({name for name in names if list(names).count(name) > 1})
        if twice:
            raise DataError(f"teacher {teacher} has the label {twice[0]!r} twice; names must differ within a teacher")
    position = {name: place for place, name in enumerate(dict.fromkeys(name for names in labels for name in names))}
    return LabelUnion(tuple(position), tuple(tuple(position[name] for name in names) for names in labels))


def tempered_softmax(logits: Tensor, temperature: float) -> Tensor:
    """``softmax(logits / temperature)`` over the last axis, in float32 at least: rounded to half it sums to 1 roughly.

    Args:
        logits: ``(*, C)``.
        temperature: above 0 and finite.

    Raises:
        ValueError: another temperature.
    """
    check_temperature(temperature)
    return (logits.to(compute_dtype(logits)) / temperature).softmax(-1)


@torch.no_grad()
def amalgamation_targets(
    teacher_logits: Sequence[Tensor],
    scores: Tensor,
    union: LabelUnion | None = None,
    *,
    hard: bool = False,
    temperature: float = 1.0,
    score_temperature: float = 0.2,
) -> Tensor:
    r"""A distribution over the union of the classes from teachers that know a part each (arXiv:2112.07327).

    .. math:: q = \sum_t w_t\, \mathrm{pad}_t(\mathrm{softmax}(z_t / T)), \qquad w = \mathrm{softmax}(s / \tau)

    or, with ``hard``, only the teacher of the highest score, :math:`w_t = [t = \arg\max s]` (the first wins a tie). For
    classes that several teachers know the probabilities add up, so that q sums to 1 (our choice).

    Args:
        teacher_logits: :math:`z_t` of one pass without dropout, ``(B, C_t)`` each.
        scores: :math:`s`, ``(B, T)``, see :func:`~vision_language.muka.uncertainty.teacher_scores`.
        union: which class is which. Default: all classes differ.
        hard: golden teacher selection instead of the mixture ("Hard" and "Soft" in the released code).
        temperature: :math:`T`. Default 1, as the released scripts.
        score_temperature: :math:`\tau`. Default 0.2, as the released code.

    Returns:
        ``(B, N)``, in single precision at least.

    Raises:
        ValueError: a temperature that is not positive and finite, or shapes that do not belong together.
    """
    check_temperature(temperature)
    check_temperature(score_temperature, "score_temperature")
    union = union or LabelUnion.disjoint([logits.size(-1) for logits in teacher_logits])
    union.check(teacher_logits)
    expected = (teacher_logits[0].size(0), len(teacher_logits))
    if tuple(scores.shape) != expected:
        raise ValueError(f"scores must be (batch, teachers), {expected}, got {tuple(scores.shape)}")
    if hard:
        weights = torch.zeros_like(scores, dtype=compute_dtype(scores)).scatter_(
            -1, scores.argmax(-1, keepdim=True), 1.0
        )
    else:
        weights = tempered_softmax(scores, score_temperature)
    padded = [union.pad(t, tempered_softmax(logits, temperature)) for t, logits in enumerate(teacher_logits)]
    return torch.stack([weights[:, t, None] * one for t, one in enumerate(padded)]).sum(0)


def margin_weights(scores: Tensor) -> Tensor:
    r"""Weight of each example by how clearly one teacher leads (arXiv:2210.05230).

    .. math:: m = s_{(1)} - s_{(2)} + 10^{-6}

    the two largest scores. Examples on which the teachers compete count less. The weights are not normalised over a
    batch, so they shrink the effective learning rate, as the released code.

    Args:
        scores: ``(B, T)``. A single teacher has no rival: its weights are 1 (our choice).

    Returns:
        ``(B)``, in single precision at least.
    """
    scores = scores.to(compute_dtype(scores))
    if scores.size(-1) == 1:
        return torch.ones_like(scores[:, 0])
    first, second = scores.topk(2, dim=-1).values.unbind(-1)
    return first - second + MARGIN_FLOOR


def amalgamation_loss(
    student_logits: Tensor, target: Tensor, temperature: float = 1.0, weight: Tensor | None = None
) -> Tensor:
    r"""Divergence of the student from the amalgamated target (arXiv:2112.07327).

    .. math:: L = \frac1B \sum_i m_i\, \mathrm{KL}(q_i \,\|\, \mathrm{softmax}(z_i / T))

    without the :math:`T^2` of the baselines, as the released code.

    Args:
        student_logits: :math:`z`, ``(B, N)``.
        target: :math:`q`, ``(B, N)``, see :func:`amalgamation_targets`.
        temperature: :math:`T`, the one of the target. Default 1, as the released scripts.
        weight: :math:`m`, ``(B)``, see :func:`margin_weights`. Default: 1, which we call MUKA; with weights it is
            MUKI. Of the two abstracts, only that of MUKI (arXiv:2210.05230) speaks of such weights.

    Returns:
        Scalar.

    Example:
        >>> target = amalgamation_targets(teacher_logits, scores)
        >>> amalgamation_loss(student(**batch).logits, target, weight=margin_weights(scores)).backward()
    """
    return soft_target_kl(student_logits, target, temperature, weight=weight)
