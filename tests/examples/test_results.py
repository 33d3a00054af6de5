"""docs/RESULTS.md from measured rows."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import pytest

from examples.results import (
    benchmarks,
    fairseq_log,
    fairseq_programs,
    graph_classification,
    iais,
    label_graph,
    muka,
    renode,
    report,
)
from examples.results.planned import not_measured
from fairseq_ext.training.errors import DataError
from fairseq_ext.training.files import read_json, write_json


def row(system: str, seed: int, bleu: float, bits: float) -> dict:
    curve = [[100, bits + 1], [200, bits], [300, bits + 0.5]]
    signature = "nrefs:1|case:mixed"
    scores = {"sacrebleu": bleu, "chrf": bleu + 20, "sentences": 1000, "signature": signature}
    return {"system": system, "seed": seed, "updates": 300, "parameters": 1234, "curve": curve, **scores}


@pytest.fixture
def results(tmp_path):
    folder = tmp_path / "docs" / "results"
    folder.mkdir(parents=True)
    return folder


def write(folder, rows):
    environment = {"processor": "P", "cores": 2, "threads": 1, "python": "3", "torch": "2"}
    content = {"part": "translation", "name": "multi30k_small", "size": "small", "command": "translation --seeds 1 2"}
    write_json(folder / "multi30k_small.json", {**content, "environment": environment, "rows": rows})


def linked(text):
    """The figures that a report names."""
    return set(re.findall(r"!\[[^]]+\]\(results/([^)]+)\)", text))


def test_means_spread_and_differences(results, tmp_path):
    write(results, [row("Transformer", 1, 30.0, 3.0), row("Transformer", 2, 32.0, 3.2), row("MUSE", 1, 33.5, 2.5)])
    report.write_report(tmp_path / "docs")
    text = (tmp_path / "docs" / "RESULTS.md").read_text()
    assert "| Transformer | 1,234 | 31.00 ± 1.00 |  | 51.00 ± 1.00 | 3.100 ± 0.100 |" in text
    assert "| MUSE | 1,234 | 33.50 | +3.50 | 53.50 | 2.500 |" in text  # against the same seed
    assert "python -m examples.results translation --seeds 1 2" in text
    assert "over the seeds 1, 2" in text and "One seed" not in text and "P, 1 thread(s); python 3, torch 2" in text
    assert linked(text) == {"multi30k_small.png", "multi30k_small_curves.png"}
    assert not re.search(r"[{}]", text)


def test_one_seed_is_said_to_be_one(results, tmp_path):
    write(results, [row("AdaNorm", 1, 30.0, 3.0)])
    report.write_report(tmp_path / "docs")
    text = (tmp_path / "docs" / "RESULTS.md").read_text()
    assert "| AdaNorm | 1,234 | 30.00 |  | 50.00 | 3.000 |" in text and "One seed: the table cannot tell" in text
    assert linked(text) == {"multi30k_small_curves.png"}, "without the Transformer there is no difference to draw"


def test_rows_of_different_budgets_share_no_table(results, tmp_path):
    write(results, [row("Transformer", 1, 30.0, 3.0), {**row("MUSE", 1, 31.0, 3.0), "updates": 900}])
    with pytest.raises(DataError, match="rows of different updates cannot share a table: 300, 900"):
        report.write_report(tmp_path / "docs")


def test_rows_of_fewer_seeds_are_named():
    assert report.of_seeds({"SVM": {"": 0}, "a": {"seed1": 0, "seed2": 0}, "b": {"seed2": 0}}) == "2 seeds (b: 1)"
    assert report.of_seeds({"SVM": {"": 0}, "a": {"seed1": 0}}) == "1 seed"
    assert report.of_seeds({"a": [1, 3, 2], "b": [3, 1, 2], "c": [1, 3]}, listed=True) == "the seeds 1, 2, 3 (c: 1, 3)"
    assert report.of_seeds({"a": [1]}, listed=True) == "seed 1"
    many = {"all": [1, 2], **{f"row {number}": [1] for number in range(9)}}
    assert report.of_seeds(many).endswith("row 5: 1; and 3 more)")


SEEDED = {
    "multi30k_cpu": "",  # a table that grows: whichever row is the last
    "language_model_brown": "adaptive span: 1, 2",
    "cross_view_ablation": "ama-static mean: 2",
    "iais_coco_val2017_regions": "+ IAIS, distributed: 1",
    "muka_stackoverflow20_2": "supervised: 1",
    "label_graph_mams_acsa": "MiniLM + soft training: 1",
    "label_graph_mams_acsa_ablation": "MiniLM, its mean of a review: 1",
    "images_mnist_r100": "DRW + bonus: 1",
    "images_attacks": "encouraging: 1",
}


@pytest.mark.parametrize(("name", "fewer"), SEEDED.items())
def test_a_text_says_which_rows_have_fewer_seeds(name, fewer):
    """Of every kind of table with seeds."""
    (content,) = (read_json(file) for file in (report.DOCS / "results").glob(f"{name}.json"))
    *rows, last = content["rows"]
    if not fewer:
        left = [str(row["seed"]) for row in rows if row["system"] == last["system"]]
        fewer = f"{last['system']}: {', '.join(left)}"
    rows += [{**last, "runs": dict([*last["runs"].items()][:1])}] if "runs" in last else []
    text = report.part(content["part"]).section([{**content, "rows": rows}])
    assert re.search(rf"seeds?\b[^|]* \([^|]*{re.escape(fewer)}[;)]", text), text[:900]


def test_nothing_measured_writes_nothing(results, tmp_path):
    (results / "benchmarks.json").write_text(json.dumps({"rows": []}))
    with pytest.raises(DataError, match="no measurement"):
        report.write_report(tmp_path / "docs")
    assert not (tmp_path / "docs" / "RESULTS.md").exists()


def absolute_paths(content):
    """Texts of a measurement that name a place of the machine it was made on."""
    if isinstance(content, dict):
        content = [*content.values()]
    if isinstance(content, list):
        return [path for item in content for path in absolute_paths(item)]
    return [content] if isinstance(content, str) and re.match(r"/\w", content) else []


def test_stored_figures_are_those_of_the_report():
    files = {file.name: file.stat().st_size for file in (report.DOCS / "results").glob("*.png")}
    assert set(files) == linked((report.DOCS / "RESULTS.md").read_text())
    assert all(10_000 < size < 150_000 for size in files.values()), files


STORED = [read_json(file) for file in sorted((report.DOCS / "results").glob("*.json"))]


@pytest.mark.parametrize(
    ("name", "key"),
    [
        *(("multi30k_small", "curve"), ("renode_Photo", "on"), ("label_graph_mams_acsa", "runs")),
        *(("iais_coco_val2017_regions", "system"), ("muka_heterogeneous", "runs"), ("images_attacks", "runs")),
        *(("captioning_coco_val2017_regions", "runs"), ("benchmarks_stock", "ratio"), ("images_mnist_r100", "system")),
        ("graph_classification_NCI1", "runs_of"),
    ],
)
def test_what_a_measurement_lacks_is_named_with_its_file(results, tmp_path, name, key):
    (content,) = (content for content in STORED if content["name"] == name)
    rows = content.get("rows", [])
    lacking = {**content, "rows": [{k: v for k, v in row.items() if k != key} for row in rows]}
    lacking = lacking if rows else {k: v for k, v in content.items() if k != key}
    write_json(results / f"{name}.json", lacking)
    with pytest.raises(DataError, match=rf"{name}\.json: '{key}' is missing"):
        report.write_report(tmp_path / "docs")
    assert not (tmp_path / "docs" / "RESULTS.md").exists()


def test_stored_measurements_name_no_place_of_their_machine():
    files = sorted((report.DOCS / "results").glob("*.json"))
    assert files
    wrong = {file.name: paths for file in files if (paths := absolute_paths(json.loads(file.read_text())))}
    assert not wrong
    assert absolute_paths({"runs": [{"model": "/home/someone/model", "loss": "a/b"}]}) == ["/home/someone/model"]


def test_the_curve_comes_from_the_log(tmp_path):
    lines = [
        '2026 | INFO | valid | {"epoch": 1, "valid_nll_loss": "5.5", "valid_num_updates": "100"}',
        '2026 | INFO | train | {"epoch": 1, "train_nll_loss": "4.0"}',
        '2026 | INFO | valid | {"epoch": 2, "valid_nll_loss": "4.5", "valid_num_updates": "200"}',
    ]
    resumed = lines[-1].replace("4.5", "4.25")
    for cut in (0, len("2026 | INFO | valid | ")):  # also a log of bare JSON
        (tmp_path / "train.log").write_text("\n".join(line[cut:] for line in [*lines, resumed]))
        assert fairseq_log.validation_curve(tmp_path / "train.log") == [(100, 5.5), (200, 4.25)]


def test_the_records_of_a_log_survive_lines_that_a_kill_cut_off(tmp_path):
    log = tmp_path / "train.log"
    record = '2026 | INFO | train_inner | {"epoch": 1, "nll_loss": "%s", "num_updates": "%d"}\n'
    cut = '2026 | INFO | valid | {"epoch"'
    log.write_text(record % (9, 10) + "noise | {\n" + record % (5, 20) + f"{cut}\n{cut}" + record % (8, 10) + cut)
    assert [entry["nll_loss"] for entry in fairseq_log.log_records(log.open())] == ["9", "5", "8"]
    assert fairseq_log.curve(log, "nll_loss", "num_updates") == [(10, 8.0), (20, 5.0)]
    assert fairseq_log.validation_curve(log) == []


def test_a_resumed_training_keeps_its_validations(monkeypatch, tmp_path):
    """Its log goes on where the killed one ends, in the middle of a line."""
    log = tmp_path / "train.log"
    valid = '| valid | {"epoch": %d, "valid_nll_loss": "%s", "valid_num_updates": "%d"}\n'
    written = iter(
        [valid % (1, 5.5, 261) + (valid % (2, 4.5, 522))[:60], "| loaded checkpoint\n" + valid % (2, 4.5, 522)]
    )

    def run(command, *, stdout, **rest):
        stdout.write(next(written))
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(fairseq_programs.subprocess, "run", run)
    for _ in range(2):
        fairseq_programs.run(["fairseq_cli.train"], log)
    assert fairseq_log.validation_curve(log) == [(261, 5.5), (522, 4.5)]


def test_a_curve_without_a_validation_is_named(results, tmp_path):
    rows = [row("Transformer", 1, 30.0, 3.0), row("MUSE", 1, 31.0, 3.0)]
    write(results, rows)
    report.write_report(tmp_path / "docs")
    assert "Curves without" not in (tmp_path / "docs" / "RESULTS.md").read_text()
    write(results, [rows[0], {**rows[1], "curve": rows[1]["curve"][1:]}])
    report.write_report(tmp_path / "docs")
    assert "Curves without the validation at update 100 of MUSE." in (tmp_path / "docs" / "RESULTS.md").read_text()


def test_a_log_without_the_size_is_refused(tmp_path):
    (tmp_path / "train.log").write_text("num. shared model params: 1,750,016 (num. trained: 1,750,016)")
    assert fairseq_log.parameters(tmp_path / "train.log") == 1750016
    (tmp_path / "train.log").write_text("")
    with pytest.raises(DataError, match=r"train\.log: has no number of parameters"):
        fairseq_log.parameters(tmp_path / "train.log")


ENVIRONMENT = {"processor": "P", "cores": 2, "threads": 1, "python": "3", "torch": "2"}


def test_renode_pairs_runs_by_name():
    def runs(*scores: float) -> dict:
        names = ("split0-init0", "split1-init0", "split0-init1", "split1-init1")
        return {
            name: {"weighted_f1": score, "macro_f1": score / 2, "totoro": 0.25}
            for name, score in zip(names, scores, strict=True)
        }

    cell = {"dataset": "Cora", "model": "gcn", "loss": "ce", "split": "balanced"}
    rows = [{**cell, "off": runs(0.5, 0.7, 0.5, 0.7), "on": runs(0.54, 0.7, 0.54, 0.7)}]
    shared = {"environment": ENVIRONMENT, "command": "renode", "rows": rows}
    choices = [{"options": typed, "valid_f1": f1} for typed, f1 in (("", [0.5, 0.7]), ("--lr 0.1", [0.8, 0.6]))]
    constant = {**shared, "recipe": "constant", "choices": choices}
    text = renode.section([{**shared, "recipe": "released"}, constant])
    assert "`--lr-decay 1 --epochs 300 --patience 100 --normalize-features --lr 0.1`" in text
    headings = [line for line in text.splitlines() if line.startswith("## ")]
    assert [heading.rpartition(", ")[2] for heading in headings[::2]] == ["constant rate", "Cora"]
    # 20 epochs at the full rate, then a geometric series down to the least one
    assert headings[1].startswith("## ReNode: why") and "as far as 40 at the full rate" in text
    assert "| none | 60.0 ± 10.0 |" in text and "| `--lr 0.1` | **70.0 ± 10.0** |" in text
    assert "on average in 1 of 1 rows; it gains in 0 and loses in 0. With Holm's" in text
    assert (
        "The released recipe: at most 200 epochs, ended by 20 without" in text
        and "at most 300 epochs, ended by 100" in text
    )
    # two splits, with gains of 4 and 0: the runs of a split share its nodes and are one pair
    expected = "60.0 ± 10.0 | 62.0 ± 8.0 | +2.00 [-23.41, +27.41] | 0.500 | 2/4 | 30.0 ± 5.0 | 31.0 ± 4.0 | +1.00 ["
    assert f"| gcn | ce | balanced | {expected}" in text and "## ReNode: node classification, Cora" in text


def test_label_graph_has_a_row_a_system():
    def run(score: float) -> dict:
        return dict.fromkeys(label_graph.METRICS, score)

    rows = [
        {"dataset": "d", "system": "SVM", "runs": {"": run(0.5)}},
        {"dataset": "d", "system": "+ label graph", "runs": {"seed1": run(0.4), "seed2": run(0.6)}},
    ]
    text = label_graph.section([{"environment": ENVIRONMENT, "command": "c", "settings": "s", "rows": rows}])
    assert "| SVM | 0.500 | 0.500 | 0.500 | 0.500 |" in text and "over 2 seeds" in text
    assert "| + label graph | 0.500 ± 0.100 |" in text


def test_the_svm_reads_what_the_networks_read(tmp_path):
    lines = {"train": 30, "valid": 6, "test": 6}
    for split, count in lines.items():
        text = "".join(f"{'a|b' if n % 2 else 'c'}\t{'red blue' if n % 2 else 'green'} word{n}\n" for n in range(count))
        (tmp_path / f"{split}.tsv").write_text(text)
    assert label_graph.linear_svm(tmp_path)["micro_f1"] == 1.0


def test_graph_classification_reports_equal_pairs():
    def runs(*scores: float) -> dict:
        return {f"repeat0-fold{fold}": {"test_accuracy": score} for fold, score in enumerate(scores)}

    runs_of = {"cross-entropy": runs(0.5, 0.5, 0.5, 0.5), "encouraging": runs(0.5, 0.6, 0.56, 0.46)}
    content = {"dataset": "MUTAG", "protocol": "p", "command": "c", "environment": ENVIRONMENT, "runs_of": runs_of}
    text = graph_classification.section([content])
    # four folds, of which two train: (1/4 + 1/2) s^2 in the place of s^2/4, so the interval of +3.00 ± 9.90 times √3
    assert "| MUTAG | p | 50.00 | 53.00 | +3.00 [-14.14, +20.14] | 0.616 | 2 / 1 / 1 |" in text


def test_rows_that_gain_by_chance_are_told_apart():
    """Of twenty rows one gains by its own interval and none after the correction; a repeated row counts once."""

    def runs(*gains: float) -> dict:
        return {
            f"split{n}-init0": {"weighted_f1": 0.5 + gain, "macro_f1": 0.5, "totoro": 0.1}
            for n, gain in enumerate(gains)
        }

    cell = {"dataset": "Cora", "model": "gcn", "split": "balanced"}
    weak, none, strong = (
        runs(0.01, 0.02, 0.03, 0.02),
        runs(0.01, -0.01, 0.02, -0.02),
        runs(0.01, 0.01001, 0.01002, 0.01),
    )
    plain = {"off": runs(0, 0, 0, 0), **cell}
    rows = [{**plain, "loss": "ce", "on": weak}, {**plain, "loss": "re-weight", "on": weak}]
    rows += [{**plain, "loss": "focal", "on": none} for _ in range(19)]
    assert "in 1 of 20 rows; it gains in 1 and loses in 0. With Holm's correction over these rows it gains in 0" in (
        renode._reading(rows)
    )
    rows.append({**plain, "loss": "ce", "on": strong})
    assert "it gains in 2 and loses in 0. With Holm's correction over these rows it gains in 1 and" in renode._reading(
        rows
    )


def test_iais_has_a_row_an_arm_and_one_without_learning():
    def run(scale: float) -> dict:
        return {metric: scale for metric in iais.METRICS}

    rows = [
        {"system": iais.CLASS_NAMES, "runs": {"": {"ir_r1": 0.2}}},
        {"system": "ranking loss alone", "runs": {"seed1": run(0.25), "seed2": run(0.5)}},
        {"system": "+ IAIS, singular", "runs": {"seed1": run(0.25), "seed2": run(0.75)}},
    ]
    content = {"dataset": "coco_val2017_regions", "images": 5, "captions": 25, "settings": "s", "command": "iais"}
    text = iais.section([{**content, "environment": ENVIRONMENT, "rows": rows}])
    assert f"| {iais.CLASS_NAMES} | 20.0 |  |" in text and "over 2 seeds" in text
    assert "| + IAIS, singular | 50.0 ± 25.0 |" in text and "| 0.500 ± 0.250 |" in text
    assert "paired by seed: + IAIS, singular, +75.0 [-878.0, +1028.0] (more with 1 of 2 seeds)." in text


@pytest.mark.parametrize(("validations", "drawn"), [(5, True), (4, False)])
def test_iais_shows_how_isd_and_recall_go_together(tmp_path, validations, drawn):
    history = [{"isd": 2.0 + step, "rsum": 1.0 + step * step} for step in range(validations)]
    run = {**dict.fromkeys(iais.METRICS, 0.5), "history": history}
    rows = [{"system": iais.VECTORS, "runs": {"": {"ir_r1": 0.1}}}, {"system": "+ IAIS, singular", "runs": {"a": run}}]
    content = {"name": "n", "dataset": "tuxpaint_stamps_en", "images": 1, "captions": 1, "settings": "", "command": "c"}
    content |= {"environment": ENVIRONMENT, "rows": rows}
    iais.draw([content], tmp_path)
    assert (tmp_path / "n.png").is_file() == drawn
    text = iais.section([content])
    assert ("mean of the seeds: + IAIS, singular, +1.00" in text) == ("(results/n.png)" in text) == drawn
    assert "captions" in text and "in English" in text


def test_muka_differences_are_paired_by_seed():
    rows = [
        {"system": "vanilla KD", "runs": {"seed1": 0.5, "seed2": 0.7}},
        {"system": "MUKA, soft", "runs": {"seed1": 0.52, "seed2": 0.76}},
    ]
    settings = {"seeds": 2, "num_layers": 3, "epochs": 1, "batch_size": 32, "lr": 1e-4, "max_length": 64, "passes": 16}
    settings["mixed_precision"] = "bf16"
    teachers = {"selection_accuracy": 0.875, "kl_to_supervised": {"soft": 0.25, "hard": 0.5, "ensemble": 1.0}}
    content = {"setting": "google_snippets", "settings": settings, "environment": ENVIRONMENT, "command": "muka"}
    text = muka.section([{**content, "rows": rows, "diagnostics": [teachers]}])
    assert (
        "| vanilla KD | 60.00 ± 10.00 |  |" in text
        and "| MUKA, soft | 64.00 ± 12.00 | +4.00 [-21.41, +29.41] |" in text
    )
    assert (
        "87.5 % of the test texts" in text
        and "hard 0.500" in text
        and "0 of 1 gain and 0 lose" in text
        and "step size 0.0001" in text
        and "format bf16" in text
    )


def test_muka_until_converged_says_which_students_have():
    trained = {"steps": {"seed1": 300, "seed2": 500}, "converged": {"seed1": True, "seed2": False}}
    rows = [
        {"system": muka.ENSEMBLE, "runs": {"seed1": 0.5, "seed2": 0.7}},
        {"system": "MUKA, soft", "runs": {"seed1": 0.5, "seed2": 0.7}, **trained},
    ]
    settings = {"num_layers": 3, "epochs": 2, "batch_size": 32, "lr": 1e-4, "max_length": 64, "passes": 16}
    settings |= {"mixed_precision": "bf16", "seeds": 2, "until_converged": 8}
    content = {"setting": "cross_dataset", "settings": settings, "environment": ENVIRONMENT, "command": "muka"}
    text = muka.section([{**content, "rows": rows, "diagnostics": [{"selection_accuracy": 0.5}]}])
    assert text.splitlines()[0].endswith(", until converged") and "for at most 8 epochs" in text
    assert "| MUKA, soft | 60.00 ± 10.00 |  | 400 | 1 of 2 |" in text
    assert "| ensemble of the teachers | 60.00 ± 10.00 |  |  |  |" in text


ONCE = {"pairs": 1, "low": None, "high": None, "device": "CPU"}


def test_benchmarks_say_which_targets_are_missed():
    row = {"claim": "norm", "case": "x / y", "ours": 2.0, "reference": 1.0, "unit": "ms", "ratio": 2.0, **ONCE}
    shared = {"environment": {**ENVIRONMENT, "quick": False}, "command": "benchmarks"}
    norm = {**shared, "claim": "norm", "busy": True, "rows": [{**row, "target": 1.1, "met": False}]}
    loss = {**shared, "claim": "loss", "busy": False, "rows": [{**row, "claim": "loss", "target": 3.0, "met": True}]}
    text = benchmarks.section([norm, loss])
    assert "loss: P, 1 thread(s); python 3, torch 2. norm: P" in text and text.count("other programs") == 1
    assert text.count("python -m examples.results benchmarks") == 1
    assert "1 of 2 targets are met" in text and "Missed: x / y (`norm`, CPU): 2.00.\n" in text and "(`loss`" not in text
    assert "| 2.00 | once | 2.000 | 1.000 | ms | CPU | x / y | 1.1: **missed** |" in text


@pytest.mark.parametrize(
    ("low", "high", "met", "outcome", "line"),
    [
        *((0.9, 1.1, True, "not decided", "0 of 1"), (0.9, 1.1, False, "not decided", "0 of 1")),
        *((0.8, 0.99, True, "met", "1 of 1"), (1.01, 1.2, False, "**missed**", "0 of 1")),
    ],
)
def test_a_target_among_the_pairs_is_not_decided(low, high, met, outcome, line):
    row = {"claim": "norm", "case": "x", "ours": 1.0, "reference": 1.0, "unit": "ms", "ratio": 1.0, "target": 1.0}
    row |= {"met": met, "low": low, "high": high, "pairs": 3, "device": "CPU"}
    text = benchmarks.section([{"environment": ENVIRONMENT, "command": "b", "busy": False, "rows": [row]}])
    assert f"| x | 1: {outcome} |" in text and f"{line} targets are met" in text
    assert ("Missed: x (`norm`, CPU): 1.00 [1.01, 1.20].\n" in text) == ("missed" in outcome) and (
        "1 are not decided" in text
    ) == ("not" in outcome)


def test_rows_of_a_gpu_stand_below_those_of_the_cpu():
    row = {"claim": "norm", "case": "x", "unit": "ms", "ratio": 1.0, "ours": 1.0, "reference": 1.0, "target": None}
    row |= ONCE
    cpu = {"environment": ENVIRONMENT, "command": "benchmarks", "claim": "norm", "busy": False, "rows": [row]}
    loss = {**cpu, "claim": "loss", "rows": [{**row, "claim": "loss"}]}
    assert "Not measured on a GPU: kernels, attention," in benchmarks.section([cpu, loss])
    gpu = {"environment": {**ENVIRONMENT, "gpu": "Card 9"}, "shell": "make gpu", "busy": False}
    gpu["rows"] = [{**row, "device": "Card 9"}, {**row, "claim": "kernels", "device": "Card 9"}]
    text = benchmarks.section([gpu, cpu, loss])
    lines = [line.split(" | ")[5] for line in text.splitlines() if line.endswith("| x |  |")]
    assert lines == ["Card 9", "CPU", "CPU", "Card 9"]  # kernels, loss, norm
    assert "    make gpu" in text and "Not measured on a GPU: attention, loss," in text
    assert "norm, kernels: Card 9;" in text


def test_what_a_gpu_has_finished_is_a_table(results, tmp_path):
    """Of trainings that were stopped, those that ended; the others are named. A part that has none is no table."""
    gpu = {"part": "translation", "size": "converged", "shell": "make gpu", "failed": {}}
    environment = {"processor": "P", "cores": 2, "threads": 1, "gpu": "Card 9", "python": "3", "torch": "2"}
    seeds = (1, 2, 3)
    rows = [{**row("Transformer", seed, 40.0 + seed, 2.0), "updates": 5000} for seed in seeds]
    rows += [{**row("MUSE", seed, 40.0 + 2 * seed, 1.5), "updates": 5000} for seed in seeds[:2]]
    content = {**gpu, "name": "gpu_multi30k", "environments": [environment], "rows": rows, "missing": ["MUSE, seed 3"]}
    write_json(results / "gpu_multi30k.json", content)
    write_json(results / "gpu_benchmarks.json", {**gpu, "part": "benchmarks", "rows": [], "missing": ["kernels"]})
    write_json(results / "gpu_tests.json", {**gpu, "part": "gpu_tests", "passed": 3})
    report.write_report(tmp_path / "docs")
    text = (tmp_path / "docs" / "RESULTS.md").read_text()
    assert "| Transformer | 1,234 | 42.00 ± 0.82 |" in text and "Not measured yet: MUSE, seed 3." in text
    assert "| +1.50 [-4.85, +7.85] |" in text
    assert "    make gpu\n" in text and "Card 9; python 3, torch 2" in text and "far from" not in text
    assert "## Speed" not in text and linked(text) == {"gpu_multi30k.png", "gpu_multi30k_curves.png"}


def test_of_many_missing_rows_the_first_are_named():
    cells = [f"a, seed {number}" for number in range(1, 15)]
    assert not_measured({"missing": cells[:12]}).endswith("a, seed 11; a, seed 12.")
    assert not_measured({"missing": cells}).endswith("a, seed 12; and 2 more.") and not_measured({"missing": []}) == ""
    assert not_measured({"rows": [{"system": "a"}]}, ("a", "b")) == "Not measured yet: b.", "which came later"
