"""Node classification with and without ReNode, on the same splits and initial weights."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from examples.results.paired import holm, p_value
from examples.results.renode_gains import (
    BACKBONES,
    PERMUTATIONS,
    different,
    draw_gains,
    draw_relation,
    paired,
    pairs,
    relation,
    title,
)
from examples.results.renode_recipes import (
    RECIPES,
    appendix,
    best_so_far,
    choose_on_validation,
    described,
    superseded,
)
from examples.results.report import agree, asked, copied, environments, mean_spread, unique
from fairseq_ext.training.errors import OptionError
from graph.renode.options import TrainOptions, TrainRuns
from graph.renode.train import run

LOSSES = ("ce", "re-weight", "focal", "cb-softmax")
"""Of the paper."""
OTHERS = ("logit-adjusted",)
IMBALANCES: dict[str, dict[str, Any]] = {
    "balanced": {},
    "step 5": {"imbalance": "step", "imbalance_ratio": 5.0},
    "step 10": {"imbalance": "step", "imbalance_ratio": 10.0},
}
GRID = {"Cora": BACKBONES, "CiteSeer": ("gcn", "gat"), "Photo": ("gcn", "sage"), "Computers": ("gcn", "sage")}
MORE = {"released": (), "constant": ("appnp",)}
"""Backbones beside those of the released table."""
# 58 classes, the smallest of 15 nodes: a small quota, and random validation nodes.
DEBIAN: dict[str, Any] = {"split_kind": "random", "train_each": 5, "valid_each": 5}

LEAST_SPLITS = 5
"""Fewer have no correlation."""

TEXT = """## {heading}

F1 (x 100) on the test nodes, mean ± spread over {runs} runs ({protocol}).
{recipe}
*Difference*: on minus off, paired by split and initial weights, its interval and *p* over the splits (the runs of a
split share their nodes, so their mean is one pair; all splits are of one graph, for which the interval speaks);
*better*: runs that gained; *Totoro*: of the data set, mean over the runs. With equal classes re-weight and
logit-adjusted are ce.
{environment}.

    python -m examples.results {command}

{reading}

| backbone | loss | split | weighted F1, off | on | difference | p | better | macro F1, off | on | difference | Totoro |
|---|---|---|---|---|---|---|---|---|---|---|---|
{rows}
{figure}"""

FIGURE = """
![Differences in weighted F1](results/{name}.png)
"""

RELATION_HEADING = "ReNode: gain and Totoro of the split"

RELATION = """## {heading}

Our question: does ReNode gain more in splits of more conflict? A point of the figure is a split: its Totoro, and the
gain in weighted F1 as the mean over losses, initial weights and the backbones of the released code. r: rank correlation
within the kinds of splits, p by {permutations:,} permutations within them; *all splits*: Spearman's correlation over
all of them, which takes any other difference between the kinds for one of Totoro.

| data set | splits | pairs of runs | r | p | all splits | p |
|---|---|---|---|---|---|---|
{rows}

![Gain by Totoro](results/renode_totoro.png)
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--datasets", nargs="+", default=[*GRID, "debian_deps"], help="data sets")
    parser.add_argument("--models", nargs="+", help="backbones, instead of all that the data set's table has")
    parser.add_argument("--losses", nargs="+", choices=(*LOSSES, *OTHERS), default=list(LOSSES), help="training losses")
    parser.add_argument("--recipe", choices=list(RECIPES), default="released", help="recipe of the trainings")
    parser.add_argument("--splits", type=int, default=5, help="number of splits")
    parser.add_argument("--inits", type=int, default=3, help="initial weights for each split")


SELECTS = "datasets"


def reads(options: argparse.Namespace) -> dict[str, list[Path]]:
    return {_name(dataset, options): [_raw(dataset, options)] for dataset in options.datasets}


def _name(dataset: str, options: argparse.Namespace) -> str:
    return "_".join(("renode", dataset, *_suffix(options.recipe)))


def measure(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Every cell of the grid, off and on."""
    for dataset in options.datasets:
        rows: list[dict[str, Any]] = []
        recorded: list[dict[str, Any]] = []
        grid = (*GRID.get(dataset, ()), *MORE[options.recipe])
        models = [model for model in grid if model in (options.models or grid)]
        cells = [(model, loss, split) for model in models for loss in options.losses for split in IMBALANCES]
        if dataset == "debian_deps":
            cells = [("gcn", "ce", "balanced")]
        if not cells:
            raise OptionError(f"--models: the table of {dataset} has {', '.join(grid)}")
        for model, loss, split in cells:
            row = {"dataset": dataset, "model": model, "loss": loss, "split": split}
            for renode in ("off", "on"):
                row[renode] = _runs(options, recorded, renode=renode, **row)
            rows.append(row)
            print(dataset, model, loss, split, _cells(row), flush=True)
        choices = []
        if options.recipe != "released" and dataset != "debian_deps":  # which takes what was chosen on others
            choices = choose_on_validation(_source(dataset, options), options.out / "renode" / f"{dataset}-choices")
        yield {
            "name": _name(dataset, options),
            "recipe": options.recipe,
            "settings": RECIPES[options.recipe],
            "environments": unique(recorded),
            "rows": rows,
            "choices": choices,
        }


def _raw(dataset: str, options: argparse.Namespace) -> Path:
    """Where the data set is below ``--data``."""
    if dataset == "debian_deps":
        return options.data / "graph_npz" / "debian_deps.npz"
    return options.data / "pyg" / ("Planetoid" if dataset in ("Cora", "CiteSeer") else "Amazon") / dataset


def _suffix(recipe: str) -> tuple[str, ...]:
    """What the names of files and folders end in: nothing for the released recipe."""
    return () if recipe == "released" else (recipe,)


def _runs(
    options: argparse.Namespace,
    recorded: list,
    dataset: str,
    model: str,
    loss: str,
    split: str,
    renode: str,
    **_: Any,
) -> dict:
    """Test scores of each run, by its name; with ReNode the Totoro of its split, too. Adds the runs' environments."""
    slug = "-".join((dataset, model, loss, split.replace(" ", ""), renode, *_suffix(options.recipe)))
    own = (
        RECIPES[options.recipe]
        | _source(dataset, options)
        | (DEBIAN if dataset == "debian_deps" else IMBALANCES[split])
    )
    chosen = TrainOptions(backbone=model, loss=loss, renode=renode, **own)
    asked_for = TrainRuns(out=str(options.out / "renode" / slug), splits=options.splits, inits=options.inits)
    experiment = run(chosen, asked_for)
    kept = ("weighted_f1", "macro_f1", "totoro", "epochs", "best_epoch")
    runs = asked(experiment.runs, asked_for.seeds)
    recorded += [run["environment"] for run in runs.values()]
    return {
        name: {key: scores[key] for key in kept if key in scores} | {"curve": best_so_far(scores["history"])}
        for name, scores in runs.items()
    }


def _source(dataset: str, options: argparse.Namespace) -> dict[str, Any]:
    """The data set's name and root."""
    if dataset == "debian_deps":
        return {"dataset": str(_raw(dataset, options))}
    root = options.out / "pyg"
    copied(_raw(dataset, options), root / dataset)
    return {"dataset": dataset, "root": str(root)}


def _cells(row: dict[str, Any]) -> str:
    parts = []
    for score in ("weighted_f1", "macro_f1"):
        off, on, gain = pairs(row, score)
        parts += [mean_spread(side, 1) for side in (off, on)]
        parts.append(paired(row, score).text(2))
        if score == "weighted_f1":
            parts.append(p_value(paired(row, score).p))
            parts.append(f"{sum(value > 0 for value in gain)}/{len(gain)}")
    parts.append(f"{statistics.fmean(run['totoro'] for run in row['on'].values()):.4f}")
    return " | ".join(parts)


def _reading(rows: list[dict[str, Any]]) -> str:
    """What the table says, in two sentences."""
    gains = [paired(row, "weighted_f1") for row in different(rows)]
    kept = [gain for gain, holds in zip(gains, holm([gain.p or 0.0 for gain in gains]), strict=True) if holds]
    return (
        f"Weighted F1 is higher with ReNode on average in {sum(gain.mean > 0 for gain in gains)} "
        f"of {len(gains)} rows; it gains in {sum(gain.gains for gain in gains)} and loses in "
        f"{sum(gain.loses for gain in gains)}. With Holm's correction over these rows it gains in "
        f"{sum(gain.gains for gain in kept)} and loses in {sum(gain.loses for gain in kept)}."
    )


def heading(content: dict[str, Any]) -> str:
    """Of the section with the table."""
    return f"ReNode: node classification, {title(content)}"


def section(contents: list[dict[str, Any]]) -> str:
    """A table for each data set, what gain has to do with Totoro, and the tables that others take the place of."""
    late = superseded(contents)
    parts = [_table(content) for content in contents if content not in late]
    if those := related(contents):
        lines = [_relation_row(content) for content in those]
        parts.append(RELATION.format(heading=RELATION_HEADING, permutations=PERMUTATIONS, rows="\n".join(lines)))
    return "\n".join([*parts, *appendix(contents), *map(_table, late)])


def _table(content: dict[str, Any]) -> str:
    rows = content["rows"]
    agree(f"{content.get('name')}.json", content.get("settings", {}), RECIPES[content["recipe"]])
    lines = [f"| {row['model']} | {row['loss']} | {row['split']} | {_cells(row)} |" for row in rows]
    protocol = "the released splits: 20 labelled nodes a class, or for step 5 % of all nodes"
    if rows[0]["dataset"] == "debian_deps":
        protocol = "5 labelled and 5 validation nodes of each of 58 classes, drawn at random"
    return TEXT.format(
        heading=heading(content),
        recipe=described(content),
        runs=len(rows[0]["off"]),
        protocol=protocol,
        environment=environments(content),
        command=content["command"],
        reading=_reading(rows),
        rows="\n".join(lines),
        figure=FIGURE.format(name=content["name"]) if len(rows) > 1 else "",
    )


def draw(contents: list[dict[str, Any]], folder: Path) -> None:
    """Differences of each data set, and gains by Totoro."""
    for content in contents:
        if len(content["rows"]) > 1:
            draw_gains(content, folder / f"{content['name']}.png")
    if those := related(contents):
        draw_relation(those, folder / "renode_totoro.png")


def related(contents: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those with splits enough for a correlation, each data set by one recipe."""
    late = superseded(contents)
    return [
        content for content in contents if content not in late and len(relation(content["rows"]).gain) >= LEAST_SPLITS
    ]


def _relation_row(content: dict[str, Any]) -> str:
    own = relation(content["rows"])
    figures = " | ".join(f"{rank:+.2f} | {p_value:.3f}" for rank, p_value in (own.within, own.spearman))
    return f"| {title(content)} | {len(own.gain)} | {own.runs} | {figures} |"
