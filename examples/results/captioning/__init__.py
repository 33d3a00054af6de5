"""Captions of images with sparse attention, beside captions without training."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from examples.results.captioning.baselines import BASELINES, human
from examples.results.captioning.experiments import ARMS, EXPERIMENTS, prepared, train_and_score
from examples.results.captioning.table import draw, section
from examples.results.planned import seed_by_seed
from examples.results.report import unique
from fairseq_ext.captions.evaluation import Evaluation
from fairseq_ext.captions.store import Preparation, Split

__all__ = ["SELECTS", "add_arguments", "draw", "measure", "reads", "section"]

SELECTS = "datasets"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--datasets", nargs="+", choices=list(EXPERIMENTS), default=list(EXPERIMENTS), help="tables to measure"
    )
    parser.add_argument(
        "--arms",
        nargs="+",
        choices=list(ARMS),
        default=list(ARMS),
        help="rows of the tables, where a data set has them",
    )
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds, from 1 on")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time")
    parser.add_argument("--epochs", type=int, help="training epochs, instead of the data set's own")


def reads(options: argparse.Namespace) -> dict[str, list[Path]]:
    return {f"captioning_{name}": [options.data / EXPERIMENTS[name].source] for name in options.datasets}


def measure(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Every arm with every seed; what is complete, after each of them."""
    for name in options.datasets:
        yield from _measure(name, options)


def _measure(name: str, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    out = options.out / "captioning"
    data = prepared(name, options.data, out)
    preparation = Preparation.load(data)
    train, test = Split(data, "train", preparation), Split(data, "test", preparation)
    untrained = {system: Evaluation(baseline(train, test), test) for system, baseline in BASELINES.items()}
    people = human(test)
    rows = [{"system": system, "runs": {"": _scores(evaluation)}} for system, evaluation in untrained.items()]
    experiment = EXPERIMENTS[name]
    arms = [arm for arm in options.arms if arm in experiment.arms]
    runs: dict[str, dict[str, Any]] = {arm: {} for arm in arms}

    def scored(seed: int, arm: str) -> tuple[int, str, dict[str, Any], Evaluation]:
        return seed, arm, *train_and_score(name, arm, seed, data, out, options.epochs)

    dense: Evaluation | None = None
    seeds = range(1, options.seeds + 1)
    for (seed, arm, run, evaluation), missing in seed_by_seed(seeds, arms, scored, options.jobs):
        dense = evaluation if arm == "dense" else dense
        runs[arm][f"seed{seed}"] = run | _beside(evaluation, dense if "dense" in arms else None)
        print(f"{name}, {arm}, seed {seed}: CIDEr-D {100 * run['cider_d']:.1f}", flush=True)
        trained = [{"system": arm, "runs": of_arm} for arm, of_arm in runs.items() if of_arm]
        yield {
            "name": f"captioning_{name}",
            "dataset": name,
            "images": len(test),
            "train_images": len(train),
            "references": sum(map(len, test.references)) / len(test),
            "settings": {**experiment._asdict(), "epochs": options.epochs or experiment.epochs},
            "environments": unique(run["environment"] for of_arm in runs.values() for run in of_arm.values()),
            "rows": [*rows, *trained],
            "human": people and _scores(people),
            "missing": missing,
        }


def _scores(evaluation: Evaluation) -> dict[str, Any]:
    return {**evaluation.metrics(), "counts": evaluation.counts()}


def _beside(evaluation: Evaluation, dense: Evaluation | None) -> dict[str, Any]:
    """How a training differs from the dense one of its seed, on the same images."""
    if dense is None or dense is evaluation:
        return {}
    equal = sum(map(str.__eq__, evaluation.hypotheses, dense.hypotheses))
    return {"minus_dense": evaluation.differences(dense), "equal_to_dense": equal / len(dense.hypotheses)}
