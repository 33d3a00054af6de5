"""Turns captions into token ids: of whole words above a count, or of SentencePiece."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from fairseq_ext.captions.tokenizer import tokenize
from fairseq_ext.text import learn_subwords, subword_encoder
from fairseq_ext.training.errors import OptionError
from fairseq_ext.training.progress import progress

__all__ = ["Vocabulary"]


class Vocabulary:
    """The words or pieces of the training captions, as fairseq's dictionary.

    Args:
        captions: captions of the training split; no others may decide what a model can say.
        min_count: rarer words are unknown; pieces never are.
        pieces: size of a SentencePiece model that is learned on the tokenised captions; 0: words.
        folder: folder that the SentencePiece model is written to.

    Attributes:
        dictionary: ``fairseq.data.Dictionary``.

    Raises:
        OptionError: no word is left, or the captions do not allow so many pieces.
    """

    def __init__(self, captions: Sequence[str], min_count: int, pieces: int, folder: Path) -> None:
        # An import of seconds, which other commands do without.
        from fairseq.data import Dictionary

        # Kept, as tokenising takes longer than all else.
        self._texts = {caption: tokenize(caption) for caption in progress(captions, "words", unit=" captions")}
        texts = [self._texts[caption] for caption in captions]
        self._into_pieces = _learned(texts, folder, pieces) if pieces else str
        self.counts = Counter(word for caption in captions for word in self.split(caption))
        self.dictionary: Any = Dictionary()
        for word, count in self.counts.items():
            self.dictionary.add_symbol(word, n=count)
        self.dictionary.finalize(threshold=1 if pieces else min_count, padding_factor=1)
        if not self.size:
            raise OptionError(f"--min-count {min_count}: no word of the training captions is so frequent")

    def split(self, caption: str) -> list[str]:
        """The words or pieces of a caption."""
        return self._into_pieces(self._texts.get(caption) or tokenize(caption)).split()

    @property
    def size(self) -> int:
        """Number of words or pieces, without special symbols."""
        return len(self.dictionary) - self.dictionary.nspecial

    @property
    def coverage(self) -> float:
        """The share of the training captions' words that are in the dictionary."""
        covered = sum(count for word, count in self.counts.items() if word in self.dictionary)
        return covered / self.counts.total()

    def encode(self, caption: str) -> torch.Tensor:
        """Token ids with the end of sentence."""
        ids = [self.dictionary.index(word) for word in self.split(caption)]
        return torch.tensor([*ids, self.dictionary.eos()], dtype=torch.int32)

    def save(self, folder: Path) -> None:
        """Write ``dict.txt``."""
        self.dictionary.save(str(folder / "dict.txt"))


def _learned(texts: Iterable[str], folder: Path, size: int) -> Callable[[str], str]:
    file = folder / "captions.txt"
    file.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    learn_subwords("sentencepiece", [file], folder, size, "--sentencepiece")
    file.unlink()
    return subword_encoder("sentencepiece", folder)
