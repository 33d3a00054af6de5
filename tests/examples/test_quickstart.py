"""The quickstart: what its corpus promises, the whole pipeline on a tiny budget, and bad input."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import sacrebleu

from examples.quickstart import pipeline
from examples.quickstart.__main__ import main
from examples.quickstart.corpus import build_corpus
from examples.quickstart.pipeline import Pipeline, Settings
from examples.results.fairseq_log import curve, validation_curve
from fairseq_ext.text import PREPARATION, clean
from fairseq_ext.training.errors import OptionError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def english_german():
    return build_corpus("en", "de")


def test_corpus_is_large_and_disjoint_on_both_sides(english_german):
    splits = [english_german.train, english_german.valid, english_german.test]
    assert [len(split) for split in splits] == [19_000, 500, 500]
    for side in (0, 1):
        texts = [pair[side] for split in splits for pair in split]
        assert len(set(texts)) == len(texts) >= 15_000


def test_corpus_lines_are_plain_text(english_german):
    for pair in english_german.train:
        for text in pair:
            assert text and text == clean(text) and "\u200e" not in text


def test_corpus_really_is_in_two_languages(english_german):
    differ = sum(source != target for source, target in english_german.train)
    assert differ > 0.9 * len(english_german.train)


def test_corpus_depends_on_nothing_but_its_arguments():
    first, again, other = (build_corpus(pairs=1000, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other


@pytest.mark.parametrize(("source", "target"), [("fr", "ja"), ("pt_BR", "zh_Hant"), ("en", "ar")])
def test_other_locales(source, target):
    corpus = build_corpus(source, target, pairs=2000)
    assert (len(corpus.train), len(corpus.valid), len(corpus.test)) == (1600, 200, 200)


def test_written_files_are_parallel(tmp_path):
    corpus = build_corpus(pairs=300)
    corpus.write(tmp_path, "en", "de")
    sides = [(tmp_path / f"valid.{side}").read_text(encoding="utf-8").splitlines() for side in ("en", "de")]
    assert list(zip(*sides, strict=True)) == corpus.valid


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--target", "dee"], ["--target", "'dee'", "nearest: ", "allowed"]),
        (["--target", "en"], ["--target", "'en'", "source"]),
        (["--pairs", "7"], ["--pairs", "7", "allowed"]),
        (["--updates", "0"], ["--updates", "0", "at least 1"]),
        (["--pairs", "200", "--vocab", "30000"], ["--vocab-size 30000", "at most "]),
        (["--pairs", "200", "--vocab-size", "9"], ["--vocab-size 9", "characters"]),
    ],
)
def test_bad_options_end_in_one_line(arguments, parts, tmp_path):
    with pytest.raises(OptionError) as refusal:
        main(["--out", str(tmp_path / "out"), *arguments])
    error = str(refusal.value)
    assert "\n" not in error
    assert all(part in error for part in parts), error
    assert not list((tmp_path / "out").rglob("done.json")) and not (tmp_path / "out" / "data-bin").exists()


def test_too_few_distinct_pairs():
    with pytest.raises(OptionError, match="--source/--target"):
        build_corpus("yo", "ff", pairs=500)


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OptionError, match="--out: cannot write"):
        main(["--out", str(tmp_path / "file" / "out")])


def test_foreign_folder_is_left_alone(tmp_path):
    kept = tmp_path / "corpus" / "mine.txt"
    kept.parent.mkdir()
    kept.write_text("mine")
    with pytest.raises(OptionError, match=r"--out: .* holds other files"):
        main(["--out", str(tmp_path)])
    assert kept.read_text() == "mine"


@pytest.mark.parametrize(("target", "package"), [("ja", "MeCab"), ("ko", "mecab_ko")])
def test_a_language_that_cannot_be_scored_is_refused_before_the_work(target, package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)  # as if not installed
    with pytest.raises(OptionError, match=f"--target {target} needs a tokeniser: pip install"):
        main(["--out", str(tmp_path / "out"), "--target", target])
    assert not (tmp_path / "out").exists()


def test_the_corpus_is_prepared_anew_for_other_settings_and_where_its_data_are_gone(tmp_path, monkeypatch):
    prepared = []

    def prepare(options):
        assert not Path(options.out).exists()
        Path(options.out).mkdir()
        (Path(options.out) / PREPARATION).write_text("{}")
        prepared.append(options)

    monkeypatch.setattr(pipeline, "prepare", prepare)
    runs = Pipeline(tmp_path, Settings(pairs=100))
    for _ in range(2):
        assert runs.prepare()["test"] == 10
    assert len(prepared) == 1
    shutil.rmtree(runs.data_dir)
    runs.prepare()
    assert len(prepared) == 2
    earlier = {"source": "en", "target": "de", "pairs": 100, "vocab": 2000, "seed": 1, "babel": version("babel")}
    (runs.corpus_dir / "settings.json").write_text(json.dumps(earlier))  # by a quickstart with pieces of its own
    runs.prepare()
    monkeypatch.setitem(pipeline.PREPARED, "max_ratio", 9.0)
    runs.prepare()
    Pipeline(tmp_path, Settings(pairs=100, vocab_size=50)).prepare()
    assert [options.vocab_size for options in prepared] == [2000, 2000, 2000, 2000, 50]
    assert [options.max_ratio for options in prepared] == [1000, 1000, 1000, 9, 9]


def test_whole_pipeline_and_second_run(tmp_path, capsys):
    options = ["--out", str(tmp_path / "out"), "--pairs", "100", "--vocab", "150", "--updates", "3"]
    command = [sys.executable, "-m", "examples.quickstart", *options]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    first = done.stdout
    assert "already done" not in done.stderr and "| translate combined\n" in done.stderr
    out = tmp_path / "out"
    assert (out / "quickstart.png").read_bytes().startswith(b"\x89PNG")
    row = json.loads((out / "results.json").read_text(encoding="utf-8"))["systems"]["combined"]
    assert row["sentences"] == 10 and len(row["samples"]) == 5
    assert row["signature"].startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|")
    files = (out / "combined" / "test" / "hypotheses.de", out / "corpus" / "test.de")
    hypotheses, references = (file.read_text(encoding="utf-8").splitlines() for file in files)
    assert row["bleu"] == round(sacrebleu.corpus_bleu(hypotheses, [references]).score, 2)
    assert [sample["hypothesis"] for sample in row["samples"]] == [
        hypotheses[references.index(sample["reference"])] for sample in row["samples"]
    ]
    log = out / "combined" / "fairseq-train.log"
    assert [update for update, _ in curve(log, "nll_loss", "num_updates")] == [1, 2, 3]
    assert validation_curve(log)[-1][0] == 3
    checkpoint = out / "combined" / "checkpoint_best.pt"
    written = checkpoint.stat().st_mtime_ns

    command, translation = first.partition("Your own text:\n")[2].splitlines()[:2]
    assert command.split("|") == ["  echo 'Saturday, May 17, 2031' ", f" fairseq-ext translate {out / 'combined'}"]
    assert translation.startswith("  -> ")

    (out / "combined" / "test" / "done.json").unlink()  # as if killed while translating
    main(options)
    second = capsys.readouterr().err
    assert second.count("already done") == 2
    assert checkpoint.stat().st_mtime_ns == written
    assert json.loads((out / "results.json").read_text(encoding="utf-8"))["systems"]["combined"]["bleu"] == row["bleu"]
