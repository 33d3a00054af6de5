"""What the bonus did to the test images: probabilities, margins, energies, robustness, the tail, calibration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import cycle
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from fairseq_ext.training.errors import DataError
from fairseq_ext.training.plotting import BAND, legend_outside, mean_and_range, name_lines
from vision_language import calibration
from vision_language.image_classification.figures import COLOURS, Experiments, Figures
from vision_language.image_classification.long_tail import is_long_tailed
from vision_language.image_classification.predict import QUANTILES
from vision_language.image_classification.scores import log_odds, margin, ood_scores

__all__ = ["energies", "margins", "probabilities", "reliability", "robustness", "tail", "training"]

BINS, CONFIDENCE_BINS = 40, 10


def _of_labels(score: Callable[..., torch.Tensor], figures: Figures) -> np.ndarray:
    """A score of logits and labels over the evaluations of an experiment."""
    parts = [
        score(torch.from_numpy(arrays["logits"]).double(), torch.from_numpy(arrays["labels"])).numpy()
        for arrays in figures.arrays("evaluation")
    ]
    return np.concatenate(parts) if parts else np.zeros(0)


def _histograms(axes: Axes, values: Mapping[str, np.ndarray], label: str) -> dict[str, Any]:
    """Shares over common bins, so that experiments can be compared."""
    values = {name: part for name, part in values.items() if len(part)}
    if not values:
        return {}
    everything = np.concatenate(list(values.values()))
    edges = np.histogram_bin_edges(everything, BINS, tuple(np.quantile(everything, [0.001, 0.999])))
    shares = {}
    for colour, (name, part) in zip(COLOURS, values.items(), strict=False):
        clipped = part.clip(edges[0], edges[-1])
        shares[name] = (np.histogram(clipped, edges)[0] / len(part)).tolist()
        axes.stairs(shares[name], edges, color=colour, label=f"{name} (median {np.median(part):.3g})", linewidth=1.8)
        axes.stairs(shares[name], edges, color=colour, fill=True, alpha=0.15)
    axes.set(xlabel=label, ylabel="share of test images")
    legend_outside(axes)
    return {"edges": edges.tolist(), "shares": shares}


def probabilities(axes: Axes, experiments: Experiments) -> dict[str, Any]:
    """Log-odds of the labels; the probabilities themselves would all lie in the last bin."""
    values = {name: _of_labels(log_odds, figures) for name, figures in experiments.items()}
    numbers = _histograms(axes, values, r"$\log\, p_y / (1 - p_y)$")
    if numbers:
        axes.axvline(0, color="0.6", linewidth=0.8)
        axes.axvline(16.6, color="0.6", linestyle=":", linewidth=0.8)
        axes.text(
            16.2, 0.97, "$p_y$ = 1 in float32", fontsize=10, ha="right", va="top", transform=axes.get_xaxis_transform()
        )
        axes.set_title("How sure is the model of the label?")
    return numbers


def margins(axes: Axes, experiments: Experiments) -> dict[str, Any]:
    """Target logit minus the best other."""
    values = {name: _of_labels(margin, figures) for name, figures in experiments.items()}
    numbers = _histograms(axes, values, r"margin $z_y - \max_{j \neq y} z_j$")
    axes.axvline(0, color="0.6", linewidth=0.8)
    axes.set_title("Margins of the test images")
    return numbers


def training(axes: Axes, experiments: Experiments) -> dict[str, Any]:
    """The same log-odds over the epochs: median, half, and nine tenths of the images."""
    numbers: dict[str, Any] = {}
    for colour, (name, figures) in zip(COLOURS, experiments.items(), strict=False):
        history = [entry for entry in figures.runs[0]["history"] if "log_odds_quantiles" in entry]
        if not history:  # without validation images
            continue
        rows = np.array([entry["log_odds_quantiles"] for entry in history])
        epochs = [entry["epoch"] for entry in history]
        numbers[name] = {"epochs": epochs, "quantiles": list(QUANTILES), "log_odds": rows.tolist()}
        axes.plot(epochs, rows[:, 2], "o-", color=colour, label=f"{name}: median")
        axes.fill_between(epochs, rows[:, 1], rows[:, 3], color=colour, alpha=BAND, linewidth=0)
        axes.fill_between(epochs, rows[:, 0], rows[:, 4], color=colour, alpha=BAND, linewidth=0)
    if numbers:
        axes.axhline(0, color="0.6", linewidth=0.8)
        axes.set(xlabel="epoch", ylabel=r"$\log\, p_y / (1 - p_y)$", title="Validation images: half and 90 % of them")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        name_lines(axes)
    return numbers


def energies(axes: Axes, experiments: Experiments) -> dict[str, Any]:
    """Energy scores of the test set and of the others."""
    numbers: dict[str, Any] = {}
    for colour, (name, figures) in zip(COLOURS, experiments.items(), strict=False):
        sets: dict[str, list[np.ndarray]] = {}
        for arrays in figures.arrays("ood"):
            for part, logits in arrays.items():
                sets.setdefault(part, []).append(ood_scores(torch.from_numpy(logits), "energy").numpy())
        if not sets:
            continue
        values = {part: np.concatenate(scores) for part, scores in sets.items()}
        everything = np.concatenate(list(values.values()))
        edges = np.histogram_bin_edges(everything, BINS // 2, tuple(np.quantile(everything, [0.005, 0.995])))
        for style, (part, scores) in zip(cycle(("-", "--", ":", "-.")), values.items(), strict=False):
            density = np.histogram(scores, edges, density=True)[0]
            numbers[f"{name}, {part}"] = {"edges": edges.tolist(), "density": density.tolist()}
            axes.stairs(density, edges, color=colour, linestyle=style, linewidth=1.8, label=f"{name}: {part}")
    if numbers:
        axes.set(xlabel="energy score", ylabel="density", title="Known images against others")
        legend_outside(axes)
    return numbers


def robustness(axes: Axes, experiments: Experiments) -> dict[str, Any]:
    """Accuracy by radius, one style an objective: where they differ, the upper one is rounding.

    Of several models it is the mean, over the radii that all of them were attacked with.
    """
    numbers: dict[str, Any] = {}
    for colour, (name, figures) in zip(COLOURS, experiments.items(), strict=False):
        by_line: dict[str, list[dict[str, float]]] = {}
        for attack in ("fgsm", "pgd", "pgd-l2"):
            for result in figures.json(f"attack_{attack}"):
                for objective, accuracy in result["accuracy"].items():
                    by_line.setdefault(f"{attack}, {objective}", []).append(accuracy)
        for line, rows in by_line.items():
            common = sorted(set.intersection(*map(set, rows)), key=float)
            if not common:
                raise DataError(f"plot: {figures.folder} has attacks ({line}) of models without a common radius")
            radii = [float(radius) for radius in common]
            values = np.array([[row[radius] for radius in common] for row in rows])
            numbers[f"{name}, {line}"] = {"epsilon": radii, "accuracy": values.tolist()}
            style = "-" if line.endswith("log-odds") else "--"
            marker = {"fgsm": "o", "pgd": "s"}.get(line.partition(",")[0], "^")
            curves = [list(zip(radii, row, strict=True)) for row in values.tolist()]
            mean_and_range(axes, curves, f"{name}: {line}", linestyle=style, color=colour, marker=marker)
    if numbers:
        axes.set(xlabel=r"radius $\varepsilon$ in pixels", ylabel="accuracy", ylim=(0, 1))
        axes.set_title("Accuracy under attack")
        name_lines(axes)
    return numbers


def tail(axes: Axes, experiments: Experiments) -> dict[str, Any]:
    """Accuracy of each class by its training images."""
    numbers: dict[str, Any] = {}
    for colour, (name, figures) in zip(COLOURS, experiments.items(), strict=False):
        counts = np.array(figures.runs[0]["train_counts"])
        if not is_long_tailed(counts.tolist()) or any(run["train_counts"] != counts.tolist() for run in figures.runs):
            continue
        accuracy = np.array([run["test_class_accuracy"] for run in figures.runs], dtype=float)
        order = np.argsort(-counts, kind="stable")
        numbers[name] = {"images": counts[order].tolist(), "accuracy": accuracy[:, order].tolist()}
        curves = [list(zip(counts[order].tolist(), row, strict=True)) for row in accuracy[:, order].tolist()]
        mean_and_range(axes, curves, name, color=colour, marker="o")
    if numbers:
        axes.set(xscale="log", ylim=(0, 1.02), xlabel="training images of the class", ylabel="test accuracy")
        axes.invert_xaxis()
        axes.set_title("From the head to the tail")
        name_lines(axes)
    return numbers


def reliability(axes: Axes, experiments: Experiments) -> dict[str, Any]:
    """Accuracy by confidence, over ten bins of equal width, the larger the more images; empty ones are left out."""
    numbers: dict[str, Any] = {}
    for colour, (name, figures) in zip(COLOURS, experiments.items(), strict=False):
        evaluations = figures.arrays("evaluation")
        if not evaluations:
            continue
        logits = torch.from_numpy(np.concatenate([arrays["logits"] for arrays in evaluations])).double()
        labels = np.concatenate([arrays["labels"] for arrays in evaluations])
        confidence, predicted = logits.softmax(1).max(1)
        table = calibration.reliability(confidence, predicted == torch.from_numpy(labels), CONFIDENCE_BINS)
        filled = table.examples > 0
        columns = (table.confidence, table.accuracy, table.examples)
        confident, right, images = (column[filled].tolist() for column in columns)
        numbers[name] = {"points": list(zip(confident, right, strict=True)), "images": images}
        axes.plot(confident, right, color=colour, alpha=0.5)
        sizes = [4 + 200 * count / len(labels) for count in images]  # few images make a point that says little
        axes.scatter(confident, right, s=sizes, color=colour, label=name)
    if numbers:
        axes.plot([0, 1], [0, 1], color="0.6", linestyle=":", linewidth=0.8)
        axes.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1.02), ylim=(0, 1.02))
        axes.set_title("Is the confidence right?")
        legend_outside(axes)
    return numbers
