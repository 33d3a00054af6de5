"""``fairseq-ext translate``: a line for a line, whole files, and killed runs that continue."""

from __future__ import annotations

import dataclasses
import gzip
import io
import json
import sys

import pytest

from fairseq_ext import cli
from fairseq_ext.translate import command
from fairseq_ext.translate.options import TranslateOptions
from fairseq_ext.translate.translator import Translator
from tests.helpers import damaged_texts
from tests.translate.conftest import LINES


@pytest.fixture
def run(trained, translator, tmp_path, capsysbinary, monkeypatch):
    """The command on the trained model, which is loaded once; returns exit code, standard output and error."""
    monkeypatch.setattr(Translator, "from_pretrained", lambda *args, **kwargs: translator)
    monkeypatch.chdir(tmp_path)

    def call(*words, stdin=""):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(stdin.encode()))))
        capsysbinary.readouterr()
        try:
            code = cli.main(["translate", *map(str, words)])
        except SystemExit as error:
            code = error.code
        out, err = capsysbinary.readouterr()
        return code, out.decode(), err.decode()

    return call


def text_of(lines):
    return "".join(f"{line}\n" for line in lines)


TEXT = [*LINES[:6], "", *LINES[6:9]]


def test_a_line_for_a_line(run, trained, translator, tmp_path):
    expected = text_of(translator.translate(TEXT, beam=2))
    (tmp_path / "in.txt").write_text(text_of(TEXT).rstrip("\n"), encoding="utf-8")
    (tmp_path / "in.gz").write_bytes(gzip.compress(text_of(TEXT).encode()))
    model = trained / "model"
    code, out, err = run(model, "in.txt", "--beam", 2)
    assert (code, out) == (0, expected)
    assert err.splitlines() == [f"| de to en: {model}/checkpoint_best.pt, text as in {trained}/data", "| 10 lines"]
    assert run(model, "--beam", 2, "in.gz", "--quiet") == (0, expected, "")
    assert run(model, "--beam", 2, "--quiet", stdin=text_of(TEXT)) == (0, expected, "")
    assert run(model, "--out", "new/out.en", "-", "--beam", 2, "--quiet", stdin=text_of(TEXT)) == (0, "", "")
    assert (tmp_path / "new" / "out.en").read_text(encoding="utf-8") == expected
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["out.en"]
    assert run(model, "--quiet") == (0, "", "")


def test_nbest_json_and_warnings(run, trained, translator):
    long, strange = " ".join(LINES), "ж " * 15
    text = [LINES[0], "", long, strange.strip()]
    code, out, err = run(trained / "model", "--nbest", 3, stdin=text_of(text))
    lines = out.split("\n")
    best = translator.translations(text, command.Decoding(nbest=3))
    assert code == 0 and len(lines) == 13 and lines[3:9] == [""] * 6
    assert lines[:3] == [hypothesis.text for hypothesis in best[0].hypotheses]
    assert "warning: stdin:3: " in err and "skipped (--long truncate or split translates it)" in err
    assert "of the symbols are <unk>: is this the source language?" in err

    code, out, err = run(trained / "model", "--nbest", 3, "--json", "--long", "split", stdin=text_of(text))
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["line"] for row in rows] == [1, 2, 3, 4] and [row["source"] for row in rows] == text
    assert [len(row["hypotheses"]) for row in rows] == [3, 0, 3, 3]
    assert [row["long"] for row in rows] == [None, None, "split", None]
    first = rows[0]["hypotheses"][0]
    assert first["text"] == best[0].text and first["score"] == best[0].hypotheses[0].score
    assert all(0 <= source < len(rows[0]["source_tokens"]) for source, _ in first["alignment"])


@pytest.fixture
def killed(run, trained, translator, tmp_path, monkeypatch):
    """A run that was killed in its third part, and what it would have written."""
    monkeypatch.setattr(command, "CHUNK", 3)
    translations, sizes = translator.translations, []
    (tmp_path / "in").write_text(text_of(TEXT), encoding="utf-8")

    def stop_in_the_third(sentences, *args, **kwargs):
        sizes.append(len(sentences))
        if len(sizes) == 3:
            raise KeyboardInterrupt
        return translations(sentences, *args, **kwargs)

    monkeypatch.setattr(translator, "translations", stop_in_the_third)
    assert run(trained / "model", "in", "--out", "out", "--beam", 2)[0] == 130
    assert not (tmp_path / "out").exists()
    with (tmp_path / "out.partial").open("a") as partial:
        partial.write("half a li")  # as a kill leaves it
    del sizes[:]
    monkeypatch.setattr(
        translator, "translations", lambda lines, *a, **k: sizes.append(len(lines)) or translations(lines, *a, **k)
    )
    return sizes, text_of(translator.translate(TEXT, beam=2))


def test_a_killed_run_continues(run, killed, trained, tmp_path):
    sizes, expected = killed
    del sizes[:]
    code, _, err = run(trained / "model", "in", "--out", "out", "--beam", 2, "--resume")
    assert code == 0 and "| resuming after 6 of 10 lines" in err and sizes == [3, 1]
    assert (tmp_path / "out").read_text(encoding="utf-8") == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


@pytest.mark.parametrize(
    ("words", "damage", "message"),
    [
        ([], None, "ended after 6 lines: --resume continues it; delete it to start anew"),
        (["--resume", "--lenpen", "2"], None, "is of lenpen 1.0, now lenpen is 2.0"),
        (["--resume", "--json"], None, "is of json False, now json is True"),
        (["--resume"], ("in", "other text\n"), "is of inputs.text "),
        (["--resume"], ("out.partial", ""), "out.partial: shorter than out.progress.json says"),
        (["--resume"], ("out.progress.json", "{}"), "out.progress.json: not the progress of a translation"),
        (["--resume"], ("out.progress.json", "{"), "out.progress.json: not a JSON file"),
    ],
)
def test_what_was_begun_is_neither_lost_nor_mixed(run, killed, trained, tmp_path, words, damage, message):
    if damage:
        (tmp_path / damage[0]).write_text(damage[1])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    code, _, err = run(trained / "model", "in", "--out", "out", "--beam", 2, "--quiet", *words)
    assert code == 2 and message in err and len(err.splitlines()) == 1
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_another_model_does_not_continue(run, killed, trained, translator, tmp_path, monkeypatch):
    monkeypatch.setattr(translator, "files", translator.files[1:])
    code, _, err = run(trained / "model", "in", "--out", "out", "--beam", 2, "--resume", "--quiet")
    assert code == 2 and "is of inputs.model " in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere.txt"], "nowhere.txt: cannot be read"),
        (["in", "--resume"], "--resume: has no effect without --out"),
        (["in", "--out", "in"], "--out: in is the text that is translated"),
        (["in", "--out", "."], "--out: . is a folder"),
        (["in", "--out", "in/out"], "--out: cannot write to in"),
        (["in", "--out", "out", "--beam", "5000"], "--beam 5000: must be below the 120 symbols"),
        (["in", "--nbest", "9"], "--nbest 9: must be at most --beam 5"),
        (["in", "--long", "drop"], "--long: 'drop' is not one of"),
        (["in", "--inference-dtype", "int4"], "--inference-dtype: 'int4' is not one of"),
    ],
)
def test_bad_options_end_in_one_line(run, trained, tmp_path, words, message):
    (tmp_path / "in").write_text("guten morgen .\n")
    code, out, err = run(trained / "model", "--quiet", *words)
    assert (code, out) == (2, "") and err.startswith(message) and len(err.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("kind", damaged_texts(b"one\ntwo\n"))
def test_damaged_text_is_named_before_anything_is_written(run, trained, tmp_path, kind):
    (tmp_path / kind).write_bytes(damaged_texts(text_of(LINES).encode())[kind])
    code, out, err = run(trained / "model", kind, "--out", "out")
    assert (code, out) == (2, "") and err.startswith(f"{kind}:") and len(err.splitlines()) == 1
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial").exists()


def test_every_option_reaches_what_heeds_it(translator, tmp_path, monkeypatch, capsysbinary):
    with pytest.raises(SystemExit) as end:
        cli.main(["translate", "--help"])
    help = capsysbinary.readouterr().out.decode()
    names = [item.name for item in dataclasses.fields(TranslateOptions) if not item.metadata["positional"]]
    assert end.value.code == 0 and not [name for name in names if f"--{name.replace('_', '-')}" not in help]

    seen = {}

    def from_pretrained(folder, checkpoints, **kwargs):
        seen.update(kwargs, model=folder, checkpoints=checkpoints)
        return translator

    def translations(lines, decoding, alignment, progress):
        seen.update(decoding.as_dict(), json=alignment)
        return []

    monkeypatch.setattr(Translator, "from_pretrained", from_pretrained)
    monkeypatch.setattr(translator, "translations", translations)
    monkeypatch.setattr(command, "_rendered", lambda *args: "")
    (tmp_path / "in").write_text("a\n")
    given = {"checkpoints": ("a", "b"), "data": "d", "device": "cpu", "inference_dtype": "int8"}
    given |= {"beam": 7, "nbest": 2, "lenpen": 0.5, "max_len": 9, "long": "split", "batch_tokens": 11, "json": True}
    command.translate(TranslateOptions(model="m", file=str(tmp_path / "in"), **given))
    assert seen == given | {"model": "m"}
    assert set(names) == {*given, "out", "resume", "quiet"}


def test_without_fairseq(run, trained, monkeypatch):
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None)
    code, out, err = run(trained / "model")
    assert (code, out) == (2, "") and err.startswith("translate: fairseq is not installed (pip install ")


def test_processes_that_would_each_translate_all(run, trained, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, out, err = run(trained / "model", stdin="ein\n")
    assert (code, out) == (2, "") and err.startswith("fairseq-ext translate has one process, got 2")


def test_devices_that_are_not_there(trained):
    for options, message in (({"device": "nothing"}, "--device nothing"), ({"device": "meta"}, "--inference-dtype")):
        with pytest.raises(SystemExit, match=message):
            Translator.from_pretrained(trained / "model", inference_dtype="int8", **options)
