"""Two experiments compared by their pairs of runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairseq_ext.training.directions import lower_is_better
from fairseq_ext.training.errors import DataError, OptionError
from fairseq_ext.training.files import read_json
from fairseq_ext.training.options import OptionSet, option
from fairseq_ext.training.pairs import paired_differences

__all__ = ["Pair", "compare"]

PAIRED_BY = ("inputs", "long_tail", "imbalance_factor", "network", "epochs", "batch_size")
"""What two experiments must share for their runs of one seed to be a pair."""


@dataclass(frozen=True, kw_only=True)
class Pair(OptionSet):
    """The two experiments."""

    first: str = option(help="folder of results", positional=True)
    second: str = option(help="another one, of the same data", positional=True)
    metric: str = option("test_accuracy", "which figure of the runs")


def _finished(folder: str, metric: str) -> tuple[dict[str, Any], dict[str, float]]:
    try:
        results = read_json(Path(folder) / "results.json")
        runs = {name: run.get(metric) for name, run in results["runs"].items()}
        settings = dict(results["settings"])
    except (AttributeError, KeyError, TypeError) as error:
        raise DataError(f"{folder}: no results.json of image_classification ({type(error).__name__})") from error
    if lacking := [name for name, value in runs.items() if not isinstance(value, (int, float))]:
        numbers = [name for name, value in results["runs"][lacking[0]].items() if isinstance(value, (int, float))]
        raise OptionError(f"--metric {metric}: run {lacking[0]} of {folder} has {', '.join(numbers)}")
    return settings, runs


def compare(pair: Pair) -> dict[str, float]:
    """Paired differences, second minus first, of a figure of two experiments.

    Raises:
        DataError: a folder without results.
        OptionError: other data, another network, or no run of both.
    """
    (one, first), (other, second) = (_finished(folder, pair.metric) for folder in (pair.first, pair.second))
    for name in PAIRED_BY:
        if one.get(name) != other.get(name):
            raise OptionError(f"compare: {name} differs between {pair.first} and {pair.second}: no pairs")
    if not first.keys() & second.keys():
        raise OptionError(f"compare: {pair.first} and {pair.second} share no finished run")
    return paired_differences(first, second, lower_is_better(pair.metric))
