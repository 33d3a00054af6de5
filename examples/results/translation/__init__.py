"""Translation: every method with the same size, data, budget and tuning."""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from examples.results.planned import seed_by_seed
from examples.results.report import slug, unique
from examples.results.translation.experiments import (
    BASELINE,
    DATA,
    SIZES,
    SYSTEMS,
    Settings,
    prepare,
    settings_of,
    train_and_score,
    tune,
)
from examples.results.translation.outputs import published, sampled, sentence_statistics
from examples.results.translation.table import draw, section

__all__ = ["SELECTS", "add_arguments", "draw", "measure", "reads", "section"]

SELECTS = "size"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dataset", choices=list(DATA), default="multi30k", help="parallel text")
    help = "size of the experiment: small, cpu for a CPU; converged, iwslt for a GPU; trial shows only that all runs"
    parser.add_argument("--size", choices=sorted(SIZES), default="small", help=help)
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], help="one run of every system for each seed")
    parser.add_argument("--systems", nargs="+", choices=sorted(SYSTEMS), default=list(SYSTEMS), help="rows to run")
    parser.add_argument("--updates", type=int, help="training updates, instead of the size's own")
    help = "choose learning rate and dropout of every system on validation first, from the same grid"
    parser.add_argument("--tune", action="store_true", help=help)


def reads(options: argparse.Namespace) -> dict[str, list[Path]]:
    title = f"{options.dataset}_{options.size}{'_tuned' if options.tune else ''}"
    return {title: [options.data / DATA[options.dataset].folder]}


def measure(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Every system and seed, each trained, translated and scored once; what is complete, after each of them."""
    data_bin = prepare(options.dataset, options.data, options.out, SIZES[options.size].pieces)
    reference = data_bin / "text" / f"test.{DATA[options.dataset].target}"

    (title,) = reads(options)
    where = (options.size, data_bin, options.out, options.updates)
    chosen: dict[str, Settings] = {}

    def run(seed: int, name: str) -> tuple[dict[str, Any], list[str]]:
        try:
            row, translations = train_and_score(options.dataset, name, seed, *where, chosen.get(name))
        except SystemExit as error:  # others go on
            print(f"{name}, seed {seed}: {error}", flush=True)
            raise
        print(f"{name}, seed {seed}: BLEU {row['sacrebleu']:.2f}", flush=True)
        return row, translations

    if options.tune:
        with ThreadPoolExecutor(options.jobs) as pool:
            tuned = pool.map(lambda name: tune(name, options.seeds[0], *where), options.systems)
            chosen.update(zip(options.systems, tuned, strict=True))
    rows: list[dict[str, Any]] = []
    statistics: dict[str, dict[int, np.ndarray]] = defaultdict(dict)
    for (row, translations), missing in seed_by_seed(options.seeds, options.systems, run, options.jobs):
        row.pop("translations", None)  # of a stored row, whose file may be gone
        file = f"{title}/{slug(row['system'])}.{row['seed']}.{DATA[options.dataset].target}"
        if translations := published(options.docs / "results" / file, translations, options.replace):
            statistics[row["system"]][row["seed"]] = sentence_statistics(translations, reference)
            row |= {"translations": file}
        rows.append(row)
        yield {
            "name": title,
            "dataset": options.dataset,
            "size": options.size,
            "tuned": options.tune,
            "settings": settings_of(options.size),
            "environments": unique(row["environment"] for row in rows),
            "rows": rows,
            "bootstrap": sampled(statistics, BASELINE),
            "missing": missing,
        }
