"""fairseq criterions; importing this package registers them."""

from fairseq_ext.criterions.label_smoothed_encouraging_loss import (
    LabelSmoothedEncouragingLossCriterion,
    LabelSmoothedEncouragingLossCriterionConfig,
)
from fairseq_ext.criterions.span_loss import AdaptiveLossWithSpan, CrossEntropyWithSpanCriterion

__all__ = [
    "AdaptiveLossWithSpan",
    "CrossEntropyWithSpanCriterion",
    "LabelSmoothedEncouragingLossCriterion",
    "LabelSmoothedEncouragingLossCriterionConfig",
]
