"""Cells of the tables, and what a table says against cross-entropy."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from typing import Any

from examples.results.paired import Paired
from examples.results.report import mean_spread, of_seeds

__all__ = [
    "BASELINE",
    "Content",
    "Figure",
    "Runs",
    "cell",
    "difference",
    "differences",
    "key",
    "reading",
    "rows",
    "runs_of",
    "seconds",
    "shown",
]

Content = dict[str, Any]
Runs = dict[str, dict[str, Any]]
Figure = Callable[[dict[str, Any]], "float | None"]

BASELINE = "cross-entropy"


def runs_of(content: Content) -> dict[str, Runs]:
    return {row["system"]: row["runs"] for row in content["rows"]}


def seconds(content: Content) -> str:
    """How long a training took: the median of all."""
    each = [run["steps"] * run["seconds_per_step"] for row in content["rows"] for run in row["runs"].values()]
    return f"{of_seeds(runs_of(content))}, {statistics.median(each):.0f} s a training (median)."


def cell(runs: Runs, figure: Figure, digits: int = 1, scale: float = 100) -> str:
    values = [value for value in map(figure, runs.values()) if value is not None]
    return mean_spread([scale * value for value in values], digits) if values else ""


def differences(runs: Runs, baseline: Runs, figure: Figure, scale: float = 100) -> list[float]:
    """Minus the baseline, seed by seed."""
    pairs = [(figure(run), figure(baseline[seed])) for seed, run in runs.items() if seed in baseline]
    return [scale * (own - other) for own, other in pairs if own is not None and other is not None]


def difference(runs: Runs, baseline: Runs, figure: Figure, scale: float = 100) -> Paired | None:
    """Minus the baseline, paired by seed; None where there is no pair."""
    gains = differences(runs, baseline, figure, scale)
    return Paired.of(gains) if gains else None


def shown(paired: Paired | None, digits: int = 1) -> str:
    return paired.text(digits) if paired else ""


def key(name: str) -> Figure:
    return lambda run: run.get(name)


def rows(content: Content, figures: dict[str, tuple[Figure, int, float]]) -> Iterator[str]:
    """Accuracy and difference, then the other figures: what they are, their digits and their scale."""
    runs = runs_of(content)
    accuracy = key("test_accuracy")
    for name, own in runs.items():
        gain = difference(own, runs.get(BASELINE, {}), accuracy) if name != BASELINE else None
        cells = [cell(own, accuracy, 2), shown(gain, 2), *(cell(own, *form) for form in figures.values())]
        yield f"| {name} | {' | '.join(cells)} |"


def reading(content: Content) -> str:
    """Which rows are above and below cross-entropy, by the intervals of their differences."""
    runs = runs_of(content)
    gains: dict[str, Paired | None] = {
        name: difference(own, runs.get(BASELINE, {}), key("test_accuracy"))
        for name, own in runs.items()
        if name != BASELINE
    }
    above = [name for name, gain in gains.items() if gain and gain.gains]
    below = [name for name, gain in gains.items() if gain and gain.loses]
    said = [
        f"{verb} {', '.join(f'*{name}*' for name in names)}"
        for names, verb in ((above, "gains:"), (below, "loses:"))
        if names
    ]
    rest = len(gains) - len(above) - len(below)
    said += [f"the interval of the other {rest} holds 0"] if said and rest else []
    return f"Against cross-entropy {'; '.join(said)}." if said else "No interval excludes 0."
