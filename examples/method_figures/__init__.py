"""One figure per method, drawn by the method's own code, for the pages in ``docs/methods``."""

from __future__ import annotations

import importlib
from pathlib import Path

from fairseq_ext.training.files import output_folder
from fairseq_ext.training.plotting import saved_figure

__all__ = ["FIGURES", "draw"]

FIGURES = (
    *("gca", "muse", "explicit_sparse_transformer", "adanorm", "encouraging_loss"),
    *("renode", "label_graph", "iais", "muka"),
)
"""Names of the figures; each is a module with a ``SIZE`` in inches and a function ``draw(figure)``."""


def draw(name: str, folder: str | Path) -> Path:
    """Draw one of :data:`FIGURES` into ``folder/NAME.png``; the same on every call."""
    path = output_folder(folder, "--out") / f"{name}.png"
    module = importlib.import_module(f"examples.method_figures.{name}")
    with saved_figure(path, module.SIZE) as figure:
        module.draw(figure)
    return path
