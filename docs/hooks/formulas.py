"""Formulas become MathML when the site is built: every browser shows it, without a script."""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError

# What pymdownx.arithmatex writes.
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)

SPACE = '<mspace width="0.17em"/>'


def on_page_content(content: str, page: Any, **kwargs: Any) -> str:
    """The page with every formula as MathML."""

    def replace(formula: re.Match[str]) -> str:
        try:
            return to_mathml(html.unescape(formula[2]), display=formula[1] == "div")
        except Exception as error:
            raise PluginError(f"{page.file.src_uri}: formula {formula[2].strip()!r}: {error}") from error

    return FORMULA.sub(replace, content)


def to_mathml(latex: str, display: bool) -> str:
    r"""MathML of a formula.

    Raises:
        ValueError: a command that is not understood, which would be shown as its name.
    """
    # It lacks \arg, shows the backslash of an escaped sign within \text, and sets log x as logx.
    latex = re.sub(r"\\arg\b", r"\\operatorname{arg}", latex.strip())
    mathml = convert(latex, display="block" if display else "inline")
    mathml = re.sub(r"\\([_%#&$])", r"\1", mathml)
    mathml = re.sub(r"(<mi>(?:exp|log|ln|cos|sin|tanh)</mi>)(?=<m(?:i|n|sub|sup|over|frac)\b)", rf"\1{SPACE}", mathml)
    if unknown := re.search(r"\\[A-Za-z]+", html.unescape(mathml)):
        raise ValueError(f"unknown command {unknown[0]}")
    return mathml
