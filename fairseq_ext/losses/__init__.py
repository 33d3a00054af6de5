"""Losses in plain torch."""

from fairseq_ext.losses.encouraging import (
    EncouragingLoss,
    bonus_schedule,
    encouraging_loss,
    encouraging_loss_terms,
    halted_focal_loss,
    mirror_bonus_loss,
)

__all__ = [
    "EncouragingLoss",
    "bonus_schedule",
    "encouraging_loss",
    "encouraging_loss_terms",
    "halted_focal_loss",
    "mirror_bonus_loss",
]
