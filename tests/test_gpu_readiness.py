"""What stands ready for a GPU: its tests work, nothing is left on the CPU, and ``make gpu`` keeps, ends and resumes."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu, gpu_parts
from benchmarks.__main__ import conditions
from benchmarks.gpu_parts import LIBRARY, PARTS, GpuTests, Images, Multi30k, Part, Ratios
from examples.results import __main__ as results
from examples.results.planned import finished
from fairseq_ext.training.errors import OptionError
from fairseq_ext.training.files import read_json, write_json
from tests.helpers import ROOT, python_path
from tests.test_floors import imported, starts_with


def python(*words: object, **options: Any) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": python_path(), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500, **options)


def test_a_dry_run_does_everything_on_the_cpu(tmp_path: Path) -> None:
    out = tmp_path / "out"
    ended = python("-m", "benchmarks.gpu", "--dry-run", "--work", tmp_path / "work", "--out", out, "--seconds", "450")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert re.findall(r"^(\w+) +complete", ended.stdout, re.MULTILINE) == [kind.name for kind in PARTS]
    contents = {file.name: read_json(file) for file in out.iterdir()}
    assert sorted(contents) == [*("gpu_benchmarks.json", "gpu_images.json", "gpu_multi30k.json", "gpu_tests.json")]
    assert not any(content["missing"] or content["failed"] for content in contents.values())
    assert contents["gpu_tests.json"]["passed"] >= 60
    assert {row["claim"] for row in contents["gpu_benchmarks.json"]["rows"]} == {"kernels", "norm"}
    (row,) = contents["gpu_multi30k.json"]["rows"]
    assert row["size"] == "trial" and 0 <= row["sacrebleu"] <= 100
    images = contents["gpu_images.json"]
    assert images["experiment"] == "trial" and [row["system"] for row in images["rows"]] == [
        *("cross-entropy", "encouraging")
    ]


def test_nothing_is_left_on_the_cpu() -> None:
    """Blocks, losses, models and benchmarks on a device whose tensors meet none of the CPU."""
    ended = python("-m", "tests.gpu.pretended")
    assert ended.returncode == 0, ended.stdout[-5000:] + ended.stderr[-3000:]
    assert ended.stdout.endswith("0 failures\n")


class Counting(Part):
    """Writes ``done`` line by line, of which it wants three."""

    name, limit = "counting", 2 / gpu.SLOWER
    transient = ("done",)
    script = "open('{file}', 'a').write('x\\n' * {lines}); {then}"
    lines, then = 3, "pass"

    def command(self) -> list[str]:
        return ["-c", self.script.format(file=self.work / "done", lines=self.lines, then=self.then)]

    def known(self) -> dict[str, Any]:
        done = (self.work / "done").read_text().count("x") if (self.work / "done").exists() else 0
        return {"done": done, "missing": ["more"] * (3 - done), "failed": {}}

    def resume(self, content: dict[str, Any]) -> None:
        (self.work / "done").write_text("x\n" * content["done"])


@pytest.fixture
def part(tmp_path: Path) -> Counting:
    (tmp_path / "work").mkdir()
    return Counting(tmp_path / "work", dry_run=True, jobs=1, data=tmp_path)


def measured(part: Part, tmp_path: Path, seconds: float = 60.0) -> dict[str, Any]:
    file = tmp_path / "gpu_counting.json"
    content = gpu.measured(part, file, time.monotonic() + seconds)
    assert read_json(file) == content
    return content


def test_a_part_that_ends_is_not_run_again(part: Counting, tmp_path: Path) -> None:
    content = measured(part, tmp_path)
    assert content["done"] == 3 and not content["missing"] and "end" not in content
    assert "gpu" not in content["environment"]
    part.then = "raise SystemExit(3)"
    assert measured(part, tmp_path) == content


def test_other_code_is_measured_anew(part: Counting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured(part, tmp_path)
    monkeypatch.setattr(gpu, "sources", lambda code: "other")
    part.then, part.transient = "raise SystemExit('bad')", ()  # a folder of trainings, which a second call goes on with
    content = measured(part, tmp_path)
    assert content["done"] == 3 and content["failed"] == {"counting": "exit code 1"} and "bad" in content["output"]
    shown = gpu.report(type("Told", (Counting,), {"summary": staticmethod(lambda content: [""])}), content)
    assert shown.endswith("\n    exit code 1: bad")
    part.lines, part.then = 1, "pass"
    monkeypatch.setattr(gpu, "sources", lambda code: "third")
    content = measured(part, tmp_path)
    assert content["done"] == 1 and content["sources"] == "third"
    part.lines = 2
    assert measured(part, tmp_path)["done"] == 3


def test_a_training_outlasts_changes_of_what_it_does_not_depend_on() -> None:
    """And stands on no file of the tree that its fingerprint leaves out, but those that only show its figures."""
    shown = ("examples.results.report", "examples.results.planned", "examples.results.paired", "examples.plotting")
    for kind in (Multi30k, Images):
        assert not {"tests", "docs", "benchmarks", "examples", "examples/results", "graph"} & set(kind.code)
        counted = tuple(place.removesuffix(".py").replace("/", ".") for place in kind.code)
        files = [ROOT / place for place in kind.code if place.startswith("examples")]
        for file in [file for place in files for file in ([place] if place.is_file() else place.rglob("*.py"))]:
            ours = {name for name in imported(file) if starts_with(name, *LIBRARY, "examples", "benchmarks")}
            assert not {name for name in ours if not starts_with(name, *counted, *shown)}, file


def test_a_missing_package_fails_its_part_alone(
    part: Counting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was measured before stays; neither the command nor other parts import what only one of them needs."""
    lacking = type("Lacking", (Counting,), {"needs": ("nothing_of_that_name",), "extra": "vl"})(
        part.work, dry_run=True, jobs=1, data=tmp_path
    )
    content = measured(lacking, tmp_path)
    said = "the package nothing_of_that_name is not installed: pip install 'fairseq-ext[vl]'"
    assert content["failed"] == {"counting": said} and content["missing"] == ["counting"] and content["rows"] == []
    before = {"done": 2, "rows": [1], "missing": ["more"], "failed": {}, "sources": content["sources"]}
    write_json(tmp_path / "gpu_counting.json", before)
    assert measured(lacking, tmp_path).items() >= {"done": 2, "rows": [1], "failed": {"counting": said}}.items()
    for kind in PARTS:
        content = {"failed": {kind.name: said}, "missing": [kind.name], "end": said, "seconds": 0.0, **kind.nothing}
        assert not kind.needs or gpu.report(kind, content).endswith(f"    {said}")
    with monkeypatch.context() as patch:
        patch.setattr(gpu_parts, "conditions", lambda device, quick: version("no-such-fairseq"))
        said = "the package no-such-fairseq is not installed: pip install 'fairseq-ext[fairseq,graph,vl]'"
        assert Ratios(part.work, dry_run=True, jobs=1, data=tmp_path).lacks() == said
    files = [ROOT / "benchmarks" / name for name in ("gpu.py", "gpu_parts.py")]
    at_once = {node for file in files for node in ast.parse(file.read_text()).body if isinstance(node, ast.ImportFrom)}
    assert not [node.module for node in at_once if node.module.startswith(("vision_language", "graph"))]
    monkeypatch.setitem(sys.modules, "examples.results.image_classification", None)
    with pytest.raises(SystemExit, match="0"):
        results.main(["translation", "--help"])
    assert "--systems" in capsys.readouterr().out


def test_a_limit_ends_all_processes_and_says_what_is_missing(part: Counting, tmp_path: Path) -> None:
    child = "import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(99)'])"
    part.lines, part.then = 1, f"{child}; open('{tmp_path / 'pid'}', 'w').write(str(p.pid)); time.sleep(99)"
    content = measured(part, tmp_path)
    assert content["done"] == 1 and content["missing"] == ["more", "more"]
    assert content["end"] == "stopped after 2 seconds"
    with pytest.raises(ProcessLookupError):
        for _ in range(100):  # init takes its time to wait for it
            os.kill(int((tmp_path / "pid").read_text()), 0)
            time.sleep(0.1)
    part.lines, part.then = 2, "pass"
    assert measured(part, tmp_path)["done"] == 3


def test_a_dry_run_is_no_measurement(part: Counting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is committed of a GPU is resumed on a GPU alone."""
    monkeypatch.setattr(gpu, "DOCS", tmp_path / "docs")
    (tmp_path / "docs" / "results").mkdir(parents=True)
    stored = {"done": 3, "missing": [], "failed": {}, "sources": gpu.sources(part.code), "seconds": 7.0}
    write_json(tmp_path / "docs" / "results" / "gpu_counting.json", stored)
    assert "environment" in measured(part, tmp_path)
    part.dry_run = False
    (tmp_path / "gpu_counting.json").unlink()
    monkeypatch.setattr(gpu, "environment", lambda **device: device)
    assert gpu.measured(part, tmp_path / "gpu_counting.json", time.monotonic() + 60) == stored


def test_without_time_a_part_says_so(part: Counting, tmp_path: Path) -> None:
    content = measured(part, tmp_path, seconds=0)
    assert content["missing"] == ["more"] * 3 and content["end"] == "no time was left for it"


def test_exit_codes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(gpu, "PARTS", [type("Told", (Counting,), {"summary": staticmethod(lambda content: ["said"])})])
    command = ["--dry-run", "--work", str(tmp_path), "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as end:
        gpu.main([*command, "--seconds", "0"])
    assert end.value.code == 1
    gpu.main(command)
    assert re.search(r"^counting +complete +\d+ s  said$", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.parametrize(("words", "message"), [(["--dry-run", "--jobs", "0"], "--jobs"), ([], "has no GPU")])
def test_refusals(words: list[str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(OptionError, match=message):
        gpu.main(words)


def test_outcomes_are_known_while_the_tests_run(tmp_path: Path) -> None:
    body = (
        "import pytest\ndef test_a(): pass\ndef test_b(): assert 1 == 2\ndef test_s(): pytest.importorskip('no_such')\n"
        "def test_c():\n import os; os._exit(9)"
    )
    (tmp_path / "test_it.py").write_text(body)
    tests = GpuTests(tmp_path, dry_run=True, jobs=1, data=tmp_path)
    plugin = ("-p", "benchmarks.outcomes", "--outcomes", tmp_path / "outcomes.jsonl", "-p", "no:cacheprovider")
    python("-m", "pytest", "-q", "--rootdir", tmp_path, *plugin, tmp_path / "test_it.py")
    known = tests.known()
    assert (known["passed"], known["missing"]) == (1, ["the tests after these"])
    ((name, why),) = known["failed"].items()
    assert name.endswith("test_b") and "assert 1 == 2" in why
    assert "1 failed" in GpuTests.summary(known)[0] and name in GpuTests.summary(known)
    with (tmp_path / "outcomes.jsonl").open("a") as file:
        file.write(json.dumps({"exit": 1}) + '\n{"test": "cut')
    assert tests.known()["missing"] == [] and tests.known()["skipped"] == 1
    tests.dry_run = False
    (missing,) = tests.known()["missing"]
    assert missing.endswith("test_s (could not import 'no_such': No module named 'no_such')")


def test_the_ratios_know_the_claims_that_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_parts, "conditions", lambda device, quick: {"gpu": "Card 9"})
    part = Ratios(tmp_path, dry_run=False, jobs=1, data=tmp_path)
    assert "kernels" in part.known()["missing"]
    row = {"claim": "kernels", "target": 2.0, "met": False, "ratio": 3.0, "case": "x"}
    part.resume({"environment": {"gpu": "Card 9"}, "left_out": {"totoro": "scipy"}, "failed": {}, "rows": [row]})
    known = part.known()
    assert (
        not {"kernels", "totoro"} & set(known["missing"])
        and "norm" in known["missing"]
        and known["environment"]["gpu"] == "Card 9"
    )
    assert Ratios.summary(known) == ["1 rows, 0 of 1 targets met", "3.00x, target 2: x"]
    write_json(tmp_path / "rows.json", {**known, "left_out": {"kernels": "Triton is not installed"}, "rows": []})
    assert "kernels (Triton is not installed)" in part.known()["missing"]


def test_ratios_do_not_go_on_on_another_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which ``--resume`` refuses: all are measured there."""
    part = Ratios(tmp_path, dry_run=True, jobs=1, data=tmp_path)
    here = conditions("cpu", quick=True)
    row = {"claim": "kernels", "target": None}
    content = {"left_out": {}, "failed": {}, "rows": [row]}
    part.resume({**content, "environment": {**here, "gpu": "Card 8"}})
    assert not (tmp_path / "rows.json").exists() and part.known()["missing"] == part.names
    part.resume({**content, "environment": json.loads(json.dumps(here))})
    assert part.known()["missing"] == ["norm"]


def test_multi30k_resumes_on_another_machine(tmp_path: Path) -> None:
    here = Multi30k(tmp_path / "here", dry_run=True, jobs=1, data=tmp_path)
    assert here.known()["missing"] == ["Transformer, seed 1"]
    row = {"system": "Transformer", "seed": 1, "size": "trial", "updates": 5, "sacrebleu": 30.0, "environment": {}}
    folder = here.work / "runs" / "trial-seed1" / "Transformer-0"
    folder.mkdir(parents=True)
    finished(folder, here.work / "runs", lambda: row)
    known = here.known()
    assert known["missing"] == [] and known["environments"] == [{}]
    there = Multi30k(tmp_path / "there", dry_run=True, jobs=1, data=tmp_path)
    there.resume(known)
    assert there.known() == known
    (there.work / "docs" / "results").mkdir(parents=True)
    write_json(there.work / "docs" / "results" / "multi30k_trial.json", {"bootstrap": {"MUSE": {"p": 0.5}}})
    assert there.known() == {**known, "bootstrap": {"MUSE": {"p": 0.5}}}
    elsewhere = Multi30k(tmp_path / "elsewhere", dry_run=True, jobs=1, data=tmp_path)
    elsewhere.resume({"rows": [{**known["rows"][0], "updates": 99}]})  # of another budget
    assert elsewhere.known()["rows"] == []


def test_the_images_resume_on_another_machine(tmp_path: Path) -> None:
    here = Images(tmp_path / "here", dry_run=True, jobs=1, data=tmp_path)
    assert here.known()["missing"] == ["cross-entropy", "encouraging"] and here.known()["rows"] == []
    run = {"test_accuracy": 0.5, "history": [], "environment": {}}
    folder = here.work / "runs" / "image_classification" / "trial" / "encouraging"
    folder.mkdir(parents=True)
    write_json(folder / "results.json", {"settings": {"lr": 0.1}, "runs": {"seed1": run}})
    known = here.known()
    assert known["missing"] == ["cross-entropy"] and known["environments"] == [{}]
    assert known["rows"] == [{"system": "encouraging", "runs": {"seed1": {"test_accuracy": 0.5}}}]
    there = Images(tmp_path / "there", dry_run=True, jobs=1, data=tmp_path)
    there.resume(known)
    assert there.known() == known
    assert Images.summary(known) == ["1 trainings", " 50.00 %  encouraging"]
