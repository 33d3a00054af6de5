"""Merging fine-tuned classifiers: every method with the same teachers, texts, student and budget."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from examples.results.encoder import PRETRAINED
from examples.results.muka_teachers import (
    OF_TEACHERS,
    SETTINGS,
    TITLES,
    add_teachers,
    pretrained,
    sources,
    taught,
    training,
)
from examples.results.paired import Paired, differences
from examples.results.report import environments, mean_spread, of_seeds, slug, unique
from fairseq_ext.training.accelerator import make_accelerator
from fairseq_ext.training.runs import run_name
from vision_language.muka.cache import TeacherCache
from vision_language.muka.convergence import FLAT, FLOOR, WINDOW
from vision_language.muka.evaluate import diagnose_teachers, evaluate_classifiers
from vision_language.muka.options import AmalgamationOptions, DiagnosisOptions
from vision_language.muka.train import amalgamate

ENSEMBLE = "ensemble of the teachers"
BASELINE = "vanilla KD"
ARMS: dict[str, dict[str, Any]] = {
    BASELINE: {"method": "vkd"},
    "UHC": {"method": "uhc"},
    "DFA": {"method": "dfa"},
    "CFL": {"method": "cfl"},
    "MUKA, hard": {"method": "muka-hard", "margin": False},
    "MUKA, soft": {"method": "muka-soft", "margin": False},
    "MUKA, soft, without dropout passes": {"method": "muka-soft", "margin": False, "no_mc": True},
    "MUKI, hard": {"method": "muka-hard"},
    "MUKI, soft": {"method": "muka-soft"},
    "supervised": {"method": "supervised"},
}
AMALGAMATED = ("MUKA, hard", "MUKA, soft", "MUKI, hard", "MUKI, soft")
VALIDATE_EVERY = 100
"""Steps between validations of students that are trained until they converge."""

TEXT = """## {heading}

Test accuracy (%), mean ± spread over {seeds}, each with teachers of its own. All models
start from MiniLM ({layers}); students see the training texts without labels; {budget}, batches of {batch_size},
step size {lr:g}, {max_length} tokens, K = {passes} dropout passes, number format {mixed_precision}; the checkpoint is
that of the smallest loss against the teachers, without labels. The row `supervised` alone has no teachers and learns
from the labels: its targets, and the validation loss that picks its checkpoint. All other settings are our choice and
the same for every row. MUKI is MUKA with weights by the margin of the scores.
{pretrained} {environment}.

    python -m examples.results {command}

| system | accuracy | difference to vanilla KD |{columns}
|---|---|---|{lines}
{rows}

Of the rows of MUKA and MUKI with dropout passes, against vanilla KD, {gaining} gain and {losing} lose. The score
chooses the right teacher for {selection:.1f} % of the test texts.{divergence}
"""
BUDGET = f"""teachers
have epochs {{epochs}}, students train until they converge, for at most {{until_converged}} epochs: until the best loss
against the teachers on the validation texts, without labels, falls by no more than {100 * FLAT:g} %, or {FLOOR:g},
over {WINDOW} validations, one each {VALIDATE_EVERY} steps"""
DIVERGENCE = (
    "\nDivergence from the supervised model: soft targets {soft:.3f}, hard {hard:.3f}, ensemble {ensemble:.3f}."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_teachers(parser)
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS), help="rows of the tables")
    parser.add_argument(
        "--until-converged", type=int, help="most epochs of students that train until they converge (a table apart)"
    )
    parser.add_argument("--passes", type=int, default=16, help="Monte-Carlo dropout passes")


SELECTS = "settings"


def reads(options: argparse.Namespace) -> dict[str, list[Path]]:
    return {_name(setting, options): sources(setting, options) for setting in options.settings}


def _name(setting: str, options: argparse.Namespace) -> str:
    return f"muka_{setting}" + ("_converged" if options.until_converged else "")


def measure(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Every method with every seed, and how well the teachers' scores choose."""
    for name in options.settings:
        rows: dict[str, dict[str, Any]] = {system: {"runs": {}} for system in (ENSEMBLE, *options.arms)}
        diagnostics: list[dict[str, Any]] = []
        recorded: list[dict[str, Any]] = []
        for seed in range(1, options.seeds + 1):
            for system, value, run in _one_seed(name, seed, options, diagnostics):
                rows[system]["runs"][run_name(seed=seed)] = value
                print(f"{name}, seed {seed}, {system}: {100 * value:.2f}", flush=True)
                if run:
                    recorded.append(run["environment"])
                    for key in ("steps", "converged"):
                        rows[system].setdefault(key, {})[run_name(seed=seed)] = run[key]
        yield {
            "name": _name(name, options),
            "setting": name,
            "settings": {key: getattr(options, key) for key in (*OF_TEACHERS, "passes", "until_converged")},
            "environments": unique(recorded),
            "rows": [{"system": system, **row} for system, row in rows.items()],
            "diagnostics": diagnostics,
        }


def _one_seed(
    name: str, seed: int, options: argparse.Namespace, diagnostics: list[dict[str, Any]]
) -> Iterator[tuple[str, float, dict[str, Any]]]:
    """Test accuracies with the record of each training; appends the diagnostics of the teachers."""
    folder = options.out / "muka" / name / f"seed{seed}"
    students = folder / "converged" if options.until_converged else folder
    data, teachers, test = taught(name, seed, options)
    shared = training(seed, options)
    accelerator = make_accelerator(options.mixed_precision)
    yield ENSEMBLE, evaluate_classifiers(teachers, test, accelerator, options.max_length)["accuracy"], {}
    cache = folder / "cache"
    if options.until_converged:
        shared |= {"epochs": options.until_converged, "until_converged": True, "validate_every": VALIDATE_EVERY}
    for system in options.arms:
        arm = ARMS[system]
        out = students / slug(system)
        asked: dict[str, Any] = {} if arm["method"] == "supervised" else {"teachers": teachers, "cache": str(cache)}
        passes: dict[str, Any] = (
            {"passes": options.passes} if arm["method"].startswith("muka") and not arm.get("no_mc") else {}
        )
        chosen = AmalgamationOptions(
            data=data,
            student=pretrained(),
            num_layers=options.num_layers,
            **shared,
            **asked,
            **passes,
            **arm,
        )
        run = amalgamate(chosen, out).runs[run_name(seed=seed)]
        yield system, run["test_accuracy"], run
    store = TeacherCache(cache, accelerator, options.max_length, 64)
    supervised = str(students / "supervised") if "supervised" in options.arms else ""
    diagnosis = DiagnosisOptions(teachers=teachers, passes=options.passes, seed=seed, supervised=supervised)
    diagnostics.append(diagnose_teachers(diagnosis, test, store, "test"))


def heading(content: dict[str, Any]) -> str:
    """Of the section with the table."""
    return f"MUKA: {TITLES[content['setting']]}" + (", until converged" if _most_epochs(content) else "")


def _most_epochs(content: dict[str, Any]) -> int | None:
    """Of students that were trained until they converged; else None."""
    return content["settings"].get("until_converged")


def section(contents: list[dict[str, Any]]) -> str:
    """A table for each setting."""
    order = list(SETTINGS)

    def place(content: dict[str, Any]) -> tuple[int, bool]:
        return order.index(content["setting"]), bool(_most_epochs(content))

    return "\n".join(_table(content) for content in sorted(contents, key=place))


def _table(content: dict[str, Any]) -> str:
    rows = {row["system"]: row for row in content["rows"]}
    baseline = rows.get(BASELINE, {"runs": {}})["runs"]
    most = _most_epochs(content)
    lines, amalgamated = [], []
    for system, row in rows.items():
        accuracy = [100 * value for value in row["runs"].values()]
        gains = [100 * value for value in differences(row["runs"], baseline)]
        shown = "" if system == BASELINE or not gains else Paired.of(gains).text(2)
        if system in AMALGAMATED and gains:
            amalgamated.append(Paired.of(gains))
        trained = f" {_training(row)} |" if most else ""
        lines.append(f"| {system} | {mean_spread(accuracy, 2)} | {shown} |{trained}")
    setting, settings = SETTINGS[content["setting"]], content["settings"]
    layers = f"its first {settings['num_layers']} layers" + ("" if not setting.layers else "; teachers as said")
    kl = [teachers["kl_to_supervised"] for teachers in content["diagnostics"] if "kl_to_supervised" in teachers]
    means = {kind: statistics.fmean(each[kind] for each in kl) for kind in ("soft", "hard", "ensemble")} if kl else {}
    return TEXT.format(
        **{**settings, "layers": layers, "seeds": of_seeds({name: row["runs"] for name, row in rows.items()})},
        heading=heading(content),
        pretrained=PRETRAINED,
        budget=BUDGET.format(**settings) if most else f"epochs {settings['epochs']}",
        environment=environments(content),
        command=content["command"],
        columns=" steps | converged |" if most else "",
        lines="---|---|" if most else "",
        rows="\n".join(lines),
        gaining=f"{sum(gain.gains for gain in amalgamated)} of {len(amalgamated)}",
        losing=sum(gain.loses for gain in amalgamated),
        selection=100 * statistics.fmean(teachers["selection_accuracy"] for teachers in content["diagnostics"]),
        divergence=DIVERGENCE.format(**means) if means else "",
    )


def _training(row: dict[str, Any]) -> str:
    """Steps of the students of a row, and how many of them converged; nothing where none was trained."""
    if "steps" not in row:
        return " | "
    converged = list(row["converged"].values())
    return f"{statistics.fmean(row['steps'].values()):.0f} | {converged.count(True)} of {len(converged)}"
