"""The learned label graph as a heat map, and its strongest pairs as a list."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from fairseq_ext.training.errors import OptionError
from fairseq_ext.training.files import output_folder, write_json
from fairseq_ext.training.options import OptionSet, option
from graph.label_graph.classifier import ModelFile

__all__ = ["draw_label_graph", "format_pairs", "plot", "strongest_pairs"]

ANNOTATED = 12
"""Up to this number of labels every cell shows its number."""
LARGEST = 24.0
"""Most inches of a side; if more labels come on it, their names become smaller."""


def strongest_pairs(graph: Tensor, labels: Sequence[str], count: int = 20) -> list[dict[str, Any]]:
    """The ``count`` label pairs whose mean weight over both directions is largest in absolute value.

    ``forward`` is the weight with which the score of the first label adds to the second, ``backward`` the weight with
    which the second adds to the first.
    """
    weights = graph.detach().cpu().double()
    first, second = np.triu_indices(len(labels), 1)
    pairs: list[dict[str, Any]] = [
        {
            "labels": [labels[i], labels[j]],
            "weight": float(weights[i, j] + weights[j, i]) / 2,
            "forward": float(weights[i, j]),
            "backward": float(weights[j, i]),
        }
        for i, j in zip(first.tolist(), second.tolist(), strict=True)
    ]
    return sorted(pairs, key=lambda pair: -abs(pair["weight"]))[:count]


def format_pairs(pairs: Sequence[dict[str, Any]]) -> str:
    """Label pairs as text, a line per pair."""
    return "\n".join(
        f"{pair['weight']:+.3f}  {' - '.join(pair['labels'])}  ({pair['forward']:+.3f} / {pair['backward']:+.3f})"
        for pair in pairs
    )


def draw_label_graph(graph: Tensor, labels: Sequence[str], path: str | Path) -> None:
    """Draw a heat map of G with label names. The diagonal, which starts at 1, is left out of the colour scale."""
    from fairseq_ext.training.plotting import LETTERS, saved_figure

    weights = graph.detach().cpu().double().numpy()
    size = len(labels)
    off_diagonal = np.ma.masked_array(weights, np.eye(size, dtype=bool))
    limit = max(float(np.abs(off_diagonal).max()) if size > 1 else 0.0, 1e-3)
    side = min(max(4.5, 0.32 * size + 2.5), LARGEST)
    letters = min(LETTERS, 72 * 0.9 * (side - 2.5) / size)
    with saved_figure(path, (side + 0.8, side), "Learned label graph") as figure:
        axes = figure.subplots()
        axes.set_facecolor("0.88")  # shows through the diagonal
        axes.grid(visible=False)
        image = axes.imshow(off_diagonal, cmap="RdBu_r", vmin=-limit, vmax=limit)
        axes.set_xticks(range(size), labels, rotation=90, fontsize=letters, parse_math=False)  # $ is a character
        axes.set_yticks(range(size), labels, fontsize=letters, parse_math=False)
        axes.set_xlabel("adds to the score of")
        axes.set_ylabel("score of")
        for i, j in np.ndindex(size, size) if size <= ANNOTATED else ():
            colour = "white" if i != j and abs(weights[i, j]) > 0.6 * limit else "0.2"
            axes.text(j, i, f"{weights[i, j]:z.2f}", ha="center", va="center", fontsize=LETTERS, color=colour)
        figure.colorbar(image, ax=axes, shrink=0.8, label="weight (the grey diagonal is not to scale)")


@dataclass(frozen=True, kw_only=True)
class PlotOptions(OptionSet):
    """What is drawn of it."""

    pairs: int = option(20, "number of label pairs", least=1)
    out: str = option("", "folder of label_graph.png and label_pairs.json (default: that of the model)")


def plot(model: ModelFile, options: PlotOptions) -> str:
    """Heat map of the learned label graph, and its strongest pairs.

    Raises:
        OptionError: a model without label graph, or a folder that cannot be written.
    """
    classifier = model.load()
    if classifier.network.label_graph is None:
        raise OptionError(f"--model {model.model} has no label graph (it was trained with --arm han)")
    folder = output_folder(options.out or Path(model.model).parent)
    graph = classifier.network.label_graph.weight
    pairs = strongest_pairs(graph, classifier.labels, options.pairs)
    draw_label_graph(graph, classifier.labels, folder / "label_graph.png")
    write_json(folder / "label_pairs.json", pairs)
    return f"{format_pairs(pairs)}\n{folder / 'label_graph.png'}, {folder / 'label_pairs.json'}"
