"""The language modelling example: preparation, bad input, bits per character."""

from __future__ import annotations

import gzip
import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from examples.language_modeling import bpc
from examples.language_modeling import prepare as lm
from examples.translation import prepare as mt
from fairseq_ext.training.errors import DataError, InputError, OptionError
from fairseq_ext.training.files import write_json
from tests.helpers import ROOT, damaged_texts


def test_bytes_round_trip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every byte is one prediction, and the symbols give the file back."""
    data = b"\n\nab\n" * 200 + bytes(range(256)) + b"\xff\x00end"  # most bytes are not in train
    (tmp_path / "in.gz").write_bytes(gzip.compress(data))
    seen: dict[str, str] = {}

    def preprocess(options: list[str], stage: Path) -> None:
        seen.update({file.name: file.read_text() for file in (stage / "symbols").iterdir()})

    monkeypatch.setattr(lm, "fairseq_preprocess", preprocess)
    command = ["--input", str(tmp_path / "in.gz"), "--out", str(tmp_path / "out"), "--split", "900", "180", "181"]
    lm.main(command)
    parts = [data[:900], data[900:1080], data[1080:1261]]
    for split, part in zip(lm.SPLITS, parts, strict=True):
        lines = [bytes(map(int, line.split())) for line in seen[split].removesuffix("\n").split("\n")]
        assert b"\n".join(lines) == part.removesuffix(b"\n")
    symbols = [int(line.split()[0]) for line in seen["dict.txt"].splitlines()]
    assert sorted(symbols) == [byte for byte in range(256) if byte != ord("\n")]


VOCAB = ["--vocab-size", "20"]


def test_language_model_from_the_command_line(tmp_path: Path) -> None:
    text = "".join(line + "\n" for line in [f"ein mann {i % 7} läuft heute {i % 3}" for i in range(200)])
    (tmp_path / "in.txt").write_text(text)
    command = [sys.executable, "-m", "examples.language_modeling.prepare", "--input", str(tmp_path / "in.txt")]
    command += ["--out", str(tmp_path / "out"), "--symbols", "sentencepiece", "--vocab-size", "60"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    splits = json.loads((tmp_path / "out" / "prepare.json").read_text())["splits"]
    assert sum(part["characters"] for part in splits.values()) == len(text)

    from fairseq.data import Dictionary
    from fairseq.data.data_utils import load_indexed_dataset

    data = load_indexed_dataset(str(tmp_path / "out" / "test"), Dictionary.load(str(tmp_path / "out" / "dict.txt")))
    assert sum(len(line) for line in data) == splits["test"]["tokens"]


@pytest.mark.parametrize(
    ("content", "options", "words"),
    [
        (b"", [], "is empty"),
        (None, [], "cannot be read: No such file"),
        (b"abc\n" * 9, ["--split", "30", "5", "5"], "--split 30 5 5"),
        (b"abc\n" * 9, ["--split", "30", "6"], "--split needs the sizes of train, valid, test, got 30 6"),
        (b"abc\n" * 9, ["--workers", "0"], "--workers must be at least 1, got 0"),
        (b"abc\n" * 9, ["--vocab-size", "9"], "--vocab-size 9: has no effect with --symbols bytes"),
        (b"abc\n" * 9, ["--allow-unknown"], "--allow-unknown: has no effect with --symbols bytes"),
        (b"abc\n" * 99, ["--symbols", "sentencepiece", "--vocab-size", "9999"], "--vocab-size 9999 is too large"),
        (b"abcd ef g\n" * 99 + b"\xff\n", ["--symbols", "sentencepiece", "--vocab-size", "12"], ":100: not UTF-8"),
    ],
)
def test_language_model_refuses(tmp_path: Path, content: bytes | None, options: list[str], words: str) -> None:
    if content is not None:
        (tmp_path / "in").write_bytes(content)
    with pytest.raises(InputError) as refusal:
        lm.main(["--input", str(tmp_path / "in"), "--out", str(tmp_path / "out"), *options])
    assert words in str(refusal.value) and "\n" not in str(refusal.value)
    assert {path.name for path in tmp_path.iterdir()} <= {"in"}


PACKED = [kind for kind in damaged_texts(b"one\ntwo\n") if "gz" in kind]


@pytest.mark.parametrize("kind", [*PACKED, "damaged.zip", "truncated.zip", "two files.zip", "text.zip"])
def test_damaged_archives_are_named(tmp_path: Path, kind: str) -> None:
    with zipfile.ZipFile(buffer := io.BytesIO(), "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("enwik8", b"text\n" * 99)
    damaged = bytearray(whole := buffer.getvalue())
    damaged[60] ^= 1
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr("second", b"text")
    archives = {
        "damaged.zip": damaged,
        "truncated.zip": whole[:80],
        "two files.zip": buffer.getvalue(),
        "text.zip": b"x",
    }
    path = tmp_path / kind
    path.write_bytes({**damaged_texts(b"one\ntwo\n" * 99), **archives}[kind])
    with pytest.raises(DataError) as refusal:
        lm.main(["--input", str(path), "--out", str(tmp_path / "out")])
    assert str(refusal.value).startswith(f"{path}:") and "\n" not in str(refusal.value)
    assert [left.name for left in tmp_path.iterdir()] == [kind]


def test_what_valid_and_test_hold_beyond_train_is_said(tmp_path: Path, capsys, monkeypatch) -> None:
    def preprocess(options: list[str], stage: Path) -> None:
        words = sorted(set((stage / "symbols" / "train").read_text().split()))
        (stage / "dict.txt").write_text("".join(f"{word} 1\n" for word in words))

    monkeypatch.setattr(lm, "fairseq_preprocess", preprocess)
    train, other = "ab cd ab\n" * 50, "ab xy\n" * 10
    (tmp_path / "in").write_text(train + other + train[:90])
    command = ["--input", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--symbols", "sentencepiece"]
    command += ["--vocab-size", "11", "--split", str(len(train)), str(len(other)), "90"]
    with pytest.raises(DataError, match=r"valid: .*% of the symbols do not occur in train"):
        lm.main(command)
    lm.main([*command, "--allow-unknown"])
    splits = json.loads((tmp_path / "out" / "prepare.json").read_text())["splits"]
    assert splits["train"]["unknown"] == splits["test"]["unknown"] == 0 and splits["valid"]["unknown"] > 0.2
    assert "warning: valid: " in capsys.readouterr().err


def test_characters_are_those_that_are_predicted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Space of other kinds, or of several characters, is one space; a carriage return ends no line."""
    seen: dict[str, list[str]] = {}

    def preprocess(options: list[str], stage: Path) -> None:
        for split in lm.SPLITS:
            seen[split] = (stage / "symbols" / split).read_text().removesuffix("\n").split("\n")
        words = sorted({word for line in seen["train"] for word in line.split()})
        (stage / "dict.txt").write_text("".join(f"{word} 1\n" for word in words))

    monkeypatch.setattr(lm, "fairseq_preprocess", preprocess)
    line = " ein  \tmann\u00a0l\u0061\u0308uft\u3000\r\u2028heute\x07 \r\n"
    (tmp_path / "in").write_text((line + "\n") * 60, newline="")
    lm.main(["--input", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--symbols", "sentencepiece", *VOCAB])
    splits = json.loads((tmp_path / "out" / "prepare.json").read_text())["splits"]
    assert sum(map(len, seen.values())) == 120
    for split, lines in seen.items():
        # Every piece stands for its characters, the space before the first word and the line feed for themselves.
        texts = ["".join(text.split()).replace("\u2581", " ")[1:] for text in lines]
        assert set(texts) == {"ein mann l\u00e4uft heute", ""}
        assert splits[split]["characters"] == sum(len(text) + 1 for text in texts)
        assert splits[split]["tokens"] == sum(len(text.split()) + 1 for text in lines)


@pytest.mark.parametrize("out", ["a,b", "a,b/out"])
@pytest.mark.parametrize("program", [lm, mt])
def test_a_path_that_fairseq_preprocess_would_split_is_refused_before_the_work(tmp_path: Path, program, out) -> None:
    (tmp_path / "in").write_text("a b\n" * 99)
    prefix = str(tmp_path / "in")
    given = {"input": prefix} if program is lm else {"train": prefix, "valid": prefix, "test": prefix}
    languages = {} if program is lm else {"source": "de", "target": "en"}
    words = [word for name, value in {**given, **languages}.items() for word in (f"--{name}", value)]
    with pytest.raises(OptionError, match=r"^--out: .*a,b.* has a comma, where fairseq-preprocess splits a path"):
        program.main([*words, "--out", str(tmp_path / out)])
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


LOG = "INFO | Evaluated 1,000 tokens in 2.0s (500 tokens/s)\nINFO | Loss (base 2): 3.2500, Perplexity: 9.51\n"


def test_bits_per_character() -> None:
    assert bpc.bits_per_character(LOG, tokens=1000, characters=1000) == 3.25
    assert bpc.bits_per_character(LOG, tokens=1000, characters=4000) == 0.8125
    with pytest.raises(ValueError, match="1,000 of 1,001 symbols"):
        bpc.bits_per_character(LOG, tokens=1001, characters=4000)
    with pytest.raises(ValueError, match="fairseq-eval-lm"):
        bpc.bits_per_character("nothing", tokens=1, characters=1)


def test_bits_per_character_from_the_command_line(tmp_path: Path, capsys) -> None:
    splits = {name: {"tokens": 1000, "characters": n, "unknown": 0} for name, n in (("test", 2000), ("valid", 4000))}
    write_json(tmp_path / "prepare.json", {"splits": splits})
    (tmp_path / "log").write_text(LOG)
    for subset, bits in (("test", "1.6250"), ("valid", "0.8125")):
        bpc.main([str(tmp_path / "log"), "--data", str(tmp_path), "--subset", subset])
        assert capsys.readouterr().out.startswith(f"{subset}: {bits} bits per character")
    for end in range(len(LOG) - len(", Perplexity: 9.51\n")):
        (tmp_path / "log").write_text(LOG[:end])
        with pytest.raises(DataError, match=f"^{tmp_path}/log: "):
            bpc.main([str(tmp_path / "log"), "--data", str(tmp_path)])


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"splits": {}}', '{"splits": {"test": {"tokens": 1}}}'])
def test_a_folder_that_was_not_prepared_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "log").write_text(LOG)
    (tmp_path / "prepare.json").write_text(text)
    with pytest.raises(DataError, match=f"^{tmp_path}/prepare.json: "):
        bpc.main([str(tmp_path / "log"), "--data", str(tmp_path)])
