"""Scores computed by hand, and everything that makes a score incomparable: refused, or warned of and recorded."""

from __future__ import annotations

import importlib.util
import json
import math
import unicodedata
from pathlib import Path

import pytest
import sacrebleu

from examples.translation import score
from fairseq_ext.training.errors import DataError, InputError, OptionError
from tests.helpers import damaged_texts

REFERENCES = ["A well-known man walks in the green garden.", "The dog sits here today.", "One two three four five"]
HYPOTHESES = ["A well-known man walks in a green garden.", "The dog sits here.", "One two three four six"]


def generated(hypotheses: list[str], skip: tuple[int, ...] = (), targets: list[str] | None = None) -> str:
    """What ``fairseq-generate --nbest 2`` prints."""
    order = [i for i in reversed(range(len(hypotheses))) if i not in skip]
    lines = [
        f"S-{i}\tquelle\nT-{i}\t{(targets or REFERENCES * 9)[i]}\nH-{i}\t-0.5\t{hypotheses[i]}\n"
        f"D-{i}\t-0.5\t{hypotheses[i]}\nP-{i}\t-0.1 -0.2\n"
        f"H-{i}\t-0.9\tsecond best\nD-{i}\t-0.9\tsecond best\nP-{i}\t-0.1 -0.2\n"
        for i in order
    ]
    return "".join(lines) + "Generate test with beam=5: BLEU4 = 1.00\n"


class Bench:
    """Scores texts in a folder."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture) -> None:
        self.folder, self.capsys = folder, capsys

    def run(self, output: str | bytes, *options: str, references: list[str] | bytes = REFERENCES) -> dict:
        """What ``--json`` holds, with what was ``printed``."""
        for name, text in (("output", output), ("reference", references)):
            text = "".join(f"{line}\n" for line in text) if isinstance(text, list) else text
            (self.folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        paths = [str(self.folder / name) for name in ("output", "reference", "score.json")]
        score.main([paths[0], "--reference", paths[1], "--json", paths[2], "--quiet", *options])
        printed = self.capsys.readouterr()
        result = json.loads((self.folder / "score.json").read_text())
        assert [f"warning: {text}" for text in result["warnings"]] == printed.err.splitlines()
        return {**result, "printed": printed.out}

    def refuses(self, output: str | bytes, *options: str, references: list[str] | bytes = REFERENCES) -> str:
        with pytest.raises(InputError) as refusal:
            self.run(output, *options, references=references)
        assert "\n" not in str(refusal.value) and not (self.folder / "score.json").exists()
        return str(refusal.value)


@pytest.fixture
def bench(tmp_path: Path, capsys: pytest.CaptureFixture) -> Bench:
    return Bench(tmp_path, capsys)


# --- values computed by hand ------------------------------------------------------------------------------------------


def bleu(matches: list[float], totals: list[int], hypothesis: int, reference: int) -> float:
    """100 BP exp(mean of the logarithms of the precisions)."""
    precisions = sum(math.log(match / total) for match, total in zip(matches, totals, strict=True)) / len(totals)
    return 100 * min(1.0, math.exp(1 - reference / hypothesis)) * math.exp(precisions)


def test_sacrebleu_by_hand(bench):
    """ "The cat sat on the mat ." against "The cat sat on a mat .": 6 of 7 words, 4 of 6 pairs, 2 of 5, 1 of 4."""
    result = bench.run("The cat sat on the mat.\n", references=["The cat sat on a mat."])
    assert result["sacrebleu"] == pytest.approx(bleu([6, 4, 2, 1], [7, 6, 5, 4], 7, 7))
    assert "|case:mixed|eff:no|tok:13a|smooth:exp|" in result["signature"]
    assert result["signature"] in result["printed"] and result["sentences"] == 1


def test_chrf_by_hand(bench):
    """ "ab" against "abc": precisions 2/2 and 1/1, recalls 2/3 and 1/2; recall counts twice."""
    result = bench.run("ab\n", references=["abc"])
    precision, recall = 1.0, (2 / 3 + 1 / 2) / 2
    assert result["chrf"] == pytest.approx(100 * 5 * precision * recall / (4 * precision + recall))
    assert "|nc:6|nw:0|" in result["chrf_signature"] and result["chrf_signature"] in result["printed"]


def test_capitals_count(bench):
    """ "the" is not "The": 5 of 6 words, then 4 of 5, 3 of 4 and 2 of 3 (every n-gram but the first)."""
    result = bench.run("the cat sat on a mat\n", references=["The cat sat on a mat"])
    assert result["sacrebleu"] == pytest.approx(bleu([5, 4, 3, 2], [6, 5, 4, 3], 6, 6))


def test_an_order_without_a_match_is_smoothed_in_sacrebleu_only(bench):
    """No 4-gram of 2 matches: sacreBLEU's exponential smoothing counts half of one; multi-bleu gives 0."""
    hypothesis, reference = "a b c d x", "a b c y x"
    result = bench.run(f"{hypothesis}\n", references=[reference])
    assert result["sacrebleu"] == pytest.approx(bleu([4, 2, 1, 0.5], [5, 4, 3, 2], 5, 5))
    assert score.tokenized_bleu([hypothesis], [reference]).score == 0


def test_a_short_translation_pays_the_brevity_penalty(bench):
    result = bench.run("one two three four\n", references=["one two three four five"])
    assert result["sacrebleu"] == pytest.approx(100 * math.exp(1 - 5 / 4))


def test_tokenised_bleu_splits_nothing(bench):
    """Tokens are what stands between spaces: "garden." is one, which no 13a tokeniser would leave."""
    bleu = score.tokenized_bleu(["in the green garden."], ["in the green garden ."])
    assert (bleu.sys_len, bleu.ref_len, bleu.counts) == (4, 5, [3, 2, 1, 0])
    expected = sacrebleu.corpus_bleu(HYPOTHESES, [REFERENCES], tokenize="none", force=True).score
    assert score.tokenized_bleu(HYPOTHESES, REFERENCES).score == pytest.approx(expected, abs=1e-9)


def test_compounds_are_split_on_both_sides():
    """ "a well ##AT##-##AT## known man" (5 tokens) against "a well ##AT##-##AT## read man": 4, 2, 1 and 0 matches."""
    bleu = score.tokenized_bleu(["a well-known man"], ["a well-read man"], compounds=True)
    assert (bleu.sys_len, bleu.ref_len) == (5, 5)
    assert (bleu.counts, bleu.totals) == ([4, 2, 1, 0], [5, 4, 3, 2])
    assert score.split_compounds("a - b -c d- e") == "a - b -c d- e"
    assert score.split_compounds("ab-cd-ef") == "ab ##AT##-##AT## cd ##AT##-##AT## ef"


def test_compounds_from_the_command_line(bench, monkeypatch):
    monkeypatch.setattr(score, "detokenize", lambda lines, language: list(lines))
    options = ("--tokenized", "en", "--split-compounds")
    result = bench.run("a well-known man walks by here\n", *options, references=["a well-read man walks by here"])
    assert result["tokenized_bleu"] == pytest.approx(bleu([7, 5, 3, 1], [8, 7, 6, 5], 8, 8))
    assert "tokenised BLEU, compounds split: BLEU" in result["printed"]


def test_detokenised_text_is_what_sacrebleu_sees(bench):
    pytest.importorskip("sacremoses")
    result = bench.run("I don &apos;t know .\n", "--tokenized", "en", references=["I don &apos;t know it ."])
    assert result["tokenized_bleu"] == pytest.approx(
        score.tokenized_bleu(["I don &apos;t know ."], ["I don &apos;t know it ."]).score
    )
    assert result["sacrebleu"] == pytest.approx(sacrebleu.corpus_bleu(["I don't know."], [["I don't know it."]]).score)


# --- outputs of fairseq and plain ones --------------------------------------------------------------------------------


def test_every_form_of_output_gives_the_same_score(bench):
    expected = sacrebleu.corpus_bleu(HYPOTHESES, [REFERENCES]).score
    log = generated(HYPOTHESES)
    best = "".join(f"D-{i}\t-0.5\t{text}\n" for i, text in enumerate(HYPOTHESES))
    for output in (log, f"2026 | INFO | Namespace(a=1)\n{log}", best, "\n".join(HYPOTHESES), "\r\n".join(HYPOTHESES)):
        result = bench.run(output)
        assert result["sacrebleu"] == pytest.approx(expected) and result["warnings"] == []


@pytest.mark.parametrize("kind", damaged_texts(b"one\ntwo\n"))
@pytest.mark.parametrize("side", ["output", "references"])
def test_damaged_files_are_named(bench, kind, side):
    good = "".join(f"{line}\n" for line in REFERENCES).encode()
    path = bench.folder / kind
    path.write_bytes(damaged_texts(good)[kind])
    (bench.folder / "good").write_bytes(good)
    output, reference = (path, bench.folder / "good") if side == "output" else (bench.folder / "good", path)
    with pytest.raises(DataError) as refusal:
        score.main([str(output), "--reference", str(reference)])
    assert str(refusal.value).startswith(f"{path}:") and "\n" not in str(refusal.value)


def test_a_log_that_was_cut_anywhere_is_refused_or_whole(bench):
    """Cut at each byte: either nothing is scored, or all that counts was there."""
    log = generated(HYPOTHESES).encode()
    whole = bench.run(log)["sacrebleu"]
    (bench.folder / "score.json").unlink()
    for end in range(len(log)):
        try:
            assert bench.run(log[:end])["sacrebleu"] == whole
            (bench.folder / "score.json").unlink()
        except DataError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (generated(HYPOTHESES, skip=(1,)), "has 2 of the 3 sentences"),
        (generated(HYPOTHESES, skip=(1,)), "the first missing is 1"),
        (generated([*HYPOTHESES, "more"]), "has 4 sentences but"),
        (generated(HYPOTHESES) + generated(HYPOTHESES), "is there twice: are two outputs in this file?"),
        ("D-0\t-0.5\n", "sentence 0 is cut off"),
        ("S-0\tonly\nT-0\tsources\n", "no line starts with D-"),
        ("one\ntwo\n", "has 2 sentences but"),
        ("one\ntwo\nthree\n\n", "has 4 sentences but"),
        ("", "has 0 sentences but"),
        (
            "▁Two ▁men\n" * 3,
            "subwords were not joined in 3 of 3 lines (the first is 1): give fairseq-generate --remove-bpe",
        ),
        ("zwei män@@ ner\n" * 3, "--remove-bpe subword_nmt"),
        ("zwei män@@\n" * 3, "--remove-bpe subword_nmt"),
        ("two play ##ing men\n" * 3, "--remove-bpe wordpiece"),
        (generated(["▁Two ▁men"] * 3), "--remove-bpe sentencepiece"),
    ],
)
def test_what_cannot_be_scored_is_refused(bench, output, words):
    assert words in bench.refuses(output)


def test_references_are_checked_as_well(bench):
    assert "reference: subwords were not joined" in bench.refuses("a\nb\n", references=["▁a", "▁b"])
    assert "reference is empty" in bench.refuses("a\n", references=[])


def test_one_side_tokenised_is_refused(bench):
    plain, tokens = ["This is it.", "He said so."], ["This is it .", "He said so ."]
    assert "the hypotheses are tokenised and the references are not" in bench.refuses(
        "\n".join(tokens), references=plain
    )
    assert "the references are tokenised and the hypotheses are not" in bench.refuses(
        "\n".join(plain), references=tokens
    )
    monkey = pytest.MonkeyPatch()
    monkey.setattr(score, "detokenize", lambda lines, language: list(lines))
    assert "tokenised" in bench.refuses("\n".join(plain), "--tokenized", "en", references=tokens)
    monkey.undo()


@pytest.mark.parametrize(
    ("hypotheses", "references", "options", "words"),
    [
        (["This is it .", "He saw ."], ["That is it .", "He sees ."], (), "look tokenised"),
        (["This is it.", "He saw."], ["That is it.", "He sees."], ("--tokenized", "en"), "is no word of its own"),
        (["this is it", "he saw"], ["This is it", "He saw"], (), "the hypotheses are lower-cased"),
        (["", "he saw"], ["so", "he sees"], (), "1 of the hypotheses are empty"),
        (["so", "he saw"], ["", "he sees"], (), "1 of the references are empty"),
        (["a <unk> b", "he saw"], ["a c b", "he sees"], (), "1 of the hypotheses hold <unk>"),
        (["a d b", "he saw"], ["a \ufffd b", "he sees"], (), "1 of the references hold the sign of damaged text"),
        (["cafe\u0301", "he saw"], ["café", "he sees"], (), "1 of the hypotheses are not in Unicode's NFC"),
        (["a  b", "he saw"], ["a b", "he sees"], (), "1 of the hypotheses hold control characters, or spaces"),
        (["a\u200b b", "a\x0c b"], ["a b", "he sees"], (), "1 of the hypotheses hold control characters"),
        (["he saw", "a"], ["he saw", "a"], (), "are the same text"),
        (["one two three four five six seven", "a"], ["b", "a"], (), "times the words of the references"),
    ],
)  # fmt: skip
def test_what_makes_a_score_less_comparable_is_a_warning(bench, monkeypatch, hypotheses, references, options, words):
    monkeypatch.setattr(score, "detokenize", lambda lines, language: list(lines))
    result = bench.run("\n".join(hypotheses), *options, references=references)
    assert any(words in warning for warning in result["warnings"]), result["warnings"]


def test_a_clean_pair_has_no_warning(bench):
    assert bench.run("\n".join(HYPOTHESES))["warnings"] == []


def test_references_of_another_set_are_noticed(bench):
    assert bench.run(generated(HYPOTHESES, targets=["One", "The <<unk>> sits", "x"]))["warnings"]
    assert not bench.run(generated(HYPOTHESES, targets=["x", "The dog sits here today .", "x"]))["warnings"]


# --- languages --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "target", "tokenizer"),
    [("今天天气很好", "zh", "zh"), ("อากาศดี", "th", "char"), ("今天天气", "zh_CN", "zh"), ("今天天气", "yue", "zh")],
)
def test_a_language_without_spaces_gets_its_tokeniser(bench, text, target, tokenizer):
    assert "--target" in bench.refuses(f"{text}\n", references=[f"{text}。"])
    result = bench.run(f"{text}\n", "--target", target, references=[f"{text}。"])
    assert f"|tok:{tokenizer}|" in result["signature"]


@pytest.mark.parametrize(("target", "extra"), [("ja", "japanese"), ("ko", "korean")])
def test_a_tokeniser_that_is_not_installed_is_named_with_its_extra(bench, target, extra):
    text = "今日は良い天気です" if target == "ja" else "오늘은 날씨가 좋습니다"
    if importlib.util.find_spec("MeCab" if target == "ja" else "mecab_ko"):
        assert f"|tok:{target}-mecab" in bench.run(f"{text}\n", "--target", target, references=[text])["signature"]
    else:
        message = bench.refuses(f"{text}\n", "--target", target, references=[text])
        assert f"--target {target} needs a tokeniser: pip install 'fairseq-ext[{extra}]'" == message


# --- options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--split-compounds"], "--split-compounds: has no effect without --tokenized"),
        (["--target", "de", "--tokenized", "de"], "--target de: has no effect with --tokenized de"),
        (["--json", "/dev/null/score.json"], "--json: cannot write to /dev/null"),
    ],
)
def test_options_that_make_no_sense_are_refused(tmp_path, options, words):
    (tmp_path / "text").write_text("one\n")
    with pytest.raises(OptionError, match=words):
        score.main([str(tmp_path / "text"), "--reference", str(tmp_path / "text"), *options])


def test_a_missing_file_is_named(tmp_path):
    (tmp_path / "text").write_text("one\n")
    for output, reference in (("text", "absent"), ("absent", "text")):
        with pytest.raises(DataError, match=f"^{tmp_path}/absent: cannot be read: No such file"):
            score.main([str(tmp_path / output), "--reference", str(tmp_path / reference)])


def test_nfc_is_what_the_texts_above_are_in():
    assert all(unicodedata.is_normalized("NFC", line) for line in [*REFERENCES, *HYPOTHESES])
