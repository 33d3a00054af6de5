"""What the bonus did to the test images: probabilities, margins, energies, robustness, the tail, calibration."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import cycle
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fairseq_ext.training.errors import DataError
from fairseq_ext.training.plotting import BAND, legend_outside, mean_and_range, name_lines
from vision_language import calibration
from vision_language.image_classification.detection import false_positive_rate
from vision_language.image_classification.long_tail import groups, is_long_tailed
from vision_language.image_classification.predict import QUANTILES
from vision_language.image_classification.results import COLOURS, Experiments, Results
from vision_language.image_classification.scores import log_odds, margin, ood_scores

__all__ = [
    "class_energies", "energies", "group_probabilities", "margins", "probabilities", "reliability", "robustness",
    "tail", "training",
]  # fmt: skip

BINS, CONFIDENCE_BINS = 40, 10

PANELS = {
    "all": "All classes",
    "many": "Many: more than 100 training images",
    "medium": "Medium: 20 to 100",
    "few": "Few: less than 20",
}

RANKS = 10
"""Number of classes whose energies are drawn, from the lowest energy on."""


def _of_labels(score: Callable[..., torch.Tensor], results: Results) -> np.ndarray:
    """A score of each test image, from logits and labels, over all evaluations of an experiment."""
    parts = [
        score(torch.from_numpy(arrays["logits"]).double(), torch.from_numpy(arrays["labels"])).numpy()
        for arrays in results.arrays("evaluation")
    ]
    return np.concatenate(parts) if parts else np.zeros(0)


def _histograms(axes: Axes, values: Mapping[str, np.ndarray], label: str) -> dict[str, Any]:
    """Draw the share of images in each bin; the bins are common, so that experiments can be compared."""
    if not any(map(len, values.values())):
        return {}
    edges = _edges(values.values())
    shares = {}
    for colour, (name, part) in zip(COLOURS, values.items(), strict=False):
        if len(part):
            shares[name] = _stairs(axes, part, edges, colour, f"{name} (median {np.median(part):.3g})")
    axes.set(xlabel=label, ylabel="share of test images")
    legend_outside(axes)
    return {"edges": edges.tolist(), "shares": shares}


def _edges(parts: Iterable[np.ndarray]) -> np.ndarray:
    everything = np.concatenate(list(parts))
    return np.histogram_bin_edges(everything, BINS, tuple(np.quantile(everything, [0.001, 0.999])))


def _stairs(axes: Axes, part: np.ndarray, edges: np.ndarray, colour: str, label: str) -> list[float]:
    """Draw and return the share of the values in each bin; values beyond the edges count in the outer bins."""
    shares = (np.histogram(part.clip(edges[0], edges[-1]), edges)[0] / len(part)).tolist()
    axes.stairs(shares, edges, color=colour, label=label, linewidth=1.8)
    axes.stairs(shares, edges, color=colour, fill=True, alpha=0.15)
    return shares


def probabilities(axes: Axes, experiments: Experiments) -> dict[str, Any]:
    """Log-odds of the labels of test images; as probabilities they would all lie in the last bin."""
    values = {name: _of_labels(log_odds, results) for name, results in experiments.items()}
    numbers = _histograms(axes, values, r"$\log\, p_y / (1 - p_y)$")
    if numbers:
        axes.axvline(0, color="0.6", linewidth=0.8)
        axes.axvline(16.6, color="0.6", linestyle=":", linewidth=0.8)
        axes.text(
            16.2, 0.97, "$p_y$ = 1 in float32", fontsize=10, ha="right", va="top", transform=axes.get_xaxis_transform()
        )
        axes.set_title("How sure is the model of the label?")
    return numbers


def group_probabilities(axes: Axes, experiments: Experiments) -> dict[str, Any]:
    """Log-odds of the labels for long tails: a panel for all classes, and one for each group of classes."""
    panels: dict[str, dict[str, np.ndarray]] = {panel: {} for panel in PANELS}
    for name, results in experiments.items():
        odds, counts = _of_labels(log_odds, results), _tail_of(results)
        if not len(odds) or not counts:
            continue
        labels = np.concatenate([arrays["labels"] for arrays in results.arrays("evaluation")])
        group = np.array(groups(counts))[labels]
        for panel, parts in panels.items():
            parts[name] = odds if panel == "all" else odds[group == panel]
    if not panels["all"]:
        return {}
    edges = _edges(panels["all"].values())
    numbers: dict[str, Any] = {"edges": edges.tolist(), "shares": {}}
    figure, place = axes.figure, axes.get_subplotspec()
    assert isinstance(figure, Figure) and place is not None
    axes.remove()
    grid, first = place.subgridspec(2, 2), None
    for number, (panel, parts) in enumerate(panels.items()):
        own = figure.add_subplot(grid[number], sharex=first)
        first = first or own
        numbers["shares"][panel] = {
            name: _stairs(own, parts[name], edges, colour, name)
            for colour, name in zip(COLOURS, experiments, strict=False)
            if len(parts.get(name, ()))
        }
        own.set_title(PANELS[panel])
        own.axvline(0, color="0.6", linewidth=0.8)
    assert first is not None
    figure.supxlabel(r"$\log\, p_y / (1 - p_y)$")
    figure.supylabel("share of test images")
    figure.legend(*first.get_legend_handles_labels(), loc="outside right upper", frameon=False)
    return numbers


def _tail_of(results: Results) -> list[int]:
    """Training images of each class, for an experiment with a long tail; an empty list for others."""
    counts = results.runs[0]["train_counts"]
    alike = all(run["train_counts"] == counts for run in results.runs)
    return counts if alike and is_long_tailed(counts) else []


def margins(axes: Axes, experiments: Experiments) -> dict[str, Any]:
    """Margins of the test images: the label's logit minus the largest other logit."""
    values = {name: _of_labels(margin, results) for name, results in experiments.items()}
    numbers = _histograms(axes, values, r"margin $z_y - \max_{j \neq y} z_j$")
    axes.axvline(0, color="0.6", linewidth=0.8)
    axes.set_title("Margins of the test images")
    return numbers


def training(axes: Axes, experiments: Experiments) -> dict[str, Any]:
    """Log-odds of the labels of validation images, by epoch: the median, and bands of half and 90 % of the images."""
    numbers: dict[str, Any] = {}
    for colour, (name, results) in zip(COLOURS, experiments.items(), strict=False):
        history = [entry for entry in results.runs[0]["history"] if "log_odds_quantiles" in entry]
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
    """Energy scores of the test set and of the others, with the share of the others above 95 % of the test set's."""
    numbers: dict[str, Any] = {}
    for colour, (name, results) in zip(COLOURS, experiments.items(), strict=False):
        sets: dict[str, list[np.ndarray]] = {}
        passing: dict[str, list[float]] = {}
        for arrays in results.arrays("ood"):
            of_model = {part: ood_scores(torch.from_numpy(logits), "energy").numpy() for part, logits in arrays.items()}
            for part, scores in of_model.items():
                sets.setdefault(part, []).append(scores)
                passing.setdefault(part, []).append(false_positive_rate(of_model["test"], scores)[0])
        if not sets:
            continue
        values = {part: np.concatenate(scores) for part, scores in sets.items()}
        everything = np.concatenate(list(values.values()))
        edges = np.histogram_bin_edges(everything, BINS // 2, tuple(np.quantile(everything, [0.005, 0.995])))
        for style, (part, scores) in zip(cycle(("-", "--", ":", "-.")), values.items(), strict=False):
            density = np.histogram(scores, edges, density=True)[0]
            numbers[f"{name}, {part}"] = {"edges": edges.tolist(), "density": density.tolist()}
            label = f"{name}: {part}"
            if part != "test":
                numbers[f"{name}, {part}"]["fpr95"] = passing[part]
                label += f", FPR95 {100 * np.mean(passing[part]):.3g} %"
            axes.stairs(density, edges, color=colour, linestyle=style, linewidth=1.8, label=label)
    if numbers:
        axes.set(xlabel="energy score", ylabel="density", title="Known images against others")
        legend_outside(axes)
    return numbers


def class_energies(axes: Axes, experiments: Experiments) -> dict[str, Any]:
    """Mean energies -z of all classes for the images of one class, the lowest first: mean and range over that class.

    The returned numbers also hold the mean energy of the label and the mean of the lowest other energy.
    """
    numbers: dict[str, Any] = {}
    for colour, (name, results) in zip(COLOURS, experiments.items(), strict=False):
        evaluations = results.arrays("evaluation")
        if not evaluations:
            continue
        logits = np.concatenate([arrays["logits"] for arrays in evaluations]).astype(np.float64)
        labels = np.concatenate([arrays["labels"] for arrays in evaluations])
        of_label = logits[np.arange(len(labels)), labels]
        others = of_label - margin(torch.from_numpy(logits), torch.from_numpy(labels)).numpy()
        present = np.unique(labels)
        table = np.stack([-logits[labels == label].mean(0) for label in present])
        ranked = table.argsort(1, kind="stable")[:, :RANKS]
        lowest = np.take_along_axis(table, ranked, 1).tolist()
        means = {"label": float(-of_label.mean()), "best_other": float(-others.mean())}
        numbers[name] = {**means, "true": present.tolist(), "classes": ranked.tolist(), "energies": lowest}
        told = f"{name} (label {means['label']:.3g},\nbest other {means['best_other']:.3g})"
        mean_and_range(axes, [list(enumerate(row, 1)) for row in lowest], told, color=colour, marker="o")
    if numbers:
        axes.set(xlabel="classes, by their energy for the images of one", ylabel="mean energy $-z$")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_title("Energies of the classes")
        legend_outside(axes)
    return numbers


def robustness(axes: Axes, experiments: Experiments) -> dict[str, Any]:
    """Accuracy by radius, one line style per objective: where two differ, the higher accuracy is due to rounding.

    For several models mean and range are drawn, at the radii that all of them were attacked with.
    """
    numbers: dict[str, Any] = {}
    for colour, (name, results) in zip(COLOURS, experiments.items(), strict=False):
        by_line: dict[str, list[dict[str, float]]] = {}
        for attack in ("fgsm", "pgd", "pgd-l2"):
            for result in results.json(f"attack_{attack}"):
                for objective, accuracy in result["accuracy"].items():
                    by_line.setdefault(f"{attack}, {objective}", []).append(accuracy)
        for line, rows in by_line.items():
            common = sorted(set.intersection(*map(set, rows)), key=float)
            if not common:
                raise DataError(f"plot: {results.folder} has attacks ({line}) of models without a common radius")
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
    """Test accuracy of each class over its number of training images."""
    numbers: dict[str, Any] = {}
    for colour, (name, results) in zip(COLOURS, experiments.items(), strict=False):
        counts = np.array(_tail_of(results))
        if not len(counts):
            continue
        accuracy = np.array([run["test_class_accuracy"] for run in results.runs], dtype=float)
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
    """Accuracy over confidence in ten bins of equal width, except empty ones; points of more images are larger."""
    numbers: dict[str, Any] = {}
    for colour, (name, results) in zip(COLOURS, experiments.items(), strict=False):
        evaluations = results.arrays("evaluation")
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
