"""Figures of the loss: its curve, its gradients for well classified images, and a sweep of LE.

LE is the probability at which the logarithm of the bonus turns linear, ``log_end``.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from fairseq_ext.training.plotting import name_lines
from vision_language.image_classification.objective import Objective
from vision_language.image_classification.options import LossOptions
from vision_language.image_classification.results import COLOURS, Experiments, Results

__all__ = ["gradient_training", "gradients", "loss_gradients", "losses", "sweep"]

STYLES = {"features": "-", "logits": "--"}
OF = {"features": "features $h$", "logits": "logits $z$"}

REFERENCES = {
    "cross-entropy": LossOptions(loss="cross-entropy"),
    **{f"LE {end:g}": LossOptions(log_end=end) for end in (0.0, 0.5, 0.75, 1.0)},
    "aggressive": LossOptions(log_end=1.0, bonus_start=0.5),
    "halted focal": LossOptions(loss="halted-focal"),
}
"""Thin lines to compare an experiment's own loss with."""

LEAST = 1e-8
"""Gradients below this value are not drawn."""
LINES: tuple[Any, ...] = ("-", ":", "--", "-.", (0, (5, 1)), (0, (1, 1)), (0, (3, 1, 1, 1, 1, 1)))


def _loss_options(results: Results) -> LossOptions:
    names = {item.name for item in fields(LossOptions)}
    return LossOptions(**{name: value for name, value in results.settings.items() if name in names})


@cache
def _curve(options: LossOptions, epochs: int = 1, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probability of the label, loss, and size of the loss's slope in the label's logit.

    They are computed for two classes of equal size, in the last epoch.
    """
    odds, label = torch.linspace(-5, 9, 141), torch.zeros(1, dtype=torch.long)
    objective = Objective(options, [1, 1], epochs, scale)

    def loss(z: torch.Tensor) -> torch.Tensor:
        return objective(torch.stack([z, torch.zeros_like(z)])[None], label, epochs)

    slopes, values = torch.func.vmap(torch.func.grad_and_value(loss))(odds)
    return odds.sigmoid().numpy(), values.numpy(), slopes.abs().numpy()


def _curves(axes: Axes, experiments: Experiments, which: int) -> dict[str, Any]:
    numbers: dict[str, Any] = {}
    for number, (name, options) in enumerate(REFERENCES.items()):
        parts = _curve(options)
        numbers[name] = {"probability": parts[0].tolist(), "value": parts[which].tolist()}
        shade = 0.06 * number
        axes.plot(parts[0], parts[which], color=str(shade), linewidth=0.9, linestyle=LINES[number], label=name)
    for colour, (name, results) in zip(COLOURS, experiments.items(), strict=False):
        parts = _curve(
            _loss_options(results), results.settings.get("epochs", 1), results.settings.get("cosine_scale") or 1.0
        )
        numbers[f"experiment {name}"] = {"probability": parts[0].tolist(), "value": parts[which].tolist()}
        axes.plot(parts[0], parts[which], color=colour, linewidth=3, alpha=0.6, label=f"{name} (its loss)", zorder=1)
    axes.set(xlabel="$p_y$", xlim=(0, 1))
    axes.axvline(0.5, color="0.8", linewidth=0.8, zorder=0)
    name_lines(axes)
    return numbers


def losses(axes: Axes, experiments: Experiments) -> dict[str, Any]:
    """The loss of an image over the probability of its label; the bonus makes it negative."""
    numbers = _curves(axes, experiments, 1)
    axes.axhline(0, color="0.8", linewidth=0.8, zorder=0)
    axes.set(ylabel="loss of an image", ylim=(-6, 5), title="What is a well classified image worth?")
    return numbers


def loss_gradients(axes: Axes, experiments: Experiments) -> dict[str, Any]:
    """The slope of the loss in the label's logit; where it is 0, nothing more is learned from an image."""
    numbers = _curves(axes, experiments, 2)
    axes.set(ylabel=r"$|\partial L / \partial z_y|$", ylim=(0, None), title="How hard does the loss pull at an image?")
    return numbers


def gradients(axes: Axes, experiments: Experiments) -> dict[str, Any]:
    """Gradients of the trained model's loss on test images, over the log-odds of the labels."""
    numbers: dict[str, Any] = {}
    for colour, (name, results) in zip(COLOURS, experiments.items(), strict=False):
        runs = [run["test_gradients"] for run in results.runs if "test_gradients" in run]
        for part, style in STYLES.items():
            points = _pooled([run for run in runs if part in run], part)
            if points:
                numbers[f"{name}, {part}"] = points
                line = f"{style}o"
                axes.plot(points["log_odds"], points["norm"], line, color=colour, label=f"{name}: {OF[part]}")
    if numbers:
        axes.axvline(0, color="0.6", linewidth=0.8)
        axes.set(yscale="log", xlabel=r"$\log\, p_y / (1 - p_y)$", ylabel="mean norm of the gradient")
        axes.set_ylim(bottom=LEAST)
        seen = [
            odds
            for each in numbers.values()
            for odds, norm in zip(each["log_odds"], each["norm"], strict=True)
            if norm >= LEAST
        ]
        axes.set_xlim(min(seen) - 1, max(seen) + 2)
        axes.set_title("What is left to learn from a test image?")
        name_lines(axes)
    return numbers


def _pooled(runs: list[dict[str, Any]], part: str) -> dict[str, list[float]]:
    """Means over the images of all runs, for each bin that holds images."""
    points: dict[str, list[float]] = {"log_odds": [], "norm": [], "images": []}
    for number in range(len(runs[0]["images"]) if runs else 0):
        held = [run for run in runs if run["images"][number]]
        count = sum(run["images"][number] for run in held)
        if count:
            for key, source in (("log_odds", "log_odds"), ("norm", part)):
                points[key].append(sum(run["images"][number] * run[source][number] for run in held) / count)
            points["images"].append(count)
    return points if points["images"] else {}


def gradient_training(axes: Axes, experiments: Experiments) -> dict[str, Any]:
    """Means of the gradients over the validation images, by epoch."""
    numbers: dict[str, Any] = {}
    for colour, (name, results) in zip(COLOURS, experiments.items(), strict=False):
        for part, style in STYLES.items():
            key = f"{part}_gradient"
            histories = [[entry for entry in run["history"] if key in entry] for run in results.runs]
            if not all(histories):
                continue
            epochs = [entry["epoch"] for entry in histories[0]]
            values = np.array([[entry[key] for entry in history] for history in histories])
            numbers[f"{name}, {part}"] = {"epochs": epochs, "norm": values.tolist()}
            axes.plot(epochs, values.mean(0), f"{style}o", color=colour, label=f"{name}: {OF[part]}")
    if numbers:
        axes.set(yscale="log", xlabel="epoch", ylabel="mean norm of the gradient")
        axes.set_title("What is left to learn from the validation images?")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        name_lines(axes)
    return numbers


def sweep(axes: Axes, experiments: Experiments) -> dict[str, Any]:
    """Test accuracy over LE, where the logarithm of the bonus ends, for experiments that differ in nothing else."""
    points: dict[float | None, list[float]] = {}
    shared = []
    for results in experiments.values():
        options = _loss_options(results)
        if options.loss not in ("cross-entropy", "encouraging"):
            continue
        end = options.log_end if options.loss == "encouraging" else None
        shared.append({key: value for key, value in results.settings.items() if key not in ("loss", "log_end")})
        if end not in points:
            points[end] = [run["test_accuracy"] for run in results.runs]
    ends = sorted(end for end in points if end is not None)
    if len(ends) < 2 or any(settings != shared[0] for settings in shared):
        return {}
    _bars(axes, {f"{end:g}": points[end] for end in ends}, ends, "o-")
    if None in points:
        left = ends[0] - 0.15
        _bars(axes, {"none": points[None]}, [left], "s")
        axes.set_xticks([left, *ends], ["no bonus", *(f"{end:g}" for end in ends)])
    axes.set(xlabel="LE, where the logarithm of the bonus ends", ylabel="test accuracy")
    axes.set_title("How much bonus?")
    return {"no bonus" if end is None else f"{end:g}": values for end, values in points.items()}


def _bars(axes: Axes, values: Mapping[str, list[float]], places: list[float], style: str) -> None:
    means = [statistics.fmean(each) for each in values.values()]
    spreads = [statistics.pstdev(each) for each in values.values()]
    axes.errorbar(places, means, yerr=spreads, fmt=style, color=COLOURS[0], elinewidth=2.2)
