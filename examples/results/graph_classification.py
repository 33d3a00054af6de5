"""Graph classification: cross-entropy and encouraging loss on the same folds and initial weights."""

from __future__ import annotations

import argparse
import re
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from examples.results.paired import Paired, better_equal_worse, p_value
from examples.results.report import asked, commands, copied, distinct, environments, unique
from fairseq_ext.training.files import read_json
from fairseq_ext.training.runs import run_name
from graph.graph_classification.__main__ import main as train
from graph.graph_classification.options import DEFER_START, LOSSES

HEADING = "Encouraging loss on graphs"
TU_DATASETS = "pyg/TUDataset"
"""Below ``--data``."""
EPOCHS = 1000

TEXT = """## {heading}

Test accuracy (%). *Difference*: encouraging loss minus cross-entropy, paired by fold, seed and initial weights. Folds
share their training data, so the variance of the mean is (1/n + ρ) s² in the place of s²/n (n pairs, ρ the ratio of
test to training graphs, 1/8 of ten folds: the corrected resampled t-test of Nadeau and Bengio, 2003). The bonus starts
after epoch {defer}, as published: runs that end, or are best, before it are equal by construction. {environments}.

{commands}

| data set | protocol | cross-entropy | encouraging loss | difference | p | better / equal / worse |
|---|---|---|---|---|---|---|
{rows}
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--datasets", nargs="+", default=["PROTEINS", "NCI1"], help="TU data sets")
    parser.add_argument("--folds", type=int, default=10, help="folds of the cross-validation")
    parser.add_argument("--repeats", type=int, default=3, help="number of cross-validations")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="epochs of the longest training")


SELECTS = "datasets"


def reads(options: argparse.Namespace) -> dict[str, list[Path]]:
    return {f"graph_classification_{dataset}": [options.data / TU_DATASETS / dataset] for dataset in options.datasets}


def measure(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Both losses on every fold of every data set."""
    for dataset in options.datasets:
        root = options.out / "TUDataset"
        copied(options.data / TU_DATASETS / dataset, root / dataset)
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


def accuracies(content: dict[str, Any]) -> tuple[list[float], list[float]]:
    """Test accuracies (%) with cross-entropy and with the encouraging loss, run by run."""
    first, second = (content["runs_of"][loss] for loss in ("cross-entropy", "encouraging"))
    return [100 * first[name]["test_accuracy"] for name in first], [
        100 * second[name]["test_accuracy"] for name in first
    ]


def fold_gains(plain: Mapping[str, dict[str, Any]], runs: Mapping[str, dict[str, Any]]) -> tuple[list[float], float]:
    """The gain (points) of each fold, and its test graphs for each training graph: one fold tests, one validates."""
    folds = len({name.split("-")[1] for name in plain})
    return [100 * (runs[name]["test_accuracy"] - plain[name]["test_accuracy"]) for name in plain], 1 / (folds - 2)


def paired(content: dict[str, Any]) -> Paired:
    """The gain of a fold is a pair."""
    gains, ratio = fold_gains(content["runs_of"]["cross-entropy"], content["runs_of"]["encouraging"])
    return Paired.of(gains, test_per_train=ratio)


def section(contents: list[dict[str, Any]]) -> str:
    """One table."""
    rows = []
    for content in contents:
        sides, gain = accuracies(content), paired(content)
        counts = better_equal_worse(own - other for other, own in zip(*sides, strict=True))
        means = " | ".join(f"{statistics.fmean(side):.2f}" for side in sides)
        start = f"{content['dataset']} | {content['protocol']} | {means}"
        rows.append(f"| {start} | {gain.text(2)} | {p_value(gain.p)} | {counts} |")
    return TEXT.format(
        heading=HEADING,
        environments=distinct(contents, environments, "; "),
        commands=commands(contents),
        defer=", ".join(f"{epoch} on {dataset}" for dataset, epoch in DEFER_START.items()),
        rows="\n".join(rows),
    )


def epochs_allowed(content: dict[str, Any]) -> int:
    """Of the longest training, by the command that a file was measured with."""
    typed = re.search(r"--epochs (\d+)", content.get("command", ""))
    return int(typed[1]) if typed else EPOCHS
