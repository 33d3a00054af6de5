"""Merging classifiers by their weights: the average and task arithmetic, where the teachers' shapes allow it."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from examples.results.encoder import PRETRAINED
from examples.results.muka import ENSEMBLE
from examples.results.muka_teachers import OF_TEACHERS, SETTINGS, TITLES, add_teachers, pretrained, sources, taught
from examples.results.paired import Paired
from examples.results.report import environments, mean_spread, of_seeds
from fairseq_ext.training.accelerator import make_accelerator
from fairseq_ext.training.runs import environment, run_name, torch_device
from vision_language.muka.evaluate import evaluate_classifiers
from vision_language.muka.merge import merged_classifier
from vision_language.muka.models import load_classifiers, save_classifier

SCALES = {"average": None, "task arithmetic, λ = 0.4": 0.4, "task arithmetic, λ = 1": 1.0}
"""Each rule, and its factor of the sum of the task vectors; none: the average."""
ALIKE = [name for name, setting in SETTINGS.items() if len({*setting.layers}) < 2]

TEXT = """## Merging classifiers by their weights

Teachers as in the tables of MUKA ({num_layers} layers of MiniLM, epochs {epochs}, batches of {batch_size}, step size
{lr:g}, {max_length} tokens, number format {mixed_precision}), their encoders averaged or added up
([arXiv:2212.04089](https://arxiv.org/abs/2212.04089)), their output layers side by side: no text is read and nothing is
trained. Test accuracy (%), mean ± spread over {seeds}; in brackets the difference to the ensemble, paired by
seed. The factors λ were set beforehand (our choice); of two teachers the average is λ = 0.5, and λ = 1 is the sum.
Teachers of unequal depth have no weights to average: their setting has no row.
{pretrained} {environment}.

    python -m examples.results {command}

| setting | {systems} |
|---|{lines}
{rows}
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_teachers(parser, ALIKE)


SELECTS = ""


def reads(options: argparse.Namespace) -> dict[str, list[Path]]:
    return {"muka_merging": [source for setting in options.settings for source in sources(setting, options)]}


def measure(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Every rule in every setting whose teachers are alike, with every seed."""
    rows = []
    for name in options.settings:
        runs: dict[str, dict[str, float]] = {system: {} for system in (ENSEMBLE, *SCALES)}
        for seed in range(1, options.seeds + 1):
            for system, accuracy in _one_seed(name, seed, options):
                runs[system][run_name(seed=seed)] = accuracy
                print(f"{name}, seed {seed}, {system}: {100 * accuracy:.2f}", flush=True)
        rows.append({"setting": name, "runs": runs})
    yield {
        "name": "muka_merging",
        "settings": {key: getattr(options, key) for key in OF_TEACHERS},
        "environment": environment("transformers", "tokenizers", "accelerate", device=torch_device("auto").type),
        "rows": rows,
    }


def _one_seed(name: str, seed: int, options: argparse.Namespace) -> Iterator[tuple[str, float]]:
    """Test accuracies of the ensemble and of each merge."""
    _, folders, test = taught(name, seed, options)
    accelerator = make_accelerator(options.mixed_precision)
    yield ENSEMBLE, evaluate_classifiers(folders, test, accelerator, options.max_length)["accuracy"]
    teachers = load_classifiers(folders)
    for number, (system, scale) in enumerate(SCALES.items()):
        merged = merged_classifier(teachers, pretrained(), scale) if scale else merged_classifier(teachers)
        folder = options.out / "muka" / name / f"seed{seed}" / f"merged{number}"
        save_classifier(merged, folder)
        yield system, evaluate_classifiers([folder], test, accelerator, options.max_length)["accuracy"]


def section(contents: list[dict[str, Any]]) -> str:
    """One table."""
    return "\n".join(_table(content) for content in contents)


def _table(content: dict[str, Any]) -> str:
    systems = list(content["rows"][0]["runs"])
    return TEXT.format(
        **{**content["settings"], "seeds": _seeds(content["rows"])},
        pretrained=PRETRAINED,
        environment=environments(content),
        command=content["command"],
        systems=" | ".join(systems),
        lines="---|" * len(systems),
        rows="\n".join(
            f"| {TITLES[row['setting']]} | {' | '.join(_cell(row['runs'], system) for system in systems)} |"
            for row in content["rows"]
        ),
    )


def _seeds(rows: list[dict[str, Any]]) -> str:
    return of_seeds({f"{TITLES[row['setting']]}, {name}": own for row in rows for name, own in row["runs"].items()})


def _cell(runs: dict[str, dict[str, float]], system: str) -> str:
    """Accuracy, and what it is more than the ensemble's."""
    accuracies = {seed: 100 * value for seed, value in runs[system].items()}
    shown = mean_spread([*accuracies.values()], 1)
    if system == ENSEMBLE:
        return shown
    return f"{shown} ({Paired.of([value - 100 * runs[ENSEMBLE][seed] for seed, value in accuracies.items()]).text(1)})"
