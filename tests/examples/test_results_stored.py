"""A stored measurement is not lost: neither to fewer or other runs, nor to those of other data."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from examples.results import __main__ as command
from examples.results import report, translation
from examples.results.image_classification.experiments import EXPERIMENTS
from examples.results.stored import DIGEST, aside_of, covers, data_digest, store
from examples.results.translation.experiments import SIZES, settings_of
from examples.results.translation.outputs import published
from fairseq_ext.training.errors import DataError, OptionError
from fairseq_ext.training.files import read_json, write_json
from tests.examples.test_results_rows import defaults, refuse_other

BY_SIZE = sorted((report.DOCS / "results").glob("*.json"), key=lambda file: -file.stat().st_size)
STORED = {read_json(file)["part"]: file for file in BY_SIZE}
"""Of each part the smallest."""


def without_one_run(content: dict[str, Any]) -> dict[str, Any]:
    """The last row or the last run of it less."""
    if "runs_of" in content:
        arms = {arm: dict(runs) for arm, runs in content["runs_of"].items()}
        arms[next(reversed(arms))].popitem()
        return {**content, "runs_of": arms}
    *rows, last = content["rows"]
    if len(last.get("runs", {})) > 1:
        rows.append({**last, "runs": dict([*last["runs"].items()][:-1])})
    return {**content, "rows": rows}


@pytest.mark.parametrize("part", STORED)
def test_no_stored_measurement_is_written_over(part: str, tmp_path: Path) -> None:
    """By fewer runs and by other figures, of all the forms that contents have; more runs are written."""
    content, out = read_json(STORED[part]), tmp_path / "out"
    docs = tmp_path / STORED[part].name
    write_json(docs, content)
    fewer = without_one_run(content)
    assert covers(content, content) and covers(content, fewer) and not covers(fewer, content)
    assert store(fewer, docs, out, replace=False) is None and read_json(docs) == content
    assert not out.exists(), "it has nothing that is not stored"

    def others(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: others(part) for key, part in value.items()}
        return (
            [others(part) for part in value] if isinstance(value, list) else value + 1 if _is_figure(value) else value
        )

    other = others(content)
    assert store(other, docs, out, replace=False) == aside_of(docs, out)
    assert read_json(docs) == content and read_json(aside_of(docs, out)) == other
    write_json(docs, fewer)
    assert store(content, docs, out, replace=False) is None and read_json(docs) == content
    assert store(fewer, docs, out, replace=True) is None and read_json(docs) == fewer


def _is_figure(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


@pytest.fixture
def small(monkeypatch, tmp_path):
    """The stored table of translations whose rows do not say where their runs were, and trainings that end at once."""
    results = tmp_path / "docs" / "results"
    results.mkdir(parents=True)
    shutil.copy(report.DOCS / "results" / "multi30k_small.json", results)
    first = read_json(results / "multi30k_small.json")["rows"][0]

    def train(data: str, name: str, seed: int, *rest: Any) -> tuple[dict[str, Any], list[str]]:
        return {**first, "system": name, "seed": seed, "sacrebleu": 1.23, "environment": {}, "run": name}, []

    monkeypatch.setattr(translation, "train_and_score", train)
    monkeypatch.setattr(translation, "prepare", lambda *arguments: tmp_path)
    monkeypatch.setattr(command, "write_report", lambda docs: None)
    words = ["translation", "--docs", str(tmp_path / "docs"), "--out", str(tmp_path / "out"), "--data", str(tmp_path)]
    return results / "multi30k_small.json", words


def test_the_printed_command_keeps_what_is_stored(small, capsys):
    file, words = small
    before = file.read_bytes()
    command.main(words)
    assert file.read_bytes() == before
    aside = aside_of(file, file.parents[2] / "out")
    assert {row["sacrebleu"] for row in read_json(aside)["rows"]} == {1.23}
    said = capsys.readouterr().err
    assert said.index(f"others go to {aside}") < said.index("warning: "), "before anything is trained"
    assert said.count(f"they are in {aside}; give --replace") == 1
    command.main([*words, "--quiet"])
    assert "give --replace" in capsys.readouterr().err, "a measurement that is not in its place is no progress"
    command.main([*words, "--replace"])
    assert len(read_json(file)["rows"]) == len(read_json(aside)["rows"])


def test_translations_of_another_run_stay(tmp_path):
    file = tmp_path / "MUSE.1.en"
    assert published(file, ["a", "b"]) == published(file, ["a", "b"]) == published(file, []) == ["a", "b"]
    assert published(file, ["c"]) == [] and published(file, []) == ["a", "b"]
    assert published(file, ["c"], replace=True) == published(file, []) == ["c"]


@pytest.mark.parametrize("part", report.PARTS)
def test_other_data_replaces_nothing(part: str, tmp_path: Path, capsys) -> None:
    options = defaults(part, docs=tmp_path, data=tmp_path / "data")
    form = command._parsers()[1][part]
    reads = report.part(part).reads(options)
    if part == "benchmarks":
        assert not any(reads.values())
        return
    (tmp_path / "results").mkdir()
    for title, paths in reads.items():
        assert paths
        for path in paths:
            assert path.is_relative_to(options.data)
            folder = path.parent if path.suffix else path
            folder.mkdir(parents=True, exist_ok=True)
            (path if path.suffix else folder / "train").write_text(title)
    for title, paths in reads.items():
        content = {"part": part, "command": part, DIGEST: data_digest(paths)}
        write_json(tmp_path / "results" / f"{title}.json", content)
    refuse_other(part, options, form)
    for title, paths in reads.items():
        file = paths[-1] if paths[-1].is_file() else paths[-1] / "train"
        before = file.read_text()
        file.write_text("other")
        with pytest.raises(OptionError, match=r"was measured on other data than .* \(--data\): .* give --replace"):
            refuse_other(part, options, form)
        refuse_other(part, argparse.Namespace(**{**vars(options), "replace": True}), form)
        file.write_text(before)
        write_json(tmp_path / "results" / f"{title}.json", {"part": part, "command": part})  # of an earlier version
    capsys.readouterr()
    refuse_other(part, options, form)
    assert capsys.readouterr().err.count("does not say which data it was measured on") == len(reads)


def test_contents_have_the_digest_of_their_data(small, tmp_path):
    file, words = small
    command.main([*words, "--replace"])
    assert DIGEST not in read_json(file), "where no data is there is no digest"
    folder = tmp_path / "multi30k_de_en"
    folder.mkdir()
    (folder / "train.de").write_text("a")
    command.main([*words, "--replace"])
    assert read_json(file)[DIGEST] == data_digest([folder])
    (folder / "train.de").rename(folder / "train.en")
    with pytest.raises(OptionError, match="was measured on other data"):
        command.main(words)


# --- what a text says of all rows is what the rows were measured with -------------------------------------------------


def of(name: str) -> dict[str, Any]:
    return read_json(report.DOCS / "results" / f"{name}.json")


def written(content: dict[str, Any]) -> str:
    return report.report_text({content["part"]: [content]})


@pytest.mark.parametrize(
    ("name", "key", "value", "now"),
    [
        *(("multi30k_cpu", "lr", 0.009, 0.002), ("multi30k_cpu", "dropout", 0.3, 0.1)),
        *(("multi30k_cpu", "size", "small", "cpu"), ("images_mnist_r100", "settings", {"lr": 0.5}, None)),
    ],
)
def test_a_row_of_other_settings_is_refused_by_name(name: str, key: str, value: Any, now: Any) -> None:
    content = of(name)
    row = content["rows"][1]
    row[key] = value
    said = f"{key} {value}" if isinstance(value, (int, float, str)) else "lr 0.5"
    with pytest.raises(DataError, match=rf"{name}\.json: {row['system']}.* with {said}, and its table says {now}"):
        written(content)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        *(("multi30k_cpu", "width"), ("cross_view_ablation", "tokens"), ("images_mnist_r100", "epochs")),
        *(("images_cifar10_r10", "largest_class"), ("images_clean", "lr_steps"), ("renode_Photo_constant", "lr")),
    ],
)
def test_a_table_of_other_settings_is_refused(name: str, key: str) -> None:
    content = of(name)
    content["settings"] = {**content.get("settings", {}), key: 7}
    with pytest.raises(DataError, match=rf"{name}\.json was measured with {key} 7, and its table says (?!7:)"):
        written(content)


def test_the_environments_shown_are_those_of_the_rows():
    content = of("multi30k_cpu")
    row = next(row for row in content["rows"] if row["system"] == "MUSE")
    row["environment"] = {**row["environment"], "torch": "2.6.0"}
    assert "torch 2.6.0" in written(content)
    content = {"environments": [{"processor": "P", "threads": 1}], "rows": [{"runs": {"a": {"environment": GPU}}}]}
    assert report.environments(content) == "Card; torch 2"
    assert report.environments({**content, "rows": [{}]}) == "P, 1 thread(s); "


GPU = {"gpu": "Card", "torch": "2"}


def test_settings_agree_with_themselves():
    """Also after a way through JSON, where tuples are lists."""
    for experiment in EXPERIMENTS.values():
        report.agree("x", json.loads(json.dumps(experiment.settings)), experiment.settings)
    for size in SIZES:
        report.agree("x", json.loads(json.dumps(settings_of(size))), settings_of(size))
