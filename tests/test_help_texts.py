"""What ``--help`` says of an option: a text that names its thing, so that nobody has to guess it from the flag."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Iterator

import pytest

from tests.helpers import ROOT

TOPS = ("fairseq_ext", "graph", "vision_language", "examples", "benchmarks")
UNNAMED = re.compile(
    r"(about|above|after|also|and|as|at|before|below|beside|by|default|each|everywhere|for|from|how,|in|instead|it|its|"
    r"likewise|no|of|on|only|or|so|such|than|that|their|them|these|they|this|those|to|which|where|with|without)\b"
    r"|\{|\S+( \([^()]*\))?$"
)
"""Beginnings of the middle of a sentence, a list of values without what they are, or a word alone."""


def text_of(node: ast.expr) -> str:
    """A text, with ``{}`` for what is computed; of a ``TEMPLATE.format(...)`` or a name nothing."""
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def help_texts(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of every option: of an ``option``, of an argument of argparse, of a field's metadata."""
    for node in ast.walk(ast.parse(source)):
        found: list[ast.expr] = []
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name != "add_parser":  # whose help is of a command
                found = [word.value for word in node.keywords if word.arg == "help"]
            if name == "option":
                found += node.args[1:2]
        elif isinstance(node, ast.Dict):
            found = [value for key, value in zip(node.keys, node.values, strict=True) if key and text_of(key) == "help"]
        yield from ((value.lineno, text_of(value)) for value in found if text_of(value))


def texts_by_place(tops: Iterable[str], texts_of: Callable[[str], Iterable[tuple[int, str]]]) -> dict[str, str]:
    """What ``texts_of`` finds in all files of packages, by file and line."""
    return {
        f"{path.relative_to(ROOT)}:{line}": text
        for top in tops
        for path in sorted(ROOT.glob(f"{top}/**/*.py"))
        for line, text in texts_of(path.read_text(encoding="utf-8"))
    }


def test_a_help_text_names_its_thing():
    texts = texts_by_place(TOPS, help_texts)
    assert len(texts) > 400
    assert not {place: text for place, text in texts.items() if UNNAMED.match(text)}


@pytest.mark.parametrize(
    "source",
    [
        'lr: float = option(0.1, "of Adam (released: 0.1)", above=0)',
        'split: str = option(help="which part of it")',
        'add("--epochs", help="at most")',
        'names = option((), f"{NAMES} (default: all)")',
        'out: str = option("runs", "folder")',
        'field(metadata={"help": "that was generated"})',
    ],
)
def test_a_text_without_its_thing_is_found(source):
    assert [text for _, text in help_texts(source) if UNNAMED.match(text)]
