"""``--scoring captions``: the line that ``fairseq-generate`` prints for captions in place of a score."""

# No `from __future__ import annotations` here: fairseq reads the field types of the dataclass.
from dataclasses import dataclass

from fairseq.dataclass import FairseqDataclass
from fairseq.scoring import BaseScorer, register_scorer

__all__ = ["HOW_TO_SCORE", "CaptionScorer", "CaptionScorerConfig"]

HOW_TO_SCORE = "score the output with `fairseq-ext captions score DATA --split SPLIT --generated FILE`"


@dataclass
class CaptionScorerConfig(FairseqDataclass):
    """It has no options."""


@register_scorer("captions", dataclass=CaptionScorerConfig)
class CaptionScorer(BaseScorer):
    """Only counts captions: fairseq hands a scorer one reference per image, and only in the words of the dictionary.

    BLEU of one such reference was 9.13 where the same captions had 24.8 against all five.
    """

    def score(self) -> float:
        """The number of captions."""
        return float(len(self.pred))

    def result_string(self) -> str:
        """The number of captions, and how to score them."""
        return f"{len(self.pred)} captions, not scored: {HOW_TO_SCORE}"
