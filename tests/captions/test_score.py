"""``fairseq-ext captions score``: what it reads, prints and writes, and what it refuses."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sacrebleu.metrics import BLEU

from fairseq_ext.captions import java
from fairseq_ext.captions.evaluation import METRICS, TOKENIZERS, Evaluation
from fairseq_ext.captions.score import ScoreOptions, score
from fairseq_ext.captions.scores import bleu, cider_d, rouge_l
from fairseq_ext.captions.store import Preparation, Split
from fairseq_ext.captions.tokenizer import tokenize
from fairseq_ext.training.errors import DataError, InputError, OptionError
from fairseq_ext.training.files import read_lines
from tests.captions.splits import REFERENCES, write_generated, write_split
from tests.helpers import require_data

CAPTIONS = ["a dog is running", "two cats", "a red <unk> .", "a boat near a tree"]


@pytest.fixture
def data(tmp_path):
    return write_split(tmp_path / "data")


@pytest.fixture
def generated(tmp_path):
    return write_generated(tmp_path / "gen.txt", CAPTIONS)


def scored(data, generated, **options):
    return score(ScoreOptions(data=str(data), generated=str(generated), samples=100, **options))


def test_the_scores_are_of_all_references(data, generated, tmp_path):
    out, results = tmp_path / "scores" / "scores.json", tmp_path / "results.json"
    report = scored(data, generated, out=str(out), results=str(results))
    record = json.loads(out.read_text())
    hypotheses = list(map(tokenize, CAPTIONS))
    references = [list(map(tokenize, captions)) for captions in REFERENCES.values()]
    expected = [*bleu(hypotheses, references), rouge_l(hypotheses, references).mean()]
    expected.append(cider_d(hypotheses, references).mean())
    assert list(record["metrics"].values()) == pytest.approx(expected)
    for name, value in zip(METRICS.values(), expected, strict=True):
        assert f"{name:8}{100 * value:7.2f}  [" in report
    assert record["counts"] == {
        "images": 4,
        "references": 2.5,
        "distinct": 4,
        "words": 3.5,
        "empty": 0,
        "with_unknown": 0.25,
    }
    assert [entry["cider_d"] for entry in record["images"]] == cider_d(hypotheses, references).tolist()
    assert json.loads(results.read_text()) == [
        {"image_id": int(image_id), "caption": caption} for image_id, caption in zip(REFERENCES, CAPTIONS, strict=True)
    ]
    assert scored(data, results) == report
    lines = [json.dumps({"image_id": key, "caption": text}) for key, text in zip(REFERENCES, CAPTIONS, strict=True)]
    (tmp_path / "lines.jsonl").write_text("\n".join(reversed(lines)))
    assert scored(data, tmp_path / "lines.jsonl") == report
    for name, (low, high) in record["intervals"].items():
        assert low <= record["metrics"][name] <= high


def test_an_interval_is_of_sets_of_images_drawn_with_replacement(data):
    """BLEU of drawn sets is sacreBLEU's of the same sets; CIDEr-D keeps the frequencies of the whole set."""
    evaluation = Evaluation(CAPTIONS, Split(data, "test", Preparation.load(data)))
    drawn = [0, 2, 2, 3]
    metrics = evaluation.metrics(np.bincount(drawn, minlength=4))
    streams = [
        [(evaluation.references[image] + [None] * 4)[place] for image in drawn]
        for place in range(max(map(len, evaluation.references)))
    ]
    reference = BLEU(max_ngram_order=2, tokenize="none", smooth_method="none", force=True)
    score = reference.corpus_score([evaluation.hypotheses[image] for image in drawn], streams)
    assert metrics["bleu2"] == pytest.approx(score.score / 100)
    assert metrics["cider_d"] == pytest.approx(evaluation.cider_d[drawn].mean())


def test_a_drawn_set_has_as_many_images_as_the_whole(data, monkeypatch):
    counts = []
    monkeypatch.setattr(Evaluation, "metrics", lambda self, drawn: counts.append(drawn) or dict.fromkeys(METRICS, 0))
    Evaluation(CAPTIONS, Split(data, "test", Preparation.load(data))).samples(5, seed=1)
    assert [drawn.sum() for drawn in counts] == [4] * 5


def test_captions_split_by_other_tokenisers_are_not_compared(data, monkeypatch):
    monkeypatch.setitem(TOKENIZERS, "other", TOKENIZERS["words"])
    split = Split(data, "test", Preparation.load(data))
    with pytest.raises(OptionError, match="same images, references and tokeniser"):
        Evaluation(CAPTIONS, split).differences(Evaluation(CAPTIONS, split, "other"))


def test_d_lines_alone_need_a_split_where_two_are_as_large(data, generated, tmp_path):
    report = scored(data, generated)
    bare = tmp_path / "bare.txt"
    bare.write_text("".join(line for line in generated.open() if line.startswith("D-")))
    assert scored(data, bare) == report, "no other split has as many images"
    write_split(data, name="valid")
    assert scored(data, generated) == report
    with pytest.raises(DataError, match=r"bare.txt: its D- lines do not say .* valid and test have 4 images each"):
        scored(data, bare)
    assert scored(data, bare, split="test") == report
    assert "of 4 images of valid" in scored(data, bare, split="valid")


def test_the_sets_of_images_are_drawn_once(data, monkeypatch):
    """However many systems are compared with one."""
    split = Split(data, "test", Preparation.load(data))
    base, drawn = Evaluation(CAPTIONS, split), []
    monkeypatch.setattr(
        Evaluation, "metrics", lambda self, counts=None: drawn.append(self) or dict.fromkeys(METRICS, 0)
    )
    for other in (Evaluation(CAPTIONS[::-1], split), Evaluation(CAPTIONS, split)):
        other.intervals(5)
        other.differences(base, 5)
    assert drawn.count(base) == 5 + 2
    base.samples(5, seed=2)
    assert drawn.count(base) == 5 + 2 + 5


def test_two_systems_are_compared_image_by_image(data, generated, tmp_path):
    first = tmp_path / "first.json"
    scored(data, generated, out=str(first))
    same = scored(data, generated, compare=str(first))
    assert "4 of 4 captions are equal" in same
    assert "CIDEr-D   +0.00  [+0.00, +0.00]  higher in 0 %" in same
    better = write_generated(tmp_path / "better.txt", [captions[0] for captions in REFERENCES.values()])
    report = scored(data, better, compare=str(first), out=str(tmp_path / "second.json"))
    assert "CIDEr-D +" in report.partition("minus")[2]
    row = json.loads((tmp_path / "second.json").read_text())["compared"]["cider_d"]
    assert 0 < row["interval"][0] < row["difference"] < row["interval"][1]


def test_pieces_are_joined(tmp_path):
    data = write_split(tmp_path / "data", tokenizer="sentencepiece")
    pieces = [" ".join(f"\u2581{word}" for word in caption.split()).replace("run", "ru n") for caption in CAPTIONS]
    assert scored(data, write_generated(tmp_path / "pieces.txt", pieces)) == (
        scored(data, write_generated(tmp_path / "words.txt", CAPTIONS))
    )


def test_a_single_image_is_said_to_have_no_cider_d(tmp_path):
    data = write_split(tmp_path / "data", {"1": ["A dog.", "A cat."]})
    generated = write_generated(tmp_path / "gen.txt", ["a dog"])
    assert "CIDEr-D is 0 for any captions" in scored(data, generated)


def lines(**changes):
    """The output of fairseq-generate with the lines of some images replaced."""
    texts = [f"D-{image}\t-0.5\t{caption}" for image, caption in enumerate(CAPTIONS)]
    for image, text in changes.items():
        texts[int(image[1:])] = text
    return "\n".join(texts)


def entries(*changes):
    return json.dumps([{"image_id": int(key), "caption": "a"} for key in REFERENCES][: -len(changes)] + list(changes))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("gen.txt", lines(_2=""), "no caption of 1 of the 4 images of test, such as 33"),
        ("gen.txt", lines(_2="D-1\t-1\ta cat"), "gen.txt:3: a second caption of image 22: generate once, --nbest 1"),
        ("gen.txt", lines(_2="D-4\t-1\ta cat"), "gen.txt:3: image number 4, but test has 4 images"),
        ("gen.txt", lines(_2="D-2\t-1"), "gen.txt:3: not D-NUMBER, score and caption"),
        ("gen.txt", lines(_2="D-2\t-1\t\u2581a \u2581cat"), "is in pieces, but"),
        (
            "gen.txt",
            f"{lines()}\nGenerate valid with beam=5: BLEU4 = 1",
            "gen.txt:5: the captions of valid, not of",
        ),
        ("gen.txt", "S-0\ta\nH-0\t-1\ta", "neither a D- line of fairseq-generate"),
        ("gen.txt", "", "gen.txt: no caption"),
        ("r.json", entries({"image_id": "44", "caption": "a"}), "entry 4: image_id '44': all must be whole numbers"),
        ("r.json", entries({"image_id": True, "caption": "a"}), "entry 4: image_id True: all must be whole numbers"),
        ("r.json", entries({"image_id": 5, "caption": "a"}), "image_id 5 is not in test, which has 11"),
        ("r.json", entries({"image_id": 11, "caption": "a"}), "entry 4: a second caption of image 11"),
        ("r.json", entries({"image_id": 44}), "entry 4: not"),
        ("r.json", entries({"image_id": 44, "caption": None}), "entry 4: not"),
        ("r.json", '{"image_id": 11}', "entry 1: not"),
        ("r.json", "[]", "r.json: no caption"),
        ("r.jsonl", '{"image_id": 11, "caption": "a"}\n{"image', "r.jsonl:2: not a JSON value"),
        ("r.jsonl", '{"image_id": 11, "caption": "a"}\n' * 2, "r.jsonl:2: a second caption of image 11"),
        ("r.jsonl", "11", "r.jsonl:1: not"),
        ("r.json", "[", "not a JSON file"),
        ("r.jsonl", "[" * 100_000, "r.jsonl:1: not a JSON value"),
        ("none.txt", None, "cannot be read"),
    ],
)
def test_what_is_not_one_caption_for_each_image_is_refused(data, tmp_path, name, text, message):
    if text is not None:
        (tmp_path / name).write_text(text)
    out = tmp_path / "scores.json"
    with pytest.raises(InputError, match=message):
        scored(data, tmp_path / name, out=str(out))
    assert not out.exists()


def test_an_image_without_references_is_refused(tmp_path, generated):
    data = write_split(tmp_path / "none", {**REFERENCES, "44": ["!", ""]})
    with pytest.raises(InputError, match="1 images of test without a reference, such as 44"):
        scored(data, generated)


@pytest.mark.parametrize("change", ["references", "tokenizer", "images", "damaged", "other"])
def test_scores_of_other_captions_or_references_are_not_compared(data, generated, tmp_path, change):
    first = tmp_path / "first.json"
    scored(data, generated, out=str(first))
    record = json.loads(first.read_text())
    message = "other images or references"
    if change == "references":
        data = write_split(tmp_path / "other", {**REFERENCES, "44": ["A boat."]})
    elif change == "images":
        data = write_split(tmp_path / "other", {f"{key}0": captions for key, captions in REFERENCES.items()})
    elif change == "tokenizer":
        record["tokenizer"], message = "ptb-java", "--tokenizer ptb-java, here words"
    elif change == "damaged":
        record["images"], message = record["images"][1:], "no caption of image 11"
    else:
        record, message = [], "not a file that"
    first.write_text(json.dumps(record))
    with pytest.raises(InputError, match=message):
        scored(data, generated, compare=str(first))


def test_a_file_that_is_read_is_never_written(data, generated, tmp_path):
    before = generated.read_bytes()
    for options in ({"out": str(generated)}, {"results": str(generated)}, {"out": "x.json", "results": "x.json"}):
        with pytest.raises(InputError, match="is the file of"):
            scored(data, generated, **options)
    with pytest.raises(InputError, match="is a folder"):
        scored(data, generated, out=str(tmp_path))
    assert generated.read_bytes() == before


def test_java_is_asked_for_by_name(data, generated, monkeypatch):
    with pytest.raises(InputError, match="--metrics: 'meteo' is not one of meteor, spice; did you mean 'meteor'"):
        scored(data, generated, metrics=("meteo",))
    monkeypatch.setattr(java, "PACKAGE", "no_such_package")
    monkeypatch.setattr(java.shutil, "which", lambda name: "/bin/java")
    with pytest.raises(InputError, match="--tokenizer ptb-java: no_such_package is not installed: pip install"):
        scored(data, generated, tokenizer="ptb-java")
    monkeypatch.setattr(java.shutil, "which", lambda name: None)
    for options in ({"tokenizer": "ptb-java"}, {"metrics": ("meteor",)}, {"metrics": ("spice",)}):
        with pytest.raises(InputError, match=r"there is no `java` on the PATH"):
            scored(data, generated, **options)


def test_java_has_the_tokens_of_the_stand_in():
    pytest.importorskip("pycocoevalcap.tokenizer.ptbtokenizer")
    if not java.shutil.which("java"):
        pytest.skip("no Java")
    captions = ["A man's hand (left).\u2028Behind", "", "Ein Café, größer!", "a <unk> b"]
    assert java.tokenize(captions) == list(map(tokenize, captions))
    folder = require_data("coco_val2017_regions")
    lines = [line for split in ("train", "valid", "test") for line, _ in read_lines(folder / f"{split}.jsonl.gz")]
    captions = [caption for line in lines for caption in json.loads(line)["captions"]]
    equal = sum(map(str.__eq__, java.tokenize(captions), map(tokenize, captions)))
    assert (equal, len(captions)) == (24769, 24774), "what the docstring of the tokeniser says"
