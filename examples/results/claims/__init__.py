"""What the papers claim, part by part, each with the differences that were measured here.

The module of a part has ``claims(contents)``: from what is stored of the part, its claims in the order of the page. A
published number stands only where its source is at hand (paper, poster, slides, readme of the released code), which the
claim names.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from examples.results.verdicts import Claim

__all__ = ["PARTS", "claims_of"]

PARTS = (
    *("translation", "language_model", "captioning", "image_classification", "graph_classification", "graph_log_end"),
    *("renode", "renode_large", "label_graph", "iais", "muka", "benchmarks"),
)
"""Parts with claims, in the order of the page."""


def claims_of(part: str, contents: list[dict[str, Any]]) -> list[Claim]:
    """The claims of a part, none where nothing is measured."""
    return import_module(f"{__name__}.{part}").claims(contents) if contents else []
