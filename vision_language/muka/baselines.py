"""Amalgamation without uncertainty: the ensemble of the teachers, vanilla distillation of it, and UHC.

The baselines of "Model Uncertainty-Aware Knowledge Amalgamation for Pre-Trained Language Models", arXiv:2112.07327.
Distillation: Geoffrey Hinton, Oriol Vinyals, Jeff Dean, "Distilling the Knowledge in a Neural Network",
arXiv:1503.02531. UHC: Jayakorn Vongkulbhisal, Phongtharin Vinayavekhin, Marco Visentini-Scarzanella, "Unifying
Heterogeneous Classifiers with Distillation", CVPR 2019, arXiv:1904.06062.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fairseq_ext.losses import distillation_kl, soft_target_kl
from vision_language.muka.targets import LabelUnion, tempered_softmax

__all__ = ["ensemble_probabilities", "uhc_loss", "vanilla_kd_loss"]


def _union(teacher_logits: Sequence[Tensor], union: LabelUnion | None) -> LabelUnion:
    union = union or LabelUnion.disjoint([logits.size(-1) for logits in teacher_logits])
    union.check(teacher_logits)
    return union


@torch.no_grad()
def ensemble_probabilities(
    teacher_logits: Sequence[Tensor], union: LabelUnion | None = None, temperature: float = 1.0
) -> Tensor:
    r"""One softmax over the logits of all teachers, side by side ("teacher concat" in arXiv:2112.07327).

    .. math:: q = \mathrm{softmax}([z_1; \dots; z_T] / T)

    Its argmax is the ensemble that needs no training. For classes that several teachers know the probabilities add up
    (our choice).

    Args:
        teacher_logits: ``(B, C_t)`` each.
        union: which class is which. Default: all classes differ.
        temperature: :math:`T`. Default 1, as the released scripts.

    Returns:
        ``(B, N)``, in single precision at least.

    Raises:
        ValueError: a temperature that is not positive and finite, or logits of other classes than ``union``.
    """
    union = _union(teacher_logits, union)
    joint = tempered_softmax(torch.cat(list(teacher_logits), -1), temperature)
    parts = joint.split([logits.size(-1) for logits in teacher_logits], -1)
    return torch.stack([union.pad(teacher, part) for teacher, part in enumerate(parts)]).sum(0)


def vanilla_kd_loss(
    student_logits: Tensor,
    teacher_logits: Sequence[Tensor],
    union: LabelUnion | None = None,
    temperature: float = 1.0,
) -> Tensor:
    r"""Distillation of the ensemble (arXiv:1503.02531).

    .. math:: L = \frac{T^2}{B} \sum_i \mathrm{KL}(q_i \,\|\, \mathrm{softmax}(z_i / T))

    with q of :func:`ensemble_probabilities`.

    Args:
        student_logits: :math:`z`, ``(B, N)``.
        teacher_logits: ``(B, C_t)`` each; no gradient flows into them.
        union: which class is which. Default: all classes differ.
        temperature: :math:`T`. Default 1, as the released scripts.
    """
    target = ensemble_probabilities(teacher_logits, union, temperature)
    return temperature**2 * soft_target_kl(student_logits, target, temperature)


def uhc_loss(
    student_logits: Tensor,
    teacher_logits: Sequence[Tensor],
    union: LabelUnion | None = None,
    temperature: float = 1.0,
) -> Tensor:
    r"""Unifying heterogeneous classifiers, the cross-entropy variant (arXiv:1904.06062).

    .. math:: L = \frac{T^2}{B} \sum_i \sum_t \mathrm{KL}\big(\mathrm{softmax}(z_{t,i} / T) \,\|\,
              \mathrm{softmax}(z_i[C_t] / T)\big)

    The student is compared with each teacher on that teacher's classes alone, so classes of different teachers are
    never compared with each other.

    Args:
        student_logits: :math:`z`, ``(B, N)``.
        teacher_logits: :math:`z_t`, ``(B, C_t)`` each; no gradient flows into them.
        union: which class is which. Default: all classes differ.
        temperature: :math:`T`. Default 1, as the released scripts.
    """
    union = _union(teacher_logits, union)
    return torch.stack(
        [
            distillation_kl(student_logits[:, union.columns(teacher, logits.device)], logits, temperature)
            for teacher, logits in enumerate(teacher_logits)
        ]
    ).sum()
