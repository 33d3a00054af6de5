"""What a public name says of itself, and why a long file is one."""

from __future__ import annotations

import ast
import importlib
import inspect
import re

import pytest

from tests.test_floors import SOURCES

PACKAGES = (
    *("fairseq_ext.modules", "fairseq_ext.losses", "fairseq_ext.integrations"),
    *("graph.renode", "graph.label_graph"),
    *("vision_language.iais", "vision_language.muka", "vision_language.image_classification"),
)
LONG = 300


def undescribed(package, name):
    """The arguments of a public function or class that its docstring does not name; the docstring where it has none."""
    value = getattr(package, name)
    if not callable(value) or hasattr(value, "_fields"):  # the fields of a NamedTuple have texts of their own
        return []
    docstring = inspect.getdoc(value) or ""
    # "see :func:`x`" sends the reader there
    shared = (
        getattr(package, path.rpartition(".")[2], None)
        for path in re.findall(r":(?:func|class):`~?([\w.]+)`", docstring)
    )
    text = "\n".join([docstring, *(inspect.getdoc(other) or "" for other in shared if other is not None)])
    arguments = [argument for argument in inspect.signature(value).parameters if argument not in ("args", "kwargs")]
    return (
        [argument for argument in arguments if not re.search(rf"\b{argument}\b", text)] if docstring else ["docstring"]
    )


@pytest.mark.parametrize("package", PACKAGES)
def test_a_public_name_describes_every_argument(package):
    module = importlib.import_module(package)
    assert {name: missing for name in module.__all__ if (missing := undescribed(module, name))} == {}


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_a_long_file_says_why_it_is_one(path):
    text = path.read_text(encoding="utf-8")
    docstring = ast.get_docstring(ast.parse(text)) or ""
    assert len(text.splitlines()) <= LONG or f"more than {LONG} lines" in docstring.lower()
