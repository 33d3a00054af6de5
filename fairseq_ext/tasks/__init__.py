"""fairseq tasks; importing this package registers them."""

from fairseq_ext import compat
from fairseq_ext.tasks.caption_scorer import CaptionScorer
from fairseq_ext.tasks.captioning import CaptioningTask

__all__ = ["CaptionScorer", "CaptioningTask"]

compat.apply()  # a program may import this module first, before fairseq
