"""Text in one form, whatever is in it."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairseq_ext import text
from fairseq_ext.training.errors import DataError


def test_clean() -> None:
    assert text.clean("\ufeff a\x00b\t c\u00a0d\u2028e\r\x0c f\x7f  \n") == "ab c d e f"
    assert text.clean("été 中文 👩\u200d🔬") == "été 中文 👩\u200d🔬"
    assert text.clean("cafe\u0301 ﬁn") == "café ﬁn"
    assert text.clean("cafe\x00\u0301") == "café", "what the control character kept apart belongs together"
    assert text.clean("cafe\u0301 ﬁn\u00a8x", "NFKC") == "café fin \u0308x"
    assert text.clean("café", "NFD") == "cafe\u0301" == text.clean("cafe\u0301", "none")


@given(st.text(), st.sampled_from(text.UNICODE_FORMS))
def test_a_clean_line_is_one_line_of_one_form(line: str, form: str) -> None:
    cleaned = text.clean(line, form)
    assert text.clean(cleaned, form) == cleaned
    assert len(cleaned.splitlines()) <= 1 and cleaned.split() == cleaned.split(" ") * bool(cleaned)
    assert not any(unicodedata.category(letter) == "Cc" for letter in cleaned)
    assert form == "none" or unicodedata.is_normalized(form, cleaned)


@pytest.mark.parametrize("length", [4193, 100_000])
def test_subwords_are_learned_on_lines_of_any_length(tmp_path: Path, length: int) -> None:
    rare = "\u00e4\u4e2d"
    corpus = tmp_path / "train.de"
    corpus.write_text("ab cd\n" + "ab " * (length // 3) + f"{rare}\n", encoding="utf-8")
    text.learn_subwords("sentencepiece", [corpus], tmp_path, 12)
    pieces = {line.split("\t")[0] for line in (tmp_path / "sentencepiece.bpe.vocab").read_text("utf-8").splitlines()}
    assert set(rare) <= pieces and text.subword_encoder("sentencepiece", tmp_path)(rare).split() == ["\u2581", *rare]


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_there_is_text_to_learn_subwords_on(tmp_path: Path, content: str) -> None:
    (tmp_path / "train.de").write_text(content)
    with pytest.raises(DataError, match=r"^train\.de: no text to learn subwords on$"):
        text.learn_subwords("sentencepiece", [tmp_path / "train.de"], tmp_path, 12)
