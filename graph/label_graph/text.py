"""From text to word ids: the pieces of a text, the words of a piece, the vocabulary, and word vectors."""

from __future__ import annotations

import functools
import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fairseq_ext.training.errors import OptionError, choose

__all__ = ["PIECES", "TOKENIZERS", "Vocabulary", "split_text", "tokenizer", "train_vectors"]

PADDING, UNKNOWN = 0, 1
SPECIAL = 2
PIECES = ("whole", "sentences", "clauses")
TOKENIZERS = ("words", "jieba")

# The end of a sentence needs no space after it in Chinese, and does in languages with spaces ("3.5", "U.S.A.").
_SENTENCE_END = r"(?<=[。！？…])|(?<=[.!?])\s+"
_JOINERS = "\u200c\u200d"  # invisible characters within words of Persian and of Indian languages
_CLAUSE_END = _SENTENCE_END + r"|(?<=[，；：])|(?<=[,;:])\s+"


def split_text(text: str, pieces: str = "whole") -> list[str]:
    """A text as reviews: the whole, its sentences, or its clauses (also cut after commas, colons and semicolons)."""
    choose("--pieces", pieces, PIECES)
    if pieces == "whole":
        return [text]
    parts = re.split(_SENTENCE_END if pieces == "sentences" else _CLAUSE_END, text)
    return [part.strip() for part in parts if part.strip()]


@functools.cache
def _word() -> re.Pattern[str]:
    """A run of letters and digits with the marks on them: for ``re`` alone, Hindi's vowel signs are neither."""
    marks = (mark for mark in map(chr, range(0x300, 0x20000)) if unicodedata.category(mark) in ("Mn", "Mc"))
    letters = rf"\w+(?:[{''.join(marks)}{_JOINERS}]+\w*)*"
    return re.compile(rf"{letters}(?:['’]{letters})*")


def tokenizer(name: str) -> Callable[[str], list[str]]:
    """The function that cuts a text into words.

    ``"words"`` gives runs of letters, digits and their marks in lower case, for languages with spaces; ``"jieba"``
    gives Chinese words.

    Raises:
        OptionError: jieba is not installed.
    """
    if choose("--tokenizer", name, TOKENIZERS) == "words":
        return lambda text: _word().findall(_normal(text))
    try:
        import jieba
    except ImportError as error:
        raise OptionError(
            "--tokenizer jieba: the package jieba is not installed: pip install 'fairseq-ext[chinese]'"
        ) from error
    jieba.setLogLevel(logging.WARNING)
    return lambda text: [word for word in jieba.lcut(_normal(text)) if not word.isspace()]


def _normal(text: str) -> str:
    """The text in lower case, with only one way to write an accented letter."""
    # Python's lower case of the Turkish İ has a second dot, beside the one of the i.
    return unicodedata.normalize("NFC", text.lower()).replace("i\u0307", "i")


@dataclass(frozen=True)
class Vocabulary:
    """Words and their ids: 0 is padding, 1 is any unknown word, and words follow by descending frequency."""

    words: tuple[str, ...]

    @classmethod
    def build(cls, sentences: Iterable[Sequence[str]], min_count: int = 1) -> Vocabulary:
        counts = Counter(word for sentence in sentences for word in sentence)
        return cls(tuple(word for word, count in counts.most_common() if count >= min_count))

    def __post_init__(self) -> None:
        ids = {word: number for number, word in enumerate(self.words, SPECIAL)}
        object.__setattr__(self, "_ids", ids)

    def __len__(self) -> int:
        return len(self.words) + SPECIAL

    def encode(self, reviews: Sequence[Sequence[Sequence[str]]], max_reviews: int, max_words: int) -> Tensor:
        """Word ids ``(samples, max_reviews, max_words)``, int32, of the first reviews and of the first words of each.

        An id takes 4 bytes per word, a dense 100-dimensional vector would take 800.
        """
        ids = np.full((len(reviews), max_reviews, max_words), PADDING, dtype=np.int32)
        ids_of = self._ids  # type: ignore[attr-defined]
        for row, sample in zip(ids, reviews, strict=True):
            for line, review in zip(row, sample, strict=False):
                kept = review[:max_words]
                line[: len(kept)] = [ids_of.get(word, UNKNOWN) for word in kept]
        return torch.from_numpy(ids)


def train_vectors(sentences: Sequence[Sequence[str]], vocabulary: Vocabulary, dim: int = 100, seed: int = 1) -> Tensor:
    """Word vectors by gensim's Word2Vec with its defaults (CBOW, window 5, five epochs), ``(len(vocabulary), dim)``.

    The vectors of padding and unknown words are zero. One worker trains, so that a seed always gives the same vectors.
    """
    from gensim.models import Word2Vec

    words = set(vocabulary.words)
    kept = [[word for word in sentence if word in words] for sentence in sentences]
    vectors = Word2Vec(kept, vector_size=dim, min_count=1, seed=seed, workers=1).wv
    table = np.zeros((len(vocabulary), dim), dtype=np.float32)
    table[SPECIAL:] = vectors[list(vocabulary.words)]
    return torch.from_numpy(table)
