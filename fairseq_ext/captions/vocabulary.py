"""Captions to token ids: whole words above a count, or SentencePiece's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from fairseq_ext.captions.tokenizer import tokenize
from fairseq_ext.training.errors import OptionError

__all__ = ["Vocabulary"]


class Vocabulary:
    """The words of the training captions, as fairseq's dictionary.

    Args:
        captions: of training; no other may decide what a model can say.
        min_count: rarer words are unknown.

    Attributes:
        dictionary: ``fairseq.data.Dictionary``.

    Raises:
        OptionError: no word is left.
    """

    def __init__(self, captions: Sequence[str], min_count: int) -> None:
        # An import of seconds, which other commands do without.
        from fairseq.data import Dictionary

        self._texts = {caption: tokenize(caption) for caption in captions}  # once: it takes longer than all else
        self.counts = Counter(word for caption in captions for word in self.split(caption))
        self.dictionary: Any = Dictionary()
        for word, count in self.counts.items():
            self.dictionary.add_symbol(word, n=count)
        self.dictionary.finalize(threshold=min_count, padding_factor=1)
        if not self.size:
            raise OptionError(f"--min-count {min_count}: no word of the training captions is so frequent")

    def split(self, caption: str) -> list[str]:
        """The words of a caption."""
        return (self._texts.get(caption) or tokenize(caption)).split()

    @property
    def size(self) -> int:
        """Words, without those that stand for no word."""
        return len(self.dictionary) - self.dictionary.nspecial

    @property
    def coverage(self) -> float:
        """The share of the training captions' words that are in the dictionary."""
        known = sum(count for word, count in self.counts.items() if word in self.dictionary)
        return known / self.counts.total()

    def encode(self, caption: str) -> torch.Tensor:
        """Token ids with the end of sentence."""
        ids = [self.dictionary.index(word) for word in self.split(caption)]
        return torch.tensor([*ids, self.dictionary.eos()], dtype=torch.int32)

    def save(self, folder: Path) -> None:
        """Write ``dict.txt``."""
        self.dictionary.save(str(folder / "dict.txt"))
