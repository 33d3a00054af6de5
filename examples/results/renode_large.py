"""PPRGo on graphs with many classes, with and without ReNode, on the same splits and initial weights."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from examples.results.paired import Paired, p_value
from examples.results.renode_gains import pairs
from examples.results.renode_recipes import best_so_far, typed
from examples.results.report import asked, commands, distinct, environments, mean_spread, unique
from graph.renode.options import LargeOptions, LargeRuns
from graph.renode.train_large import run

HEADING = "ReNode at scale: PPRGo"

TEXT = """## {heading}

F1 (x 100) on the test nodes, mean ± spread over {runs} splits, each with initial weights of its own. *Difference*:
from off, paired by split. wordnet: 117,659 synsets, 45 classes of 42 to 14,435 nodes; debian_deps: packages, 58
classes. As many labelled nodes of each class as the smallest allows: topology imbalance alone. *exact*: Totoro by
sparse solves; *push-softmax*: the released score for large graphs. {environments}.

The released recipe for large graphs but for these (our choice, on the validation nodes of split 0 without ReNode):

{recipes}

{commands}

| data set | ReNode | weighted F1 | difference | p | better | macro F1 | difference |
|---|---|---|---|---|---|---|---|
{rows}
"""

SHARED: dict[str, Any] = {"topk": 128, "hidden_size": 64, "dropout": 0.5, "lr": 0.02}
RECIPES: dict[str, dict[str, Any]] = {
    "wordnet": {"train_each": 16, **SHARED, "epochs": 80, "patience": 50, "validate_every": 5},
    "debian_deps": {"train_each": 5, **SHARED, "epochs": 160, "patience": 50, "validate_every": 5},
}
"""The smallest classes have 42 and 15 nodes, of which validation takes 1.5 times as many as training."""

ARMS: dict[str, dict[str, Any]] = {
    "off": {"renode": "off"},
    "exact": {},
    "exact, weights 0.5 to 1.5": {"w_min": 0.5, "w_max": 1.5},
    "push-softmax": {"totoro": "push-softmax"},
}
METRICS = ("weighted_f1", "macro_f1")
KEPT = (*METRICS, "epochs", "best_epoch")

SELECTS = "datasets"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--datasets", nargs="+", choices=list(RECIPES), default=list(RECIPES), help="data sets")
    parser.add_argument(
        "--arms", nargs="+", choices=list(ARMS), default=list(ARMS), help="weightings to compare, with off"
    )
    parser.add_argument("--splits", type=int, default=5, help="number of splits")


def reads(options: argparse.Namespace) -> dict[str, list[Path]]:
    return {f"renode_large_{dataset}": [_graph(dataset, options)] for dataset in options.datasets}


def _graph(dataset: str, options: argparse.Namespace) -> Path:
    return options.data / "graph_npz" / f"{dataset}.npz"


def measure(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Every arm of every data set."""
    for dataset in options.datasets:
        rows, recorded = [], []
        for arm, changes in ((arm, ARMS[arm]) for arm in ARMS if arm in {"off", *options.arms}):
            graph = str(_graph(dataset, options))
            chosen = LargeOptions(dataset=graph, **RECIPES[dataset], **changes)
            folder = options.out / "renode_large" / "-".join((dataset, *arm.replace(",", "").split()))
            asked_for = LargeRuns(out=str(folder), splits=options.splits)
            runs = asked(run(chosen, asked_for).runs, asked_for.seeds)
            recorded += [own["environment"] for own in runs.values()]
            kept = {
                name: {key: own[key] for key in KEPT if key in own} | {"curve": best_so_far(own["history"])}
                for name, own in runs.items()
            }
            rows.append({"dataset": dataset, "system": arm, "runs": kept})
            print(dataset, arm, _means(rows[-1]), flush=True)
        yield {
            "name": f"renode_large_{dataset}",
            "dataset": dataset,
            "options": typed(RECIPES[dataset]),
            "environments": unique(recorded),
            "rows": rows,
        }


def gains(content: dict[str, Any], arm: str, metric: str = "weighted_f1") -> list[float]:
    """What an arm gains over none (points), split by split."""
    runs = {row["system"]: row["runs"] for row in content["rows"]}
    return pairs({"off": runs["off"], "on": runs[arm]}, metric)[2]


def _means(row: dict[str, Any]) -> list[str]:
    return [mean_spread([100 * run[metric] for run in row["runs"].values()], 1) for metric in METRICS]


def _row(content: dict[str, Any], row: dict[str, Any]) -> str:
    weighted, macro = _means(row)
    arm = row["system"]
    if arm == "off":
        return f"| {content['dataset']} | off | {weighted} | | | | {macro} | |"
    own = gains(content, arm)
    test, better = Paired.of(own), f"{sum(gain > 0 for gain in own)}/{len(own)}"
    other = Paired.of(gains(content, arm, "macro_f1"))
    return (
        f"| {content['dataset']} | {arm} | {weighted} | {test.text(2)} | {p_value(test.p)} | {better} | {macro} | "
        f"{other.text(2)} |"
    )


def section(contents: list[dict[str, Any]]) -> str:
    """One table."""
    recipes = "\n".join(f"- {content['dataset']}: `{content['options']}`" for content in contents)
    return TEXT.format(
        heading=HEADING,
        runs=" or ".join(str(count) for count in unique(len(content["rows"][0]["runs"]) for content in contents)),
        environments=distinct(contents, environments, "; "),
        recipes=recipes,
        commands=commands(contents),
        rows="\n".join(_row(content, row) for content in contents for row in content["rows"]),
    )
