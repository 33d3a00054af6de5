"""Text in one form, whatever is in it."""

from __future__ import annotations

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from fairseq_ext import text


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
