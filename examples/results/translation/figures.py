"""Figures of translation: differences to the Transformer, and learning curves beside its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from examples.plotting import Effect, forest, limits_after_first, small_multiples
from examples.results.paired import Paired, differences
from examples.results.report import of_seeds
from examples.results.translation.experiments import BASELINE
from fairseq_ext.training.plotting import saved_figure

__all__ = ["best_bits", "draw_table", "gains", "links"]

Rows = dict[str, list[dict[str, Any]]]
"""The rows of each system."""


def best_bits(row: dict[str, Any]) -> float:
    """The best validation bits per token of a training, which are not those of a checkpoint chosen by BLEU."""
    return min(value for _, value in row["curve"])


def gains(by_system: Rows, metric: Callable[[dict[str, Any]], float]) -> dict[str, Paired]:
    """How each system differs from the Transformer of the same seed; without one it has no difference."""
    of_seeds = {name: {row["seed"]: metric(row) for row in rows} for name, rows in by_system.items()}
    baseline = of_seeds.pop(BASELINE, {})
    pairs = {name: differences(values, baseline) for name, values in of_seeds.items()}
    return {name: Paired.of(of_pairs) for name, of_pairs in pairs.items() if of_pairs}


def drawable(by_system: Rows) -> dict[str, tuple[str, Callable[[Rows, str, Path], None]]]:
    """What the rows have the numbers for: by the ending of its file, what it is called and how it is drawn."""
    drawings = {"_curves": ("Validation curves", draw_curves)}
    if gains(by_system, best_bits):
        drawings = {"": (f"Differences to the {BASELINE}", draw_differences), **drawings}
    if all("bleu_by_length" in row for rows in by_system.values() for row in rows):
        drawings["_lengths"] = ("BLEU by source length", draw_lengths)
    return drawings


def draw_table(by_system: Rows, name: str, data: str, folder: Path) -> None:
    """Draws ``folder/NAME.png`` and others of rows on the data set called ``data``."""
    for ending, (_, drawing) in drawable(by_system).items():
        drawing(by_system, data, folder / f"{name}{ending}.png")


def links(by_system: Rows, name: str) -> str:
    """The figures in the report."""
    return "\n\n".join(f"![{title}](results/{name}{ending}.png)" for ending, (title, _) in drawable(by_system).items())


def _seeds(by_system: Rows) -> str:
    said = of_seeds({name: [row["seed"] for row in rows] for name, rows in by_system.items()})
    return "one seed, no interval" if said == "1 seed" else f"mean and 95 % interval, {said}"


def draw_differences(by_system: Rows, data: str, file: Path) -> None:
    """BLEU and bits of each system minus those of the Transformer."""
    metrics = {
        "sacreBLEU on test (right is better)": lambda row: row["sacrebleu"],
        "bits per token on valid (left is better)": best_bits,
    }
    size = (9, 1.3 + 0.26 * len(by_system))
    with saved_figure(file, size, f"{data}, minus the {BASELINE}: {_seeds(by_system)}") as figure:
        panels = figure.subplots(1, 2, sharey=True)
        for axes, (title, metric) in zip(panels, metrics.items(), strict=True):
            effects = [Effect(name, *paired[:3]) for name, paired in gains(by_system, metric).items()]
            forest(axes, effects)
            axes.set_title(title)
            axes.set_xlabel("BLEU" if axes is panels[0] else "bits")


def draw_curves(by_system: Rows, data: str, file: Path) -> None:
    """Validation bits over the updates, a panel for each system."""
    curves = {name: [row["curve"] for row in rows] for name, rows in by_system.items()}
    rows = -(-max(len(curves) - 1, 1) // 3)
    title = f"{data}: bits on valid, mean and range (grey: {BASELINE})"
    with saved_figure(file, (9, 1.1 + 1.5 * rows), title) as figure:
        panels = small_multiples(figure, curves, BASELINE, columns=3, limits=limits_after_first(curves))
        bits = gains(by_system, best_bits)
        for name, axes in panels.items():
            if gain := bits.get(name):
                axes.annotate(f"best: {gain.mean:+.3f}", (0.97, 0.9), xycoords="axes fraction", ha="right", va="top")
        figure.supxlabel("updates")
        figure.supylabel("bits per token")


def draw_lengths(by_system: Rows, data: str, file: Path) -> None:
    """BLEU by the length of the source sentence, a panel for each system.

    Each row has ``bleu_by_length``: lists of ``[mean words of the source, sentences, BLEU]``, the same for all rows.
    """
    curves = {
        name: [[(words, bleu) for words, _, bleu in row["bleu_by_length"]] for row in rows]
        for name, rows in by_system.items()
    }
    groups = next(iter(by_system.values()))[0]["bleu_by_length"]
    rows = -(-max(len(curves) - 1, 1) // 3)
    counts = ", ".join(dict.fromkeys(str(count) for _, count, _ in groups))  # once where all are equally large
    with saved_figure(
        file, (9, 1.2 + 1.5 * rows), f"{data}: BLEU by source length, beside the {BASELINE} (grey)"
    ) as figure:
        small_multiples(figure, curves, BASELINE, columns=3, marker="o")
        figure.supxlabel(f"words of the source sentence, groups of {counts} sentences")
        figure.supylabel("BLEU")
