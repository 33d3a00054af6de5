"""Losses in plain torch."""

from fairseq_ext.losses.bonus_schedule import EncouragingLoss, bonus_schedule
from fairseq_ext.losses.common import reduce_weighted
from fairseq_ext.losses.divergence import (
    distillation_kl,
    matrix_kl,
    soft_target_cross_entropy,
    soft_target_kl,
)
from fairseq_ext.losses.encouraging import encouraging_loss, encouraging_loss_terms
from fairseq_ext.losses.encouraging_variants import (
    binary_encouraging_loss,
    halted_focal_loss,
    mirror_bonus_loss,
    softmax_focal_loss,
)
from fairseq_ext.losses.fused_linear import fused_linear_encouraging_loss
from fairseq_ext.losses.imbalance import (
    class_balanced_softmax_loss,
    class_weights,
    focal_loss,
    logit_adjusted_cross_entropy,
    reweighted_cross_entropy,
)

__all__ = [
    "EncouragingLoss",
    "binary_encouraging_loss",
    "bonus_schedule",
    "class_balanced_softmax_loss",
    "class_weights",
    "distillation_kl",
    "encouraging_loss",
    "encouraging_loss_terms",
    "focal_loss",
    "fused_linear_encouraging_loss",
    "halted_focal_loss",
    "logit_adjusted_cross_entropy",
    "matrix_kl",
    "mirror_bonus_loss",
    "reduce_weighted",
    "reweighted_cross_entropy",
    "soft_target_cross_entropy",
    "soft_target_kl",
    "softmax_focal_loss",
]
