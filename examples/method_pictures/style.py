"""What the pictures share: colours that can be told apart without red and green, letters, and an opaque ground."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from fairseq_ext.fonts import fonts_for
from fairseq_ext.training.files import replacing

__all__ = ["BLUE", "GREEN", "GREY", "ORANGE", "PURPLE", "SHADES", "STYLE", "figure", "save"]

# Okabe and Ito's
BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#7F7F7F"
SHADES = matplotlib.colormaps["Blues"]
WIDTH, DPI = 7.2, 200
STYLE = {
    **{"font.size": 9, "axes.titlesize": 9.5, "axes.labelsize": 9, "legend.fontsize": 8.5, "legend.frameon": False},
    **{"xtick.labelsize": 8, "ytick.labelsize": 8, "axes.spines.top": False, "axes.spines.right": False},
    "figure.constrained_layout.h_pad": 0.06,
}


def figure(height: float, rows: int = 1, columns: int = 1, **layout: Any) -> tuple[Figure, Any]:
    """A figure of the width of a page, and its axes as an array of ``rows`` by ``columns``."""
    drawn = Figure(figsize=(WIDTH, height), layout="constrained", facecolor="white")
    return drawn, drawn.subplots(rows, columns, squeeze=False, **layout)


def save(drawn: Figure, path: Path) -> None:
    """Write a PNG of few colours: these pictures have no more, and a page loads it faster."""
    from PIL import Image

    with fonts_for(drawn), replacing(path) as partial:
        drawn.savefig(partial, format="png", dpi=DPI)
        with Image.open(partial) as image:
            small = image.convert("RGB").quantize(128, dither=Image.Dither.NONE)
        small.save(partial, format="PNG", optimize=True)
