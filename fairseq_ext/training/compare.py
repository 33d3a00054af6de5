"""Compares two experiments by the runs that both have."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairseq_ext.training import directions
from fairseq_ext.training.errors import DataError, OptionError
from fairseq_ext.training.files import read_json
from fairseq_ext.training.options import OptionSet, option
from fairseq_ext.training.runs import shared_results
from fairseq_ext.training.settings import Settings

__all__ = ["Pair", "compare", "compare_experiments", "paired_differences"]


@dataclass(frozen=True, kw_only=True)
class Pair(OptionSet):
    """The two experiments."""

    first: str = option(help="folder of results", positional=True)
    second: str = option(help="another folder of results, of the same data and splits", positional=True)
    metric: str = option("", "figure of the runs to compare (default: every one that all have)")


def compare(pair: Pair) -> list[dict[str, Any]]:
    """Paired differences of the figures of two experiments, second minus first, and what they were trained with."""
    return compare_experiments(pair.first, pair.second, pair.metric)


def compare_experiments(
    first: str | Path, second: str | Path, metric: str = "", paired_by: Collection[str] = ()
) -> list[dict[str, Any]]:
    """Compare the ``results.json`` of two :class:`~fairseq_ext.training.runs.Experiment`, run by run.

    Args:
        first, second: folders of the experiments.
        metric: only this figure of the runs. Default: every number that all runs have.
        paired_by: settings that both must share for runs of the same name to be a pair, beside ``inputs``, the digests
            of the data and models that they read.

    Returns:
        ``{"settings": {name: [first, second]}}`` with the settings that differ; then, for each figure, its ``metric``
        and :func:`paired_differences`.

    Raises:
        DataError: a folder without results.
        OptionError: a figure that a run lacks, different data or splits, or no run that both have.
    """
    (settings, runs), (other_settings, other_runs) = map(_read, (first, second))
    differing = {name: [before, now] for name, before, now in Settings(other_settings).differing(settings)}
    for name, (before, now) in differing.items():
        if name.partition(".")[0] in ("inputs", *paired_by):
            raise OptionError(f"compare: {name} is {before} in {first} and {now} in {second}: no pairs")
    if not runs.keys() & other_runs.keys():
        raise OptionError(f"compare: {first} and {second} share no finished run")
    metrics = shared_results([*runs.values(), *other_runs.values()])
    if metric and metric not in metrics:
        raise OptionError(f"--metric {metric}: the runs have {', '.join(metrics) or 'no figure'}")
    rows: list[dict[str, Any]] = [{"settings": differing}]
    for name in [metric] if metric else metrics:
        one, other = ({run: figures[name] for run, figures in each.items()} for each in (runs, other_runs))
        rows.append({"metric": name, **paired_differences(one, other, directions.lower_is_better(name))})
    return rows


def _read(folder: str | Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The settings of an experiment, and its runs."""
    results = read_json(Path(folder) / "results.json")
    try:
        settings, runs = dict(results["settings"]), {name: dict(run) for name, run in results["runs"].items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{folder}: no results.json of a training ({type(error).__name__})") from error
    if "inputs" not in settings:
        raise DataError(f"{folder}: its settings do not say what was read (inputs): no pairs")
    return settings, runs


def paired_differences(
    first: Mapping[str, float], second: Mapping[str, float], lower_is_better: bool | None = False
) -> dict[str, float]:
    """Second minus first of each run that both have.

    Args:
        first, second: a figure by the name of its run; at least one name is in both.
        lower_is_better: of the figure, as :func:`~fairseq_ext.training.directions.lower_is_better` says; None if
            neither is better. Default: False.

    Returns:
        How many ``runs`` both have; the means ``first`` and ``second``; the mean ``difference`` and its population
        standard deviation ``std``; and how often the second was ``better``, ``equal`` and ``worse``, or ``higher``,
        ``equal`` and ``lower`` where neither is better.
    """
    shared = [name for name in first if name in second]
    differences = [second[name] - first[name] for name in shared]
    above, below = ("higher", "lower") if lower_is_better is None else ("better", "worse")
    if lower_is_better:
        above, below = below, above
    counts = {
        above: sum(difference > 0 for difference in differences),
        "equal": sum(difference == 0 for difference in differences),
        below: sum(difference < 0 for difference in differences),
    }
    return {
        "runs": len(shared),
        "first": statistics.fmean(first[name] for name in shared),
        "second": statistics.fmean(second[name] for name in shared),
        "difference": statistics.fmean(differences),
        "std": statistics.pstdev(differences),
        **(dict(reversed(counts.items())) if lower_is_better else counts),
    }
