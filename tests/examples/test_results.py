"""docs/RESULTS.md from measured rows."""

from __future__ import annotations

import json
import re

import pytest

from examples.results import report, translation
from fairseq_ext.files import write_json


def row(system: str, seed: int, bleu: float, bits: float) -> dict:
    curve = [[100, bits + 1], [200, bits], [300, bits + 0.5]]
    signature = "nrefs:1|case:mixed"
    return dict(system=system, seed=seed, updates=300, sacrebleu=bleu, sentences=1000, signature=signature, curve=curve)


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
    assert "| Transformer | 31.00 ± 1.41 |  | 3.100 |" in text
    assert "| MUSE | 33.50 | +2.50 | 2.500 |" in text
    assert "python -m examples.results translation --seeds 1 2" in text
    assert "Means over the seeds" in text and "P, 1 thread(s); python 3, torch 2" in text
    assert (results / "multi30k_small.png").stat().st_size > 10_000
    assert not re.search(r"[{}]", text)


def test_one_seed_is_said_to_be_one(results, tmp_path):
    write(results, [row("AdaNorm", 1, 30.0, 3.0)])
    report.write_report()
    text = (tmp_path / "docs" / "RESULTS.md").read_text()
    assert "| AdaNorm | 30.00 |  | 3.000 |" in text and "the spread between seeds was not measured" in text


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
