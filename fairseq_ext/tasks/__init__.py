"""fairseq tasks; importing this package registers them."""

from fairseq_ext.tasks.caption_scorer import CaptionScorer
from fairseq_ext.tasks.captioning import CaptioningTask

__all__ = ["CaptionScorer", "CaptioningTask"]
