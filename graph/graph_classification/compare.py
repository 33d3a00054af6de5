"""Two experiments compared by their pairs of runs, and the spread that the published accuracies have."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from fairseq_ext.training.errors import DataError, OptionError
from fairseq_ext.training.files import read_json
from fairseq_ext.training.pairs import paired_differences

__all__ = ["compare", "spread_of_repeats"]

# What two experiments must share for their runs to be pairs.
PAIRED_BY = ("dataset", "use_node_attr", "folds", "runs", "repeats", "seed", "inputs")


def spread_of_repeats(runs: dict[str, dict[str, float]]) -> float:
    """Standard deviation of the repeats' mean test accuracies: what follows the published accuracies' ``±``."""
    repeats: dict[str, list[float]] = {}
    for name, run in runs.items():
        repeats.setdefault(name.split("-")[0], []).append(run["test_accuracy"])
    return statistics.pstdev(statistics.fmean(accuracies) for accuracies in repeats.values())


def _finished(folder: str | Path) -> tuple[dict[str, Any], dict[str, float]]:
    """The settings of an experiment, and the test accuracy of each of its runs."""
    try:
        results = read_json(Path(folder) / "results.json")
        accuracies = {name: run["test_accuracy"] for name, run in results["runs"].items()}
        if not all(0 <= value <= 1 for value in accuracies.values()):
            raise ValueError("an accuracy that is none")
        return dict(results["settings"]), accuracies
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        raise DataError(f"{folder}: no results.json of graph_classification ({type(error).__name__})") from error


def compare(first: str | Path, second: str | Path) -> dict[str, float]:
    """Paired differences, ``second - first``, of the test accuracies of two experiment folders.

    Returns:
        Those of :func:`~fairseq_ext.training.pairs.paired_differences`.

    Raises:
        DataError: a folder without results.
        OptionError: other data or splits.
    """
    settings, accuracies = zip(*map(_finished, (first, second)), strict=True)
    for name in PAIRED_BY:
        values = [of_one.get(name) for of_one in settings]
        if values[0] != values[1]:
            raise OptionError(f"compare: {name} is {values[0]} in {first} and {values[1]} in {second}: no pairs")
    if not accuracies[0].keys() & accuracies[1].keys():
        raise OptionError(f"compare: {first} and {second} share no finished run")
    return paired_differences(*accuracies)
