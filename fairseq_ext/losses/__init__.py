"""Losses in plain torch."""

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
    "encouraging_loss",
    "encouraging_loss_terms",
    "focal_loss",
    "halted_focal_loss",
    "mirror_bonus_loss",
    "reduce_weighted",
    "reweighted_cross_entropy",
]
