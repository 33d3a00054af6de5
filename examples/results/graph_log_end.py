"""Encouraging loss on graphs by where its bonus turns linear, on the folds of the table of graph classification."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from examples.plotting import colour_of
from examples.results.graph_classification import EPOCHS, TU_DATASETS, fold_gains
from examples.results.paired import Paired, better_equal_worse, p_value
from examples.results.report import asked, commands, copied, distinct, environments, unique
from fairseq_ext.training.errors import DataError
from fairseq_ext.training.files import read_json
from fairseq_ext.training.plotting import GREY, saved_figure
from fairseq_ext.training.runs import run_name
from graph.graph_classification.__main__ import main as train

HEADING = "Encouraging loss on graphs: where the bonus turns linear"

TEXT = """## {heading}

Test accuracy (%) by `--log-end`, on the first {folds} folds of the table above, whose runs of cross-entropy and of
log_end 0.5 these are. Differences from cross-entropy and their intervals as there; *published*: the gain read off
the paper's plot. {environments}.

{commands}

| data set | log_end | accuracy | difference | p | better / equal / worse | published |
|---|---|---|---|---|---|---|
{rows}

![Gain by log_end](results/graph_log_end.png)
"""

PUBLISHED = {
    "PROTEINS": {"cross-entropy": 72.32, "0.25": 72.69, "0.5": 72.72, "0.75": 72.19, "1": 71.5},
    "NCI1": {"cross-entropy": 70.53, "0.25": 70.93, "0.5": 71.04, "0.75": 70.64, "1": 70.38},
}
"""Accuracies of the plot."""
LOG_ENDS = ("0.25", "0.75", "1")
"""Beside the published 0.5."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--datasets", nargs="+", default=list(PUBLISHED), choices=list(PUBLISHED), help="TU data sets")
    parser.add_argument(
        "--log-ends", nargs="+", choices=LOG_ENDS, default=list(LOG_ENDS), help="ends of the logarithm, beside 0.5"
    )
    parser.add_argument("--folds", type=int, default=10, help="folds of the cross-validation")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="epochs of the longest training")


SELECTS = "datasets"


def reads(options: argparse.Namespace) -> dict[str, list[Path]]:
    return {f"graph_log_end_{dataset}": [options.data / TU_DATASETS / dataset] for dataset in options.datasets}


def measure(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Each log_end on every fold, beside the stored runs of cross-entropy and 0.5."""
    for dataset in options.datasets:
        wanted = [run_name(repeat=0, fold=fold) for fold in range(options.folds)]
        stored = _stored(options.docs / "results" / f"graph_classification_{dataset}.json", wanted)
        root = options.out / "TUDataset"
        copied(options.data / TU_DATASETS / dataset, root / dataset)
        runs_of = {}
        for log_end in options.log_ends:
            folder = options.out / "graph_classification" / f"{dataset}-log-end-{log_end}"
            counts = ["--folds", options.folds, "--epochs", options.epochs, "--log-end", log_end]
            train(["train", *map(str, ["--dataset", dataset, "--root", root, "--out", folder, *counts])])
            runs_of[log_end] = asked(read_json(folder / "results.json")["runs"], wanted)
        kept = ("test_accuracy", "epochs", "best_epoch", "bonus_epochs")
        yield {
            "name": f"graph_log_end_{dataset}",
            "dataset": dataset,
            "environments": unique(run["environment"] for runs in runs_of.values() for run in runs.values()),
            "runs_of": {
                arm: {name: {key: run[key] for key in kept if key in run} for name, run in runs.items()}
                for arm, runs in (stored | runs_of).items()
            },
        }


def _stored(file: Path, names: list[str]) -> dict[str, dict[str, Any]]:
    """The runs of the table, by arm.

    Raises:
        DataError: the table is not measured, or has fewer folds.
    """
    runs_of = read_json(file)["runs_of"] if file.exists() else {"encouraging": {}}
    if absent := [name for name in names if name not in runs_of["encouraging"]]:
        raise DataError(f"{file}: has no {absent[0]}; first: python -m examples.results graph_classification")
    return {
        arm: asked(runs_of[name], names) for arm, name in (("cross-entropy", "cross-entropy"), ("0.5", "encouraging"))
    }


def arms(content: dict[str, Any]) -> list[str]:
    """The values of log_end, in their order."""
    return sorted((arm for arm in content["runs_of"] if arm != "cross-entropy"), key=float)


def paired(content: dict[str, Any], arm: str, other: str = "cross-entropy") -> Paired:
    """What ``arm`` gains over ``other``."""
    gains, ratio = fold_gains(content["runs_of"][other], content["runs_of"][arm])
    return Paired.of(gains, test_per_train=ratio)


def section(contents: list[dict[str, Any]]) -> str:
    """One table."""
    rows = [_row(content, arm) for content in contents for arm in ("cross-entropy", *arms(content))]
    return TEXT.format(
        heading=HEADING,
        folds=" or ".join(str(count) for count in unique(len(content["runs_of"]["0.5"]) for content in contents)),
        environments=distinct(contents, environments, "; "),
        commands=commands(contents),
        rows="\n".join(rows),
    )


def _row(content: dict[str, Any], arm: str) -> str:
    runs, plain = content["runs_of"][arm], content["runs_of"]["cross-entropy"]
    start = (
        f"| {content['dataset']} | {arm} | {100 * statistics.fmean(run['test_accuracy'] for run in runs.values()):.2f}"
    )
    if arm == "cross-entropy":
        return f"{start} | | | | |"
    own, gains = paired(content, arm), fold_gains(plain, runs)[0]
    published = _published(content["dataset"], arm)
    return f"{start} | {own.text(2)} | {p_value(own.p)} | {better_equal_worse(gains)} | {published:+.2f} |"


def _published(dataset: str, arm: str) -> float:
    return PUBLISHED[dataset][arm] - PUBLISHED[dataset]["cross-entropy"]


def draw(contents: list[dict[str, Any]], folder: Path) -> None:
    """The gain over cross-entropy by log_end, a panel for each data set."""
    with saved_figure(
        folder / "graph_log_end.png", (8.5, 3.6), "Encouraging loss on graphs: gain by log_end"
    ) as figure:
        panels = figure.subplots(1, len(contents), sharey=True, squeeze=False)[0]
        for axes, content in zip(panels, contents, strict=True):
            values, colour = [float(arm) for arm in arms(content)], colour_of("encouraging")
            gains = [paired(content, arm) for arm in arms(content)]
            ends = [
                [gain.mean - gain.low, gain.high - gain.mean]
                for gain in gains
                if gain.low is not None and gain.high is not None
            ]
            bars = list(zip(*ends, strict=True)) if len(ends) == len(gains) else None
            axes.errorbar(values, [gain.mean for gain in gains], bars, fmt="o-", color=colour, label="here")
            published = [_published(content["dataset"], arm) for arm in arms(content)]
            axes.plot(values, published, "s--", color=GREY, label="published")
            axes.axhline(0, color="0.6", linewidth=1, zorder=0)
            axes.set_title(content["dataset"])
            axes.set_xticks(values)
        figure.supxlabel("log_end")
        panels[0].set_ylabel("points over cross-entropy")
        panels[-1].legend()
