"""What an error of a library says in a message: one line, whatever it says."""

from __future__ import annotations

import re

import pytest

from fairseq_ext.training.errors import first_few, first_line, one_line
from tests.helpers import ROOT

OF_TORCH = {ROOT / "fairseq_ext" / "training" / name for name in ("files.py", "runs.py")}
"""Whose errors always say something."""


@pytest.mark.parametrize(
    ("message", "first", "whole"),
    [("", "OSError", "OSError"), (" \n\n", "OSError", "OSError"), ("\n a b \nc", "a b ", "OSError: a b ")],
)
def test_an_error_is_one_line_even_where_it_says_nothing(message, first, whole):
    assert first_line(OSError(message)) == first and one_line(OSError(message)) == whole


@pytest.mark.parametrize(
    ("names", "words", "told"),
    [
        ("", {}, ""),
        ("abc", {}, "a, b, c"),
        ("abcde", {}, "a, b, c and 2 more"),
        ("abc", {"most": 2, "between": "; "}, "a; b; and 1 more"),
    ],
)
def test_the_first_few_of_many_names(names, words, told):
    assert first_few(iter(names), **words) == told


def test_nobody_else_counts_the_names_that_are_left_out():
    tops = ("fairseq_ext", "graph", "vision_language", "examples", "benchmarks")
    found = [
        path for top in tops for path in (ROOT / top).rglob("*.py") if re.search(r"- \w+\} more", path.read_text())
    ]
    assert found == [ROOT / "fairseq_ext" / "training" / "errors.py"]


def test_nobody_else_takes_the_first_line_of_an_error():
    """An error that says nothing has none."""
    places = [path for part in ("fairseq_ext", "vision_language") for path in (ROOT / part).rglob("*.py")]
    own = re.compile(r"str\(\w*(error|cause)\w*\).*splitlines\(\)\[0\]")
    found = [path for path in places if path not in OF_TORCH and own.search(path.read_text())]
    assert not found
