"""Graph classification: cross-entropy and encouraging loss on the same folds and initial weights."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator
from typing import Any

from examples.results.report import asked, commands, copied, distinct, environments, mean_spread, unique
from fairseq_ext.training.files import read_json
from fairseq_ext.training.runs import run_name
from graph.graph_classification.__main__ import main as train
from graph.graph_classification.options import DEFER_START, LOSSES

TEXT = """## Encouraging loss on graphs

Test accuracy (%). *Difference*: encouraging loss minus cross-entropy, paired by fold, seed and initial weights, ± its
spread over the pairs; no interval, because folds share their training data. The bonus starts after epoch {defer}, as
published: runs that end, or are best, before it are equal by construction. {environments}.

{commands}

| data set | protocol | cross-entropy | encouraging loss | difference | better / equal / worse |
|---|---|---|---|---|---|
{rows}
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--datasets", nargs="+", default=["PROTEINS", "NCI1"], help="TU data sets")
    parser.add_argument("--folds", type=int, default=10, help="folds of the cross-validation")
    parser.add_argument("--repeats", type=int, default=3, help="cross-validations")
    parser.add_argument("--epochs", type=int, default=1000, help="of the longest training")


SELECTS = "datasets"


def names(options: argparse.Namespace) -> list[str]:
    return [f"graph_classification_{dataset}" for dataset in options.datasets]


def measure(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Both losses on every fold of every data set."""
    for dataset in options.datasets:
        root = options.out / "TUDataset"
        copied(options.data / "pyg" / "TUDataset" / dataset, root / dataset)
        folders = {loss: options.out / "graph_classification" / f"{dataset}-{loss}" for loss in LOSSES}
        for loss, folder in folders.items():
            counts = ["--folds", options.folds, "--repeats", options.repeats, "--epochs", options.epochs]
            arguments = ["--dataset", dataset, "--root", root, "--loss", loss, "--out", folder, *counts]
            train(["train", *map(str, arguments)])
        wanted = [
            run_name(repeat=repeat, fold=fold) for repeat in range(options.repeats) for fold in range(options.folds)
        ]
        runs_of = {loss: asked(read_json(folder / "results.json")["runs"], wanted) for loss, folder in folders.items()}
        yield {
            "name": f"graph_classification_{dataset}",
            "dataset": dataset,
            "protocol": f"{options.repeats} x {options.folds} folds, at most {options.epochs} epochs",
            "environments": unique(run["environment"] for runs in runs_of.values() for run in runs.values()),
            "runs_of": runs_of,
        }


def section(contents: list[dict[str, Any]]) -> str:
    """One table."""
    rows = []
    for content in contents:
        first, second = (content["runs_of"][loss] for loss in ("cross-entropy", "encouraging"))
        accuracies = [[100 * runs[name]["test_accuracy"] for name in first] for runs in (first, second)]
        gains = [b - a for a, b in zip(*accuracies, strict=True)]
        counts = f"{sum(x > 0 for x in gains)} / {sum(x == 0 for x in gains)} / {sum(x < 0 for x in gains)}"
        means = " | ".join(f"{statistics.fmean(side):.2f}" for side in accuracies)
        gain = f"{'+' if statistics.fmean(gains) >= 0 else ''}{mean_spread(gains, 2)}"
        rows.append(f"| {content['dataset']} | {content['protocol']} | {means} | {gain} | {counts} |")
    return TEXT.format(
        environments=distinct(contents, environments, "; "),
        commands=commands(contents),
        defer=", ".join(f"{epoch} on {dataset}" for dataset, epoch in DEFER_START.items()),
        rows="\n".join(rows),
    )
