"""Cuts lines that are longer than a model reads into parts."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["parts"]

_SENTENCE_ENDS = tuple(".!?…:;。！？；")
_WORD_BEGINS, _WORD_CONTINUES = "▁", "@@"  # of SentencePiece, of subword-nmt


def parts(symbols: Sequence[str], most: int, bpe: str) -> list[list[str]]:
    """Consecutive parts of ``symbols``, each of at most ``most`` symbols.

    A part ends at the last end of a sentence in its second half; if there is none, at the last end of a word; if there
    is none either (a script without spaces), where the part is full.

    Args:
        symbols: the subwords of a line.
        most: how many symbols the model reads, beside the end-of-sentence symbol.
        bpe: kind of the subwords, one of :data:`fairseq_ext.text.SUBWORDS`.
    """
    result, rest = [], list(symbols)
    while len(rest) > most:
        words = [end for end in range(1, most + 1) if _is_word_end(rest[end - 1], rest[end], bpe)]
        sentences = [end for end in words if end > most // 2 and rest[end - 1].endswith(_SENTENCE_ENDS)]
        end = max(sentences or words or [most])
        result.append(rest[:end])
        rest = rest[end:]
    return [*result, rest]


def _is_word_end(symbol: str, following: str, bpe: str) -> bool:
    if bpe == "sentencepiece":
        return following.startswith(_WORD_BEGINS)
    return not symbol.endswith(_WORD_CONTINUES)
