"""The training losses, and the number of epochs with the bonus."""

from __future__ import annotations

from fairseq_ext.losses import EncouragingLoss
from graph.graph_classification.options import Options

__all__ = ["bonus_epochs", "make_loss"]


def make_loss(options: Options) -> EncouragingLoss:
    """The loss; ``set_epoch`` takes epochs counted from 1.

    Cross-entropy is the encouraging loss with a bonus of weight 0. Runs of one seed with either loss are therefore
    equal to the bit until the bonus starts.
    """
    if options.loss == "cross-entropy":
        return EncouragingLoss(log_end=options.log_end, bonus_weight=0.0)
    return EncouragingLoss(log_end=options.log_end, defer_start=options.last_epoch_without_bonus + 1)


def bonus_epochs(options: Options, epochs: int) -> int:
    """How many of the first ``epochs`` had the bonus."""
    return 0 if options.loss == "cross-entropy" else max(epochs - 1 - options.last_epoch_without_bonus, 0)
