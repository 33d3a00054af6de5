"""fairseq criterions; importing this package registers them."""

from fairseq_ext.criterions.label_smoothed_encouraging_loss import (
    LabelSmoothedEncouragingLossCriterion,
    LabelSmoothedEncouragingLossCriterionConfig,
)

__all__ = ["LabelSmoothedEncouragingLossCriterion", "LabelSmoothedEncouragingLossCriterionConfig"]
