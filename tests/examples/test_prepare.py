"""The translation and language modelling examples: preparation, bad input, scoring, and the recipe scripts."""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import sacrebleu

from examples.language_modeling import bpc
from examples.language_modeling import prepare as lm
from examples.translation import prepare as mt
from examples.translation import score
from examples.translation.tatoeba.split import split_pairs
from tests.helpers import ROOT, require_data

EXAMPLES = ROOT / "examples"
TRANSLATION = EXAMPLES / "translation"
RECIPES = sorted(TRANSLATION.glob("*/recipe.sh"))

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


def refused(corpus: Path, capsys: pytest.CaptureFixture, *more: str) -> str:
    """Runs the preparation, which must refuse in one line, with code 2, and leave nothing behind."""
    before = sorted(corpus.parent.iterdir())
    assert mt.main(arguments(corpus, *more)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1, error
    assert sorted(corpus.parent.iterdir()) == before
    return error


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
    assert "train: 63 pairs read, 61 kept" in done.stdout
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
def test_other_subwords(
    corpus: Path, monkeypatch: pytest.MonkeyPatch, bpe: str, size: str | None, tmp_path: Path
) -> None:
    if bpe == "subword-nmt":
        pytest.importorskip("subword_nmt")
    else:
        split = "sch@@ nell\nlä@@ u@@ ft schnell@@\n"
        for name in ("train.de", "train.en", "valid.de", "valid.en", "test.de", "test.en"):
            (corpus / name).write_text(split)
    seen: dict[str, str] = {}

    def preprocess(options: list[str], stage: Path) -> None:
        assert "--joined-dictionary" in options
        seen.update({file.name: file.read_text() for file in (stage / "pieces").iterdir()})

    monkeypatch.setattr(mt, "fairseq_preprocess", preprocess)
    more = ["--bpe", bpe, "--joined-dictionary", *(["--vocab-size", size] if size else [])]
    assert mt.main(arguments(corpus, *more)) == 0
    assert len(seen) == 6 and "@@ " in seen["train.de"]
    whole = (tmp_path / "out" / "text" / "test.de").read_text()
    assert "@@" not in whole
    assert "".join(mt.join_subwords(line) + "\n" for line in seen["test.de"].splitlines()) == whole
    if bpe == "none":
        assert seen["train.en"] == split and whole == "schnell\nläuft schnell\n"


def test_clean() -> None:
    assert mt.clean("\ufeff a\x00b\t c\u00a0d\u2028e\r\x0c f\x7f  \n") == "ab c d e f"
    assert mt.clean("été 中文 👩\u200d🔬") == "été 中文 👩\u200d🔬"


def test_filter() -> None:
    assert mt.keep("a b", "c", 1, 2, 2.0)
    assert not mt.keep("a b c", "c", 1, 3, 2.0)
    assert not mt.keep("a b c", "c d e", 1, 2, 9.0)
    assert not mt.keep("", "c", 1, 9, 9.0)
    assert not mt.keep("a", "b c", 2, 9, 9.0)


def test_line_counts_that_differ(corpus: Path, capsys: pytest.CaptureFixture) -> None:
    with (corpus / "valid.en").open("a") as file:
        file.write("one more\nand one\n")
    error = refused(corpus, capsys)
    assert f"{corpus / 'valid.de'} has 9" in error and f"{corpus / 'valid.en'} has 11" in error


def test_empty_file(corpus: Path, capsys: pytest.CaptureFixture) -> None:
    (corpus / "train.en").write_text("")
    assert f"{corpus / 'train.en'} is empty" in refused(corpus, capsys)


def test_missing_file(corpus: Path, capsys: pytest.CaptureFixture) -> None:
    (corpus / "test.en.gz").unlink()
    assert f"neither {corpus / 'test.en'} nor {corpus / 'test.en.gz'}" in refused(corpus, capsys)


def test_invalid_utf8(corpus: Path, capsys: pytest.CaptureFixture) -> None:
    lines = (corpus / "train.de").read_bytes().split(b"\n")
    lines[41] = "läuft".encode("latin-1")
    (corpus / "train.de").write_bytes(b"\n".join(lines))
    assert f"{corpus / 'train.de'}, line 42: not valid UTF-8 (byte 0xe4 at 2)" in refused(corpus, capsys)


def test_broken_gzip(corpus: Path, capsys: pytest.CaptureFixture) -> None:
    (corpus / "test.de.gz").write_bytes((corpus / "test.de.gz").read_bytes()[:-9])
    assert "test.de.gz: broken gzip file" in refused(corpus, capsys)


@pytest.mark.parametrize("bpe", ["sentencepiece", "subword-nmt"])
def test_vocabulary_too_large(corpus: Path, capsys: pytest.CaptureFixture, bpe: str) -> None:
    if bpe == "subword-nmt":
        pytest.importorskip("subword_nmt")
    error = refused(corpus, capsys, "--bpe", bpe, "--vocab-size", "70000")
    assert "--vocab-size 70000 is too large for this corpus: it allows at most " in error
    assert int(error.rsplit(" ", 1)[1]) < 70000


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--vocab-size", "5"], "--vocab-size 5 is too small"),
        (["--vocab-size", "0"], "--vocab-size must be positive"),
        (["--bpe", "none", "--vocab-size", "9"], "--vocab-size has no meaning with --bpe none"),
        (["--target", "de"], "--source and --target are both 'de'"),
        (["--min-length", "0"], "--min-length"),
        (["--max-ratio", "0.5"], "--max-ratio must be at least 1"),
        (["--max-ratio", "nan"], "--max-ratio must be at least 1"),
        (["--min-length", "200"], "no training pair passes --min-length 200"),
        (["--workers", "0"], "--workers must be positive"),
    ],
)
def test_bad_options(corpus: Path, capsys: pytest.CaptureFixture, options: list[str], words: str) -> None:
    assert words in refused(corpus, capsys, *options)


def test_output_folder(corpus: Path, capsys: pytest.CaptureFixture) -> None:
    assert "--out: cannot write to" in refused(corpus, capsys, "--out", str(corpus / "train.de" / "out"))
    assert "already exists" in refused(corpus, capsys, "--out", str(corpus))


def test_failing_preprocess_leaves_nothing(
    corpus: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(options: list[str], stage: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(mt, "fairseq_preprocess", fail)
    assert "No space left on device" in refused(corpus, capsys, "--vocab-size", "50")


def test_real_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = require_data("multi30k_de_en")
    monkeypatch.setattr(mt, "fairseq_preprocess", lambda options, stage: None)
    prefixes = ["--train", f"{data}/val", "--valid", f"{data}/val", "--test", f"{data}/test_2016_flickr"]
    out = tmp_path / "out"
    more = ["--source", "de", "--target", "en", "--out", str(out), "--vocab-size", "1000"]
    assert mt.main([*prefixes, *more]) == 0
    assert len((out / "text" / "test.de").read_text().splitlines()) == 1000


# --- scoring ---------------------------------------------------------------------------------------------------------

REFERENCES = ["a well-known man walks in the green garden .", "the dog sits here today .", "one two three four five"]
HYPOTHESES = ["a well-known man walks in a green garden .", "the dog sits here .", "one two three four six"]


def generated(path: Path, hypotheses: list[str], skip: tuple[int, ...] = ()) -> Path:
    order = [i for i in reversed(range(len(hypotheses))) if i not in skip]
    lines = [
        f"S-{i}\tquelle\nT-{i}\tref\nH-{i}\t-0.5\t{hypotheses[i]}\nD-{i}\t-0.5\t{hypotheses[i]}\n"
        f"H-{i}\t-0.9\tsecond best\nD-{i}\t-0.9\tsecond best\nP-{i}\t-0.1 -0.2\n"
        for i in order
    ]
    path.write_text("".join(lines) + "Generate test with beam=5: BLEU4 = 1.00\n")
    return path


def test_split_compounds() -> None:
    assert score.split_compounds("a well-known man") == "a well ##AT##-##AT## known man"
    assert score.split_compounds("a - b -c d- e") == "a - b -c d- e"
    assert score.split_compounds("ab-cd-ef") == "ab ##AT##-##AT## cd ##AT##-##AT## ef"


def test_tokenized_bleu_is_sacrebleu_without_tokeniser() -> None:
    expected = sacrebleu.corpus_bleu(HYPOTHESES, [REFERENCES], tokenize="none", force=True).score
    assert score.tokenized_bleu(HYPOTHESES, REFERENCES).score == pytest.approx(expected, abs=1e-9)
    split = score.tokenized_bleu(HYPOTHESES, REFERENCES, compounds=True)
    assert split.sys_len == score.tokenized_bleu(HYPOTHESES, REFERENCES).sys_len + 2
    assert split.score != pytest.approx(expected, abs=0.1)
    assert score.tokenized_bleu(["a b"], ["a c"]).score == 0, "multi-bleu does not smooth"


def test_score_command(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    output, reference = generated(tmp_path / "gen.txt", HYPOTHESES), tmp_path / "ref"
    reference.write_text("\n".join(REFERENCES) + "\n")
    json_file = tmp_path / "score.json"
    assert score.main([str(output), "--reference", str(reference), "--json", str(json_file)]) == 0
    printed = capsys.readouterr().out
    assert "scored 3 of 3 sentences" in printed and "|tok:13a|" in printed
    expected = sacrebleu.corpus_bleu(HYPOTHESES, [REFERENCES]).score
    assert json.loads(json_file.read_text())["sacrebleu"] == pytest.approx(expected)


def test_score_command_tokenized(tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch) -> None:
    if importlib.util.find_spec("sacremoses") is None:
        monkeypatch.setattr(score, "detokenize", lambda lines, language: [line.replace(" .", ".") for line in lines])
    output, reference = generated(tmp_path / "gen.txt", HYPOTHESES), tmp_path / "ref"
    reference.write_text("\n".join(REFERENCES) + "\n")
    assert score.main([str(output), "--reference", str(reference), "--tokenized", "en", "--split-compounds"]) == 0
    printed = capsys.readouterr().out
    assert "tokenised BLEU, compounds split: BLEU" in printed and "|tok:13a|" in printed


def test_score_refuses(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    reference = tmp_path / "ref"
    reference.write_text("\n".join(REFERENCES) + "\n")

    def error(output: Path, *more: str) -> str:
        assert score.main([str(output), "--reference", str(reference), *more]) == 2
        return capsys.readouterr().err

    assert "has 2 of the 3 sentences" in error(generated(tmp_path / "a", HYPOTHESES, skip=(1,)))
    assert "the first missing is 1" in error(generated(tmp_path / "a", HYPOTHESES, skip=(1,)))
    assert "has 4 sentences" in error(generated(tmp_path / "a", [*HYPOTHESES, "more"]))
    assert "is it the output of fairseq-generate" in error(reference)
    assert "--split-compounds needs --tokenized" in error(generated(tmp_path / "a", HYPOTHESES), "--split-compounds")
    assert "No such file" in error(tmp_path / "absent")


# --- Tatoeba ---------------------------------------------------------------------------------------------------------


def test_tatoeba_split_shares_no_sentence() -> None:
    pairs = [(f"s{i % 40}", f"t{i}") for i in range(60)] + [("s0", "t0")]
    parts = split_pairs(pairs, held_out=5, seed=1)
    assert [len(parts[name]) for name in ("train", "valid", "test")] == [50, 5, 5]
    for side in (0, 1):
        train, valid, test = ({pair[side] for pair in parts[name]} for name in ("train", "valid", "test"))
        assert not (train & valid or train & test or valid & test)
    with pytest.raises(Exception, match="--held-out 11: only 20 of 60 pairs"):
        split_pairs(pairs, held_out=11, seed=1)


# --- language modelling ----------------------------------------------------------------------------------------------


def test_bytes_round_trip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every byte is one prediction, and the symbols give the file back."""
    data = b"\n\nab\n" * 200 + bytes(range(256)) + b"\xff\x00end"  # most bytes are not in train
    (tmp_path / "in.gz").write_bytes(gzip.compress(data))
    seen: dict[str, str] = {}

    def preprocess(options: list[str], stage: Path) -> None:
        seen.update({file.name: file.read_text() for file in (stage / "symbols").iterdir()})

    monkeypatch.setattr(lm, "fairseq_preprocess", preprocess)
    command = ["--input", str(tmp_path / "in.gz"), "--out", str(tmp_path / "out"), "--split", "900", "180", "181"]
    assert lm.main(command) == 0
    parts = [data[:900], data[900:1080], data[1080:1261]]
    for split, part in zip(lm.SPLITS, parts, strict=True):
        lines = [bytes(map(int, line.split())) for line in seen[split].removesuffix("\n").split("\n")]
        assert b"\n".join(lines) == part.removesuffix(b"\n")
    symbols = [int(line.split()[0]) for line in seen["dict.txt"].splitlines()]
    assert sorted(symbols) == [byte for byte in range(256) if byte != ord("\n")]


def test_language_model_from_the_command_line(tmp_path: Path) -> None:
    text = "".join(line + "\n" for line in sentences(200, 0))
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
        (None, [], "missing file"),
        (b"abc\n" * 9, ["--split", "30", "5", "5"], "--split 30 5 5"),
        (b"abc\n" * 9, ["--vocab-size", "9"], "--vocab-size has no meaning"),
        (b"abc\n" * 99, ["--symbols", "sentencepiece", "--vocab-size", "9999"], "--vocab-size 9999 is too large"),
        (b"abcd ef g\n" * 99 + b"\xff\n", ["--symbols", "sentencepiece", "--vocab-size", "12"], "line 100: not valid"),
    ],
)
def test_language_model_refuses(tmp_path: Path, capsys, content: bytes | None, options: list[str], words: str) -> None:
    if content is not None:
        (tmp_path / "in").write_bytes(content)
    assert lm.main(["--input", str(tmp_path / "in"), "--out", str(tmp_path / "out"), *options]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} <= {"in"}


def test_bits_per_character() -> None:
    log = "INFO | Evaluated 1,000 tokens in 2.0s (500 tokens/s)\nINFO | Loss (base 2): 3.0000, Perplexity: 8.00\n"
    assert bpc.bits_per_character(log, tokens=1000, characters=1000) == 3.0
    assert bpc.bits_per_character(log, tokens=1000, characters=4000) == 0.75
    with pytest.raises(ValueError, match="1,000 of 1,001 symbols"):
        bpc.bits_per_character(log, tokens=1001, characters=4000)
    with pytest.raises(ValueError, match="fairseq-eval-lm"):
        bpc.bits_per_character("nothing", tokens=1, characters=1)


# --- recipes ---------------------------------------------------------------------------------------------------------


def methods(recipe: Path) -> list[str]:
    line = next(line for line in recipe.read_text().splitlines() if line.startswith("begin "))
    return [name for name in line.split('"')[1].split() if not name.startswith("prepare")]


CASES = [(recipe, method) for recipe in RECIPES for method in methods(recipe)]


@pytest.mark.parametrize("script", [TRANSLATION / "common.sh", *sorted(EXAMPLES.rglob("*.sh"))], ids=str)
def test_scripts_parse(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)


def shim(folder: Path) -> dict[str, str]:
    """Commands that write down how they were called instead of running."""
    (folder / "bin").mkdir()
    for name in ("fairseq-train", "fairseq-generate", "python"):
        file = folder / "bin" / name
        file.write_text(
            f'#!/bin/bash\n[[ $1 == -c ]] && echo 0 && exit\nprintf "%s\\n" {name} "$@" END >> {folder}/calls\n'
        )
        file.chmod(0o755)
    return {**os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}


def calls(folder: Path) -> list[list[str]]:
    return [call.splitlines() for call in (folder / "calls").read_text().split("END\n") if call]


@pytest.fixture(scope="module")
def plugin() -> None:
    from argparse import Namespace

    from fairseq.utils import import_user_module

    import_user_module(Namespace(user_dir=str(ROOT / "fairseq_ext")))


@pytest.mark.parametrize(("recipe", "method"), CASES, ids=lambda x: x if isinstance(x, str) else x.parent.name)
def test_recipe_gives_options_that_fairseq_takes(recipe: Path, method: str, tmp_path: Path, plugin: None) -> None:
    from fairseq import options

    env = shim(tmp_path)
    command = [str(recipe), method, str(tmp_path), str(tmp_path / "save"), "--max-epoch", "3"]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    train, *average, generate, scoring = calls(tmp_path)
    assert train[0] == "fairseq-train" and generate[0] == "fairseq-generate"
    assert all(call[3] == "average" for call in average)
    assert scoring[:3] == ["python", "-m", "examples.translation.score"]
    args = options.parse_args_and_arch(options.get_training_parser(), train[1:])
    assert args.max_epoch == 3 and args.max_tokens > 0
    assert ("encouraging" in args.criterion) == (method == "encouraging")
    assert args.label_smoothing == 0.1
    options.parse_args_and_arch(options.get_generation_parser(), generate[1:])
    score.parser().parse_args(scoring[3:])


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda x: x.parent.name)
def test_recipe_prepare_and_errors(recipe: Path, tmp_path: Path) -> None:
    env = shim(tmp_path)
    subprocess.run([str(recipe), "prepare", str(tmp_path), str(tmp_path / "out")], env=env, check=True)
    (call,) = calls(tmp_path)
    assert call[:3] == ["python", "-m", "examples.translation.prepare"]
    mt.parser().parse_args(call[3:])
    bad = (
        ([], "usage: "),
        (["must", str(tmp_path), "x"], "unknown method 'must'"),
        (["muse", "/absent", "x"], "no such folder"),
    )
    for arguments, words in bad:
        done = subprocess.run([str(recipe), *arguments], env=env, capture_output=True, text=True)
        assert done.returncode == 2 and words in done.stderr
