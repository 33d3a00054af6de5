"""docs/RESULTS.md from measured rows."""

from __future__ import annotations

import json
import re

import pytest

from examples.results import benchmarks, graph_classification, iais, label_graph, muka, renode, report, translation
from fairseq_ext.files import write_json


def row(system: str, seed: int, bleu: float, bits: float) -> dict:
    curve = [[100, bits + 1], [200, bits], [300, bits + 0.5]]
    signature = "nrefs:1|case:mixed"
    scores = {"sacrebleu": bleu, "sentences": 1000, "signature": signature}
    return {"system": system, "seed": seed, "updates": 300, "parameters": 1234, "curve": curve, **scores}


@pytest.fixture
def results(tmp_path, monkeypatch):
    folder = tmp_path / "docs" / "results"
    folder.mkdir(parents=True)
    monkeypatch.setattr(report, "ROOT", tmp_path)
    monkeypatch.setattr(report, "RESULTS", folder)
    monkeypatch.setattr(translation, "RESULTS", folder)
    return folder


def write(folder, rows):
    environment = {"processor": "P", "cores": 2, "threads": 1, "python": "3", "torch": "2"}
    content = {"part": "translation", "name": "multi30k_small", "size": "small", "command": "translation --seeds 1 2"}
    write_json(folder / "multi30k_small.json", {**content, "environment": environment, "rows": rows})


def test_means_spread_and_differences(results, tmp_path):
    write(results, [row("Transformer", 1, 30.0, 3.0), row("Transformer", 2, 32.0, 3.2), row("MUSE", 1, 33.5, 2.5)])
    report.write_report()
    text = (tmp_path / "docs" / "RESULTS.md").read_text()
    assert "| Transformer | 1,234 | 31.00 ± 1.41 |  | 3.100 |" in text
    assert "| MUSE | 1,234 | 33.50 | +2.50 | 2.500 |" in text
    assert "python -m examples.results translation --seeds 1 2" in text
    assert "Means over the seeds" in text and "P, 1 thread(s); python 3, torch 2" in text
    assert (results / "multi30k_small.png").stat().st_size > 10_000
    assert not re.search(r"[{}]", text)


def test_one_seed_is_said_to_be_one(results, tmp_path):
    write(results, [row("AdaNorm", 1, 30.0, 3.0)])
    report.write_report()
    text = (tmp_path / "docs" / "RESULTS.md").read_text()
    assert "| AdaNorm | 1,234 | 30.00 |  | 3.000 |" in text and "the spread between seeds was not measured" in text


def test_nothing_measured_writes_nothing(results, tmp_path):
    (results / "benchmarks.json").write_text(json.dumps({"rows": []}))
    with pytest.raises(SystemExit, match="no measurement"):
        report.write_report()
    assert not (tmp_path / "docs" / "RESULTS.md").exists()


def test_the_curve_comes_from_the_log(tmp_path):
    lines = [
        '2026 | INFO | valid | {"epoch": 1, "valid_nll_loss": "5.5", "valid_num_updates": "100"}',
        '2026 | INFO | train | {"epoch": 1, "train_nll_loss": "4.0"}',
        '2026 | INFO | valid | {"epoch": 2, "valid_nll_loss": "4.5", "valid_num_updates": "200"}',
    ]
    (tmp_path / "train.log").write_text("\n".join(lines))
    assert translation.validation_curve(tmp_path / "train.log") == [(100, 5.5), (200, 4.5)]


ENVIRONMENT = {"processor": "P", "cores": 2, "threads": 1, "python": "3", "torch": "2"}


def test_renode_pairs_runs_by_name():
    def runs(*scores: float) -> dict:
        return {
            f"split{n}": {"weighted_f1": score, "macro_f1": score / 2, "totoro": 0.25} for n, score in enumerate(scores)
        }

    cell = {"dataset": "Cora", "model": "gcn", "loss": "ce", "split": "balanced"}
    rows = [{**cell, "off": runs(0.5, 0.7), "on": runs(0.54, 0.7)}]
    shared = {"environment": ENVIRONMENT, "command": "renode", "rows": rows}
    text = renode.section([{**shared, "recipe": "released"}, {**shared, "recipe": "longer"}])
    assert "Cora, trained longer" in text and "`--lr-decay 0.99 --patience 60`" in text
    assert "on average in 1 of 1 rows: in 0 more than the standard deviation of the pairs. In 0 it loses" in text
    expected = "60.0 ± 10.0 | 62.0 ± 8.0 | +2.00 ± 2.00 | 1/2 | 30.0 ± 5.0 | 31.0 ± 4.0 | +1.00 ± 1.00 | 0.2500 |"
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
    row = {"dataset": "MUTAG", "runs": 3, "first": 0.5, "second": 0.52, "difference": 0.02, "std": 0.01}
    content = {"protocol": "p", "command": "c", "environment": ENVIRONMENT}
    text = graph_classification.section([{**content, **row, "better": 1, "equal": 2, "worse": 0}])
    assert "| MUTAG | p | 50.00 | 52.00 | +2.00 ± 1.00 | 1 / 2 / 0 |" in text


def test_iais_has_a_row_an_arm_and_one_without_learning():
    def run(scale: float) -> dict:
        return {metric: scale for metric in iais.METRICS}

    rows = [
        {"system": iais.BASELINE, "runs": {"": {"ir_r1": 0.2}}},
        {"system": "ranking loss alone", "runs": {"seed1": run(0.25), "seed2": run(0.5)}},
        {"system": "+ IAIS, singular", "runs": {"seed1": run(0.25), "seed2": run(0.75)}},
    ]
    content = {"dataset": "d", "images": 5, "captions": 25, "settings": "s", "command": "iais"}
    text = iais.section([{**content, "environment": ENVIRONMENT, "rows": rows}])
    assert f"| {iais.BASELINE} | 20.0 |  |" in text and "over 2 seeds" in text
    assert "| + IAIS, singular | 50.0 ± 25.0 |" in text and "| 0.500 ± 0.250 |" in text
    assert "paired by seed: + IAIS, singular, 75.0 ± 75.0 (more with 1 of 2 seeds; within the spread)." in text


def test_muka_differences_are_paired_by_seed():
    rows = [
        {"system": "vanilla KD", "runs": {"seed1": 0.5, "seed2": 0.7}},
        {"system": "MUKA, soft", "runs": {"seed1": 0.52, "seed2": 0.76}},
    ]
    settings = {"seeds": 2, "layers": 3, "epochs": 1, "batch_size": 32, "lr": 1e-4, "max_length": 64, "passes": 16}
    settings["mixed_precision"] = "bf16"
    found = {"selection_accuracy": 0.875, "kl_to_supervised": {"soft": 0.25, "hard": 0.5, "ensemble": 1.0}}
    content = {"setting": "google_snippets", "settings": settings, "environment": ENVIRONMENT, "command": "muka"}
    text = muka.section([{**content, "rows": rows, "diagnostics": [found]}])
    assert "| vanilla KD | 60.00 ± 10.00 |  |" in text and "| MUKA, soft | 64.00 ± 12.00 | +4.00 ± 2.00 |" in text
    assert (
        "87.5 % of the test texts" in text
        and "hard 0.500" in text
        and "1 of 1 rows\ngain, 0 lose" in text
        and "step size 0.0001" in text
        and "format bf16" in text
    )


def test_benchmarks_say_which_targets_are_missed():
    row = {"claim": "norm", "case": "x / y", "ours": 2.0, "reference": 1.0, "unit": "ms", "ratio": 2.0}
    shared = {"environment": {**ENVIRONMENT, "quick": False}, "command": "benchmarks"}
    norm = {**shared, "claim": "norm", "busy": True, "rows": [{**row, "target": 1.1, "met": False}]}
    loss = {**shared, "claim": "loss", "busy": False, "rows": [{**row, "claim": "loss", "target": 3.0, "met": True}]}
    text = benchmarks.section([norm, loss])
    assert "loss: P, 1 thread(s); python 3, torch 2. norm: P" in text and text.count("other programs") == 1
    assert text.count("python -m examples.results benchmarks") == 1
    assert "1 of 2 targets are met" in text and "Missed in `norm`" in text and "`loss`" not in text
    assert "| 2.00 | 2.000 | 1.000 | ms | x / y | 1.1: **missed** |" in text
