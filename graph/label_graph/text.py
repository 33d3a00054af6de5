"""From text to word ids: the pieces of a text, the words of a piece, the vocabulary, and word vectors."""

from __future__ import annotations

import functools
import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fairseq_ext.training.errors import OptionError, choose
from fairseq_ext.training.settings import Blocks

__all__ = ["PIECES", "TOKENIZERS", "Sentences", "Vocabulary", "WordIds", "split_text", "tokenizer", "train_vectors"]

PADDING, UNKNOWN = 0, 1
SPECIAL = 2
PIECES = ("whole", "sentences", "clauses")
TOKENIZERS = ("words", "jieba")
BLOCK = 4096
"""Samples that are padded, or otherwise made larger, at once for a digest."""

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

    def ids(self, words: Iterable[str]) -> np.ndarray:
        """The ids of words one after the other, int32."""
        ids_of = self._ids  # type: ignore[attr-defined]
        return np.fromiter((ids_of.get(word, UNKNOWN) for word in words), dtype=np.int32)

    def encode(self, reviews: Sequence[Sequence[Sequence[str]]], max_reviews: int, max_words: int) -> WordIds:
        """Word ids of the first reviews of each sample, and of the first words of each review.

        An id takes 4 bytes per word, a dense 100-dimensional vector would take 800.
        """
        read = (review[:max_words] for sample in reviews for review in sample[:max_reviews])
        numbers = np.fromiter((min(len(sample), max_reviews) for sample in reviews), dtype=np.int64)
        lengths = (min(len(review), max_words) for sample in reviews for review in sample[:max_reviews])
        return WordIds(
            torch.from_numpy(self.ids(chain.from_iterable(read))),
            torch.from_numpy(np.fromiter(lengths, dtype=np.int32)),
            torch.from_numpy(numbers),
            (max_reviews, max_words),
        )


class WordIds:
    """Word ids of samples, kept without padding.

    Args:
        words: ids of all words, int32, ``(words)``.
        lengths: number of words of each review, ``(reviews)``.
        numbers: number of reviews of each sample, ``(samples)``.
        size: the most reviews of a sample and the most words of a review, R and T.

    Indexed by numbers of samples, it gives their ids, int32, ``(N, R, T)``, padded with 0.
    """

    def __init__(self, words: Tensor, lengths: Tensor, numbers: Tensor, size: tuple[int, int]) -> None:
        self.words, self.lengths, self.size = words, lengths, size
        self._first_review = F.pad(numbers.cumsum(0), (1, 0))
        self._first_word = F.pad(lengths.cumsum(0), (1, 0))[self._first_review]

    def __len__(self) -> int:
        return len(self._first_review) - 1

    def __getitem__(self, samples: Tensor) -> Tensor:
        first, end = self._first_review[samples], self._first_review[samples + 1]
        lengths = torch.zeros(len(samples), self.size[0], dtype=torch.int32)
        lengths[torch.arange(self.size[0]) < (end - first)[:, None]] = self.lengths[_runs(first, end)]
        ids = torch.full((len(samples), *self.size), PADDING, dtype=torch.int32)
        words = _runs(self._first_word[samples], self._first_word[samples + 1])
        ids[torch.arange(self.size[1]) < lengths[..., None]] = self.words[words]
        return ids

    def blocks(self) -> Blocks:
        """All ids, ``(samples, R, T)``, for :func:`~fairseq_ext.training.settings.digest`."""
        parts = torch.arange(len(self)).split(BLOCK)
        return Blocks(np.int32, (len(self), *self.size), (self[part].numpy() for part in parts))


def _runs(first: Tensor, end: Tensor) -> Tensor:
    """The numbers from each of ``first`` to before its ``end``, one run after the other."""
    counts = end - first
    return torch.arange(int(counts.sum())) + (first - counts.cumsum(0) + counts).repeat_interleave(counts)


class Sentences:
    """Sentences kept as word ids, 4 bytes per word; iterated over, they are lists of words.

    Args:
        sentences: words of each sentence.
        vocabulary: the words that are kept; others are left out.
    """

    def __init__(self, sentences: Sequence[Sequence[str]], vocabulary: Vocabulary) -> None:
        self._ids = vocabulary.ids(chain.from_iterable(sentences))
        self._ends = np.cumsum([0, *map(len, sentences)])
        self._words = vocabulary.words

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __iter__(self) -> Iterator[list[str]]:
        for start, end in zip(self._ends, self._ends[1:], strict=False):
            yield [self._words[number - SPECIAL] for number in self._ids[start:end].tolist() if number != UNKNOWN]


def train_vectors(
    sentences: Sentences | Sequence[Sequence[str]], vocabulary: Vocabulary, dim: int = 100, seed: int = 1
) -> Tensor:
    """Word vectors by gensim's Word2Vec with its defaults (CBOW, window 5, five epochs), ``(len(vocabulary), dim)``.

    The vectors of padding and unknown words are zero. One worker trains, so that a seed always gives the same vectors.
    """
    from gensim.models import Word2Vec

    kept = sentences if isinstance(sentences, Sentences) else Sentences(sentences, vocabulary)
    vectors = Word2Vec(kept, vector_size=dim, min_count=1, seed=seed, workers=1).wv
    table = np.zeros((len(vocabulary), dim), dtype=np.float32)
    table[SPECIAL:] = vectors[list(vocabulary.words)]
    return torch.from_numpy(table)
