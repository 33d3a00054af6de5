"""Two experiments compared by their pairs of runs, and the spread that the published accuracies have."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from fairseq_ext.training.errors import DataError, OptionError
from fairseq_ext.training.files import read_json

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
        ``runs`` that both hold, ``first`` and ``second`` (their means), ``difference`` and its ``std`` over the runs,
        and how often the second was ``better``, ``equal`` and ``worse``.

    Raises:
        DataError: a folder without results.
        OptionError: other data or splits.
    """
    settings, accuracies = zip(*map(_finished, (first, second)), strict=True)
    for name in PAIRED_BY:
        values = [of_one.get(name) for of_one in settings]
        if values[0] != values[1]:
            raise OptionError(f"compare: {name} is {values[0]} in {first} and {values[1]} in {second}: no pairs")
    shared = [name for name in accuracies[0] if name in accuracies[1]]
    if not shared:
        raise OptionError(f"compare: {first} and {second} share no finished run")
    differences = [accuracies[1][name] - accuracies[0][name] for name in shared]
    return {
        "runs": len(shared),
        "first": statistics.fmean(accuracies[0][name] for name in shared),
        "second": statistics.fmean(accuracies[1][name] for name in shared),
        "difference": statistics.fmean(differences),
        "std": statistics.pstdev(differences),
        "better": sum(difference > 0 for difference in differences),
        "equal": sum(difference == 0 for difference in differences),
        "worse": sum(difference < 0 for difference in differences),
    }
