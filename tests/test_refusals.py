"""How refusals are worded: one form in all packages."""

from __future__ import annotations

import ast
import re

import pytest

from tests.test_help_texts import text_of, texts_by_place

TOPS = ("fairseq_ext", "graph", "vision_language")
OTHER_FORMS = re.compile(r"\bwanted\b|is negative|is not (between|at least|at most)|director(y|ies)\b")
"""What ``NAME must be ..., got ...`` says, and a folder."""


def refusals(source: str) -> list[tuple[int, str]]:
    """Line and text of each message that is raised."""
    return [
        (part.lineno, text_of(part))
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)
        for part in node.exc.args
    ]


def test_a_refusal_says_what_must_be_and_what_was_found():
    texts = texts_by_place(TOPS, refusals)
    assert len(texts) > 400
    assert not {place: text for place, text in texts.items() if OTHER_FORMS.search(text)}


@pytest.mark.parametrize(
    "message", ['"y: wanted integers, got {y}"', 'f"topk: {k} is negative"', '"the directory " f"{p} is not there"']
)
def test_another_form_is_found(message):
    (found,) = refusals(f"raise OptionError({message})")
    assert OTHER_FORMS.search(found[1])
