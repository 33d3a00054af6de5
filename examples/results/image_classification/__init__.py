"""Images with the encouraging loss: MNIST under attack and against other images, long tails, adversarial training."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from examples.results.image_classification import attacks, tails
from examples.results.image_classification.experiments import EXPERIMENTS, USUAL, Experiment, Places, sources
from examples.results.planned import not_measured
from examples.results.report import agree, asked, commands, distinct, environments, slug, unique
from fairseq_ext.training.files import output_folder
from fairseq_ext.training.flags import Runs
from vision_language.image_classification.options import NetworkOptions, Options
from vision_language.image_classification.train import run

__all__ = ["SELECTS", "add_arguments", "draw", "figures_of", "measure", "reads", "section"]

TABLES = {**attacks.TABLES, **tails.TABLES}

KEPT = (
    *("test_accuracy", "test_nll", "test_margin", "test_ece", "test_class_accuracy", "test_many", "test_medium"),
    *("test_few", "train_images", "train_counts", "steps", "seconds_per_step"),
)
"""Of the record of a training."""

HEAD = """## Encouraging loss on images

± is the spread over the seeds; a difference is a row minus cross-entropy, paired by seed. No image is held out and none
picks an epoch: the last one is tested. Settings that are not the paper's are our choice, sized for one core, and were
not tuned for any row. {environments}.

{commands}
"""

SELECTS = "experiments"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    help = "tables to measure; l_softmax for a GPU; trial shows only that everything runs"
    parser.add_argument("--experiments", nargs="+", choices=list(EXPERIMENTS), default=USUAL, help=help)
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 1 on")


def reads(options: argparse.Namespace) -> dict[str, list[Path]]:
    return {f"images_{name}": sources(EXPERIMENTS[name], options.data) for name in options.experiments}


def measure(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Every row of every experiment; a finished training or test is not repeated."""
    for name in options.experiments:
        experiment, rows, recorded = EXPERIMENTS[name], [], []
        places = Places(options.data, output_folder(options.out / "images_data"))
        for system in experiment.rows:
            runs = _trained(experiment, system, places, options)
            recorded += [record["environment"] for _, record in runs.values()]
            kept = {}
            for seed, (model, record) in runs.items():
                kept[seed] = figures_of(record)
                kept[seed] |= experiment.then(model, places) if experiment.then else {}
            rows.append({"system": system, "settings": experiment.rows[system], "runs": kept})
            print(f"{name}, {system}: {[round(row['test_accuracy'], 4) for row in kept.values()]}", flush=True)
        yield {
            "name": f"images_{name}",
            "experiment": name,
            "settings": experiment.settings,
            "environments": unique(recorded),
            "rows": rows,
        }


def _trained(
    experiment: Experiment, system: str, places: Places, options: argparse.Namespace
) -> dict[str, tuple[Path, dict[str, Any]]]:
    """The folder and the record of every seed; a second stage begins with the first stage's model of its seed."""
    changes = {**experiment.settings, "data": str(experiment.data(places)), **experiment.rows[system]}
    folder = options.out / "image_classification" / experiment.trainings
    wanted = Runs(runs=options.seeds).seeds
    own = folder / slug(system)
    if not (first := changes.pop("init", "")):
        records = asked(run(Options(**changes), own, options.seeds).runs, wanted)
        return {name: (own / name, record) for name, record in records.items()}
    shape = {item.name for item in fields(NetworkOptions)}
    changes = {key: value for key, value in changes.items() if key not in shape}
    trained = {}
    for name, seed in wanted.items():
        stage = Options(**changes, init=str(folder / slug(first) / name), seed=seed)
        trained[name] = (own / name / name, run(stage, own / name).runs[name])
    return trained


def figures_of(record: dict[str, Any]) -> dict[str, Any]:
    """Of the record of a training, what the tables are made of."""
    return {key: record[key] for key in KEPT if key in record}


def section(contents: list[dict[str, Any]]) -> str:
    """A table for each experiment."""
    for content in contents:
        _refuse_other_settings(content)
    by_name = {content["experiment"]: content for content in contents}
    head = HEAD.format(environments=distinct(contents, environments, "; "), commands=commands(contents))
    tables = [table(by_name[name]) + _missing(by_name[name]) for name, table in TABLES.items() if name in by_name]
    if tails.TAIL_TEXTS.keys() & by_name.keys():
        tables.append("![Accuracy from head to tail](results/images_tails.png)\n")
    return "\n".join([head, *tables])


def _missing(content: dict[str, Any]) -> str:
    """The rows that the experiment has and the table has not."""
    sentence = not_measured(content, EXPERIMENTS[content["experiment"]].rows)
    return f"\n{sentence}\n" if sentence else ""


RENAMED = {"select": "select_on"}
"""Settings of earlier versions."""


def _refuse_other_settings(content: dict[str, Any]) -> None:
    """All that the texts say about the trainings, and that the names of the rows stand for."""
    file, experiment = f"{content['name']}.json", EXPERIMENTS[content["experiment"]]
    stored = {RENAMED.get(key, key): value for key, value in content.get("settings", {}).items()}
    agree(file, stored, experiment.settings)
    for row in content["rows"]:
        agree(f"{file}: {row['system']}", row.get("settings", {}), experiment.rows.get(row["system"], {}))


def draw(contents: list[dict[str, Any]], folder: Path) -> None:
    """Accuracies under attack, and from head to tail."""
    by_name = {content["experiment"]: content for content in contents}
    for tables in (attacks, tails):
        tables.draw(by_name, folder)
