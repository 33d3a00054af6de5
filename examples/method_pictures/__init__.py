"""One picture a method, drawn by the method's own code, for the pages in ``docs/methods``."""

from __future__ import annotations

import importlib
from pathlib import Path

import matplotlib

from examples.method_pictures.style import STYLE, save
from fairseq_ext.training.files import output_folder

__all__ = ["PICTURES", "draw"]

PICTURES = (
    *("gca", "muse", "explicit_sparse_transformer", "adanorm", "encouraging_loss"),
    *("renode", "label_graph", "iais", "muka"),
)
"""Each is a module with a function ``draw()`` that returns the figure."""


def draw(name: str, folder: str | Path) -> Path:
    """Draw one of :data:`PICTURES` into ``folder/NAME.png``; the same on every call."""
    path = output_folder(folder, "--out") / f"{name}.png"
    with matplotlib.rc_context(STYLE):
        save(importlib.import_module(f"examples.method_pictures.{name}").draw(), path)
    return path
