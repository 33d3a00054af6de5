"""Graph classification: cross-entropy and encouraging loss on the same folds and initial weights."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator
from typing import Any

from examples.results.report import commands, describe, distinct
from fairseq_ext.errors import DataError
from fairseq_ext.experiments import environment
from fairseq_ext.files import read_json
from graph.graph_classification.__main__ import main as train
from graph.graph_classification.compare import compare
from graph.graph_classification.train import DEFER_START, LOSSES

TEXT = """## Encouraging loss on graphs

Test accuracy (%). *Difference*: encouraging loss minus cross-entropy, paired by fold, seed and initial weights, ± its
standard deviation over the pairs. The bonus starts after epoch {defer}, as published: runs that end, or are best,
before it are equal by construction. {environments}.

{commands}

| data set | protocol | cross-entropy | encouraging loss | difference | better / equal / worse |
|---|---|---|---|---|---|
{rows}
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--datasets", nargs="+", default=["PROTEINS", "NCI1"], help="TU data sets")
    parser.add_argument("--folds", type=int, default=10, help="folds of the cross-validation")
    parser.add_argument("--repeats", type=int, default=3, help="cross-validations")
    parser.add_argument("--max-epochs", type=int, default=1000, help="longest training")


def measure(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Both losses on every fold of every data set."""
    for dataset in options.datasets:
        source, root = options.data / "pyg" / "TUDataset" / dataset, options.out / "TUDataset"
        if not (root / dataset).is_dir():
            if not source.is_dir():
                raise DataError(f"--data: {source} is not a folder with the raw files of {dataset}")
            shutil.copytree(source, root / dataset)
        folders = {loss: options.out / "graph_classification" / f"{dataset}-{loss}" for loss in LOSSES}
        for loss, folder in folders.items():
            counts = ["--folds", options.folds, "--repeats", options.repeats, "--max-epochs", options.max_epochs]
            arguments = ["--dataset", dataset, "--root", root, "--loss", loss, "--out", folder, *counts]
            train(["train", *map(str, arguments)])
        yield {
            "name": f"graph_classification_{dataset}",
            "dataset": dataset,
            "protocol": f"{options.repeats} x {options.folds} folds, at most {options.max_epochs} epochs",
            "environment": environment("torch-geometric", "scikit-learn"),
            **compare(folders["cross-entropy"], folders["encouraging"]),
            "runs_of": {loss: read_json(folder / "results.json")["runs"] for loss, folder in folders.items()},
        }


def section(contents: list[dict[str, Any]]) -> str:
    """One table."""
    rows = [
        f"| {row['dataset']} | {row['protocol']} | {100 * row['first']:.2f} | {100 * row['second']:.2f} | "
        f"{100 * row['difference']:+.2f} ± {100 * row['std']:.2f} | {row['better']} / {row['equal']} / {row['worse']} |"
        for row in contents
    ]
    return TEXT.format(
        environments=distinct(contents, lambda content: describe(content["environment"]), "; "),
        commands=commands(contents),
        defer=", ".join(f"{epoch} on {dataset}" for dataset, epoch in DEFER_START.items()),
        rows="\n".join(rows),
    )
