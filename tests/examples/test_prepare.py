"""Preparation of parallel text: what is kept, cleaned, split and counted, and one line for bad input."""

from __future__ import annotations

import gzip
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from examples.translation import encode, staging
from examples.translation import prepare as mt
from examples.translation.tatoeba import split as tatoeba
from fairseq_ext.text import join_subwords
from fairseq_ext.training.errors import DataError, InputError, OptionError
from tests.helpers import ROOT, damaged_texts, require_data

WORDS = ["ein", "mann", "hund", "frau", "läuft", "sitzt", "spielt", "schnell", "heute", "garten"]


def sentences(n: int, shift: int) -> list[str]:
    return [" ".join(WORDS[(i * step + shift + i // 7) % 10] for step in range(2, 4 + i % 5)) for i in range(n)]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A tiny corpus; its test sides are gzipped."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for split, n in (("train", 60), ("valid", 9), ("test", 7)):
        for shift, language in enumerate(("de", "en")):
            text = "".join(line + "\n" for line in sentences(n, shift)).encode()
            if split == "test":
                (folder / f"{split}.{language}.gz").write_bytes(gzip.compress(text))
            else:
                (folder / f"{split}.{language}").write_bytes(text)
    return folder


def arguments(corpus: Path, *more: str) -> list[str]:
    prefixes = [part for split in ("train", "valid", "test") for part in (f"--{split}", str(corpus / split))]
    return [*prefixes, "--source", "de", "--target", "en", "--out", str(corpus.parent / "out"), *more]


def refused(corpus: Path, *more: str) -> str:
    """Runs the preparation, which must refuse in one line and leave nothing behind."""
    before = sorted(corpus.parent.iterdir())
    with pytest.raises(InputError) as refusal:
        mt.main(arguments(corpus, *more))
    assert "\n" not in str(refusal.value)
    assert sorted(corpus.parent.iterdir()) == before
    return str(refusal.value)


@pytest.fixture
def pieces(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The text in subwords by file name, taken where fairseq-preprocess (which costs seconds) would read it."""
    seen: dict[str, str] = {}

    def preprocess(options: list[str], stage: Path) -> None:
        seen.clear()
        seen.update({file.name: file.read_text(encoding="utf-8") for file in (stage / "pieces").iterdir()})
        texts = {"de": seen["train.de"], "en": seen["train.en"]}
        if "--joined-dictionary" in options:
            texts = dict.fromkeys(texts, texts["de"] + texts["en"])
        for language, train in texts.items():
            words = sorted(set(train.split()))
            (stage / f"dict.{language}.txt").write_text("".join(f"{word} 1\n" for word in words), encoding="utf-8")

    monkeypatch.setattr(mt, "fairseq_preprocess", preprocess)
    return seen


def test_prepare_from_the_command_line(corpus: Path, tmp_path: Path) -> None:
    with (corpus / "train.de").open("a") as de, (corpus / "train.en").open("a") as en:
        de.write("\nein\nein mann\n")
        en.write("ein hund\n" + "ein " * 20 + "\nein\x00\u2028\x0b hund\r\n")
    with (corpus / "valid.de").open("a") as de, (corpus / "valid.en").open("a") as en:
        de.write("\n")
        en.write("ein " * 300 + "\n")
    command = [sys.executable, "-m", "examples.translation.prepare", *arguments(corpus, "--vocab-size", "50")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "train: 63 pairs read, 61 kept" in done.stderr and not done.stdout
    out = tmp_path / "out"
    pairs = json.loads((out / "prepare.json").read_text())["pairs"]
    assert pairs["valid"] == {"read": 10, "kept": 10} and pairs["test"] == {"read": 7, "kept": 7}
    assert {file.name for file in (out / "text").iterdir()} == {"valid.de", "valid.en", "test.de", "test.en"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus", "out"]

    from fairseq.data import Dictionary
    from fairseq.data.data_utils import load_indexed_dataset

    dictionary = Dictionary.load(str(out / "dict.en.txt"))
    for split, n in (("train", 61), ("valid", 10), ("test", 7)):
        data = load_indexed_dataset(str(out / f"{split}.de-en.en"), dictionary)
        assert len(data) == n
    assert dictionary.string(data[3], "sentencepiece") == (out / "text" / "test.en").read_text().splitlines()[3]


@pytest.mark.parametrize(("bpe", "size"), [("subword-nmt", "12"), ("none", None)])
def test_other_subwords(corpus: Path, pieces: dict[str, str], bpe: str, size: str | None, tmp_path: Path) -> None:
    if bpe == "subword-nmt":
        pytest.importorskip("subword_nmt")
    else:
        split = "sch@@ nell\nlä@@ u@@ ft schnell@@\n"
        for name in ("train.de", "train.en", "valid.de", "valid.en", "test.de", "test.en"):
            (corpus / name).write_text(split)
    more = ["--bpe", bpe, "--joined-dictionary", *(["--vocab-size", size] if size else [])]
    mt.main(arguments(corpus, *more))
    assert len(pieces) == 6 and "@@ " in pieces["train.de"]
    whole = (tmp_path / "out" / "text" / "test.de").read_text()
    assert "@@" not in whole
    assert "".join(join_subwords(line) + "\n" for line in pieces["test.de"].splitlines()) == whole
    if bpe == "none":
        assert pieces["train.en"] == split and whole == "schnell\nläuft schnell\n"


def test_filter() -> None:
    assert mt.keep("a b", "c", 1, 2, 2.0)
    assert not mt.keep("a b c", "c", 1, 3, 2.0)
    assert not mt.keep("a b c", "c d e", 1, 2, 9.0)
    assert not mt.keep("", "c", 1, 9, 9.0)
    assert not mt.keep("a", "b c", 2, 9, 9.0)


def test_line_counts_that_differ(corpus: Path) -> None:
    with (corpus / "valid.en").open("a") as file:
        file.write("one more\nand one\n")
    error = refused(corpus)
    assert f"{corpus / 'valid.de'} has 9" in error and f"{corpus / 'valid.en'} has 11" in error


def test_empty_file(corpus: Path) -> None:
    (corpus / "train.en").write_text("")
    assert f"{corpus / 'train.en'} is empty" in refused(corpus)


def test_missing_file(corpus: Path) -> None:
    (corpus / "test.en.gz").unlink()
    assert f"neither {corpus / 'test.en'} nor {corpus / 'test.en.gz'}" in refused(corpus)


def test_invalid_utf8(corpus: Path) -> None:
    lines = (corpus / "train.de").read_bytes().split(b"\n")
    lines[41] = "läuft".encode("latin-1")
    (corpus / "train.de").write_bytes(b"\n".join(lines))
    assert f"{corpus / 'train.de'}:42: not UTF-8 text (byte 0xe4 at 2)" in refused(corpus)


@pytest.mark.parametrize("kind", damaged_texts(b"one\ntwo\n"))
def test_damaged_files_are_named(corpus: Path, kind: str) -> None:
    name = "valid.de.gz" if "gz" in kind else "valid.de"
    data = damaged_texts((corpus / "valid.de").read_bytes())[kind]
    (corpus / "valid.de").unlink()
    (corpus / name).write_bytes(data)
    assert refused(corpus).startswith(f"{corpus / name}:")


@pytest.mark.parametrize("bpe", ["sentencepiece", "subword-nmt"])
def test_vocabulary_too_large(corpus: Path, bpe: str) -> None:
    if bpe == "subword-nmt":
        pytest.importorskip("subword_nmt")
    error = refused(corpus, "--bpe", bpe, "--vocab-size", "70000")
    assert "--vocab-size 70000 is too large for this corpus: it allows at most " in error
    assert int(error.rsplit(" ", 1)[1]) < 70000


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--vocab-size", "5"], "--vocab-size 5 is too small"),
        (["--vocab-size", "0"], "--vocab-size must be at least 1, got 0"),
        (["--bpe", "none", "--vocab-size", "9"], "--vocab-size 9: has no effect with --bpe none"),
        (["--target", "de"], "--source and --target are both 'de'"),
        (["--min-length", "0"], "--min-length must be at least 1, got 0"),
        (["--min-length", "251"], "--max-length must be at least --min-length 251, got 250"),
        (["--max-ratio", "0.5"], "--max-ratio must be at least 1"),
        (["--max-ratio", "nan"], "--max-ratio must be finite, got nan"),
        (["--min-length", "200"], "no training pair passes --min-length 200"),
        (["--workers", "0"], "--workers must be at least 1, got 0"),
    ],
)
def test_bad_options(corpus: Path, options: list[str], words: str) -> None:
    assert words in refused(corpus, *options)


def test_output_folder(corpus: Path) -> None:
    assert "--out: cannot write to" in refused(corpus, "--out", str(corpus / "train.de" / "out"))
    assert "already exists" in refused(corpus, "--out", str(corpus))


def test_failing_preprocess_leaves_nothing(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(options: list[str], stage: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(mt, "fairseq_preprocess", fail)
    assert "No space left on device" in refused(corpus, "--vocab-size", "50")


def test_real_data(tmp_path: Path, pieces: dict[str, str]) -> None:
    data = require_data("multi30k_de_en")
    prefixes = ["--train", f"{data}/val", "--valid", f"{data}/val", "--test", f"{data}/test_2016_flickr"]
    out = tmp_path / "out"
    more = ["--source", "de", "--target", "en", "--out", str(out), "--vocab-size", "1000"]
    mt.main([*prefixes, *more])
    assert len((out / "text" / "test.de").read_text().splitlines()) == 1000


# --- what the model will not see --------------------------------------------------------------------------------------


def test_the_subwords_are_those_of_train(corpus: Path, pieces: dict[str, str], tmp_path: Path) -> None:
    """Whatever valid and test hold, the models and the text of train in subwords stay the same to the byte."""
    pytest.importorskip("subword_nmt")
    for bpe, size in (("sentencepiece", "50"), ("subword-nmt", "12")):
        before = None
        for held_out in ("heute läuft\n", "quizzing quizzes zzz\n"):
            for name in ("valid.de", "valid.en", "test.de", "test.en"):
                (corpus / name).write_text(held_out * 50)
            out = tmp_path / f"{bpe} {held_out[0]}"
            mt.main(arguments(corpus, "--bpe", bpe, "--vocab-size", size, "--allow-unknown", "--out", str(out)))
            model = next(file for file in out.iterdir() if file.suffix in (".vocab", ".codes")).read_bytes()
            written = (model, pieces["train.de"], pieces["train.en"])
            assert before is None or written == before
            before = written
        assert "zzz" not in out.joinpath("dict.de.txt").read_text()


def test_the_share_of_unknown_symbols_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    dictionary, train, file = (tmp_path / name for name in ("dict.txt", "train.en", "test.en"))
    dictionary.write_text("a 7\nb 5\nz 3\n")
    train.write_text("a b\nb\n")

    def share(content: str, allow: bool = False) -> float:
        file.write_text(content)
        return staging.check_unknown(file, dictionary, train, allow)

    assert share("a b a\n\na c\n", allow=True) == 0.2
    assert share("a b\n") == share("") == 0
    for listed, unknown, warned in ((993, 7, 0), (990, 10, 1), (801, 199, 1)):
        capsys.readouterr()
        assert share("a " * listed + "x " * unknown) == unknown / 1000
        assert capsys.readouterr().err.count("warning: test.en") == warned
    for strange in ("x", "z"):
        with pytest.raises(DataError, match=r"test.en: 20% of the symbols do not occur in train.en"):
            share("a " * 800 + f"{strange} " * 200)
    assert share("a " * 800 + "z " * 200, allow=True) == 0, "z is the other side's word"


def test_swapped_sides_are_refused_unless_told(corpus: Path, pieces: dict[str, str], tmp_path: Path, capsys) -> None:
    for language, words in (("de", "ein mann läuft heute"), ("en", "one boy jumps quickly")):
        for split in ("train", "valid"):
            (corpus / f"{split}.{language}").write_text(f"{words}\n" * 60)
        (corpus / f"test.{language}.gz").unlink()
    (corpus / "test.de").write_text("one boy jumps quickly\n" * 7)
    (corpus / "test.en").write_text("ein mann läuft heute\n" * 7)
    options = ("--vocab-size", "32")
    assert "test.de: " in refused(corpus, *options) and "are languages or sides swapped?" in refused(corpus, *options)
    mt.main(arguments(corpus, *options, "--allow-unknown"))
    assert "are languages or sides swapped?" in refused(
        corpus, *options, "--joined-dictionary", "--out", str(corpus / "x")
    )
    symbols = json.loads((tmp_path / "out" / "prepare.json").read_text())["symbols"]
    assert symbols["train"] == {side: {"unknown": 0, "too_long": 0} for side in ("de", "en")} == symbols["valid"]
    assert all(side["unknown"] > 0.2 for side in symbols["test"].values())
    printed = capsys.readouterr().err
    for split in ("train", "valid", "test"):
        for language in ("de", "en"):
            assert f" {split}.{language}: " in printed


def test_lines_above_the_models_positions_are_counted(
    corpus: Path, pieces: dict[str, str], tmp_path: Path, capsys
) -> None:
    with (corpus / "valid.de").open("a") as de, (corpus / "valid.en").open("a") as en:
        de.write("ein " * 1023 + "\n" + "ein " * 1024 + "\n")
        en.write("ein\nein\n")
    mt.main(arguments(corpus, "--bpe", "none"))
    symbols = json.loads((tmp_path / "out" / "prepare.json").read_text())["symbols"]
    assert [symbols[split]["de"]["too_long"] for split in ("train", "valid", "test")] == [0, 1, 0]
    assert "warning: valid.de: 1 lines (the first is 11) have more than 1023 symbols" in capsys.readouterr().err


# --- text of later ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [
    ["--vocab-size", "50"], ["--vocab-size", "50", "--lowercase", "--unicode", "NFD"],
    ["--bpe", "subword-nmt", "--vocab-size", "12"], ["--bpe", "none", "--unicode", "none"],
])  # fmt: skip
def test_later_text_is_split_as_the_corpus_was(
    corpus: Path, pieces: dict[str, str], capsys, options: list[str]
) -> None:
    """Encoding the raw test set gives what was binarised of it."""
    if "subword-nmt" in options:
        pytest.importorskip("subword_nmt")
    raw = "ein  Mann\nla\u0308uft\u2028 heute\r\n\nder \x07Garten\n"
    (corpus / "test.de.gz").write_bytes(gzip.compress(raw.encode()))
    (corpus / "test.en.gz").write_bytes(gzip.compress(raw.encode()))
    (corpus / "raw").write_bytes(raw.encode())
    mt.main(arguments(corpus, "--allow-unknown", *options))
    capsys.readouterr()
    encode.main([str(corpus / "raw"), "--data", str(corpus.parent / "out")])
    assert capsys.readouterr().out == pieces["test.de"]


def test_later_text_of_another_language_or_length_is_warned_of(corpus: Path, pieces: dict[str, str], capsys) -> None:
    mt.main(arguments(corpus, "--bpe", "none"))
    (corpus / "new").write_text("mann läuft\nxyz\n" + "ein " * 1024 + "\n")
    capsys.readouterr()
    encode.main([str(corpus / "new"), "--data", str(corpus.parent / "out")])
    printed = capsys.readouterr()
    assert printed.out.count("\n") == 3 and f"{corpus / 'new'}:3: more than 1023 symbols" in printed.err
    (corpus / "new").write_text("xyz abc\nmann\n")
    encode.main([str(corpus / "new"), "--data", str(corpus.parent / "out")])
    assert "warning: 66.67% of the symbols are <unk>: is this the source language?" in capsys.readouterr().err


def test_a_folder_that_was_not_prepared_is_named(corpus: Path, pieces: dict[str, str]) -> None:
    mt.main(arguments(corpus, "--vocab-size", "50"))
    out = corpus.parent / "out"
    (out / "sentencepiece.bpe.model").write_bytes(b"damaged")
    (corpus / "new").write_text("ein mann\n")
    with pytest.raises(DataError, match=f"^{out}: its subword model cannot be read"):
        encode.main([str(corpus / "new"), "--data", str(out)])
    for text_of_json in ("{", "{}", '{"settings": {"bpe": "none"}}'):
        (out / "prepare.json").write_text(text_of_json)
        with pytest.raises(DataError, match=f"^{out}/prepare.json: "):
            encode.main([str(corpus / "new"), "--data", str(out)])


# --- Tatoeba ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", damaged_texts(b"one\ntwo\n"))
def test_a_damaged_list_of_pairs_is_named(tmp_path: Path, kind: str) -> None:
    good = "".join(f"one{i}\teins{i}\n" for i in range(9)).encode()
    (tmp_path / kind).write_bytes(damaged_texts(good)[kind])
    options = ["--source", "en", "--target", "de", "--held-out", "2", "--out", str(tmp_path / "out")]
    with pytest.raises(DataError) as refusal:
        tatoeba.main([str(tmp_path / kind), *options])
    assert str(refusal.value).startswith(f"{tmp_path / kind}:") and not (tmp_path / "out").exists()
    (tmp_path / "good").write_bytes(good + b"one column\n")
    with pytest.raises(DataError, match=f"^{tmp_path}/good:10: 1 columns"):
        tatoeba.main([str(tmp_path / "good"), *options])


def test_tatoeba_reads_a_pipe_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = "".join(f"eins {number}\tone {number}\n" for number in range(9))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(lines.encode()))))
    tatoeba.main(["-", "--source", "de", "--target", "en", "--held-out", "2", "--out", str(tmp_path / "out")])
    files = [tmp_path / "out" / f"{split}.de" for split in ("train", "valid", "test")]
    assert [len(file.read_text().splitlines()) for file in files] == [5, 2, 2]


def test_tatoeba_split_shares_no_sentence() -> None:
    pairs = [(f"s{i % 40}", f"t{i}") for i in range(60)] + [("s0", "t0")]
    parts = tatoeba.split_pairs(pairs, held_out=5, seed=1)
    assert [len(parts[name]) for name in ("train", "valid", "test")] == [50, 5, 5]
    for side in (0, 1):
        train, valid, test = ({pair[side] for pair in parts[name]} for name in ("train", "valid", "test"))
        assert not (train & valid or train & test or valid & test)
    with pytest.raises(OptionError, match="--held-out 11: only 20 of 60 pairs"):
        tatoeba.split_pairs(pairs, held_out=11, seed=1)
