"""Losses in plain torch."""

from fairseq_ext.losses.divergence import (
    distillation_kl,
    matrix_kl,
    soft_target_cross_entropy,
    soft_target_kl,
)
from fairseq_ext.losses.encouraging import (
    EncouragingLoss,
    bonus_schedule,
    encouraging_loss,
    encouraging_loss_terms,
    halted_focal_loss,
    mirror_bonus_loss,
)
from fairseq_ext.losses.imbalance import (
    class_balanced_softmax_loss,
    focal_loss,
    reduce_weighted,
    reweighted_cross_entropy,
)

__all__ = [
    "EncouragingLoss",
    "bonus_schedule",
    "class_balanced_softmax_loss",
    "distillation_kl",
    "encouraging_loss",
    "encouraging_loss_terms",
    "focal_loss",
    "halted_focal_loss",
    "matrix_kl",
    "mirror_bonus_loss",
    "reduce_weighted",
    "reweighted_cross_entropy",
    "soft_target_cross_entropy",
    "soft_target_kl",
]
