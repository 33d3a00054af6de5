"""Every form of the data, the split of single albums, text to ids; and files that are refused by file and line."""

from __future__ import annotations

import gzip
import json
import sys

import pytest
import torch

from fairseq_ext.errors import DataError, InputError, OptionError
from fairseq_ext.files import MAX_LINE
from graph.label_graph.classifier import tokenized
from graph.label_graph.data import Sample, label_matrix, label_names, read_file, read_splits
from graph.label_graph.text import Vocabulary, split_text, tokenizer, train_vectors
from tests.helpers import require_data

ALBUM = {
    "name": "The xx - Coexist",
    "tags": ["indie", "electronic"],
    "all_short_comments": [{"name": "a", "rate": "5", "vote": 3, "comment": "很好听"}, {"comment": " "}],
}
PARSED = (("很好听",), ("indie", "electronic"))


def contents(samples):
    return [(sample.reviews, sample.labels) for sample in samples]


def write(path, text):
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text, encoding="utf-8")
    return path


def test_json_albums(tmp_path):
    assert contents(read_file(write(tmp_path / "a.json", json.dumps(ALBUM)))) == [PARSED]
    listed = read_file(write(tmp_path / "b.json", json.dumps([ALBUM, ALBUM])))
    assert contents(listed) == [PARSED, PARSED]
    assert listed[1].origin == f"{tmp_path / 'b.json'}: album 2"


def test_literal_albums(tmp_path):
    album = {"tags": ["rock"], "all_reviews": [{"comment": "it's loud"}, "fast"]}
    assert contents(read_file(write(tmp_path / "a.txt", f"{album!r}\n\n"))) == [(("it's loud", "fast"), ("rock",))]


@pytest.mark.parametrize("name", ["a.tsv", "a.tsv.gz"])
def test_lines_of_labels_and_text(tmp_path, name):
    path = write(tmp_path / name, "food|staff|food\tGood food. Slow, rude\tstaff!\n")
    assert contents(read_file(path)) == [(("Good food. Slow, rude\tstaff!",), ("food", "staff"))]
    assert read_file(path, "sentences")[0].reviews == ("Good food.", "Slow, rude\tstaff!")
    assert read_file(path, "clauses")[0].reviews == ("Good food.", "Slow,", "rude\tstaff!")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.tsv", "x\ty\nno tab here\n", "a.tsv:2: no tab"),
        ("a.tsv", "x\ty\n\n\ty\n", "a.tsv:3: a label is empty"),
        ("a.tsv", "x||z\ty\n", "a.tsv:1: a label is empty"),
        ("a.tsv", "x\t  \n", "a.tsv:1: no review"),
        ("a.tsv", "", "a.tsv: no sample"),
        ("a.tsv", "x\t" + "y" * MAX_LINE, f"a.tsv:1: a line has at most {MAX_LINE} characters"),
        ("a.csv", "x\ty\n", "a.csv: the name must end in .tsv, .txt or .json"),
        ("a.json", "[1", "a.json: not a JSON file"),
        ("a.json", "[" * 100_000, "a.json: not a JSON file"),
        ("a.json", "[3]", "a.json: album 1: an album is a mapping, found int"),
        ("a.json", json.dumps(ALBUM | {"tags": "indie"}), "a.json: tags must be a list of strings"),
        ("a.json", json.dumps(ALBUM | {"tags": []}), "a.json: a label is empty, or there is none"),
        ("a.json", json.dumps(ALBUM | {"all_short_comments": {}}), "must be a list"),
        ("a.json", json.dumps(ALBUM | {"all_short_comments": [{"text": "x"}]}), "a review must be a string"),
        ("a.json", json.dumps(ALBUM | {"all_short_comments": [{"comment": ""}]}), "a.json: no review, or only empty"),
        ("a.txt", "__import__('os').system('touch hacked')", "a.txt:1: not a Python literal (ValueError)"),
        ("a.txt", "{'tags': ['a'], 'all_reviews': open('x')}", "a.txt:1: not a Python literal"),
        ("a.txt", "(" * 50_000, "a.txt:1: not a Python literal"),
        ("a.txt", "-" * 500_000 + "1", "a.txt:1: not a Python literal"),
        ("a.txt", "{[]: 1}", "a.txt:1: not a Python literal (TypeError)"),
        ("a.txt", "9" * 5_000, "a.txt:1: not a Python literal"),
        ("a.txt", "[1, 2]", "a.txt:1: an album is a mapping, found list"),
    ],
)
def test_refused_files(tmp_path, name, text, message):
    with pytest.raises(DataError) as error:
        read_file(write(tmp_path / name, text))
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "hacked").exists()


def test_files_that_are_no_text(tmp_path):
    (tmp_path / "a.tsv").write_bytes(b"x\t\xff\xfe\n")
    (tmp_path / "b.tsv.gz").write_bytes(b"no gzip")
    (tmp_path / "c.tsv.gz").write_bytes(gzip.compress(b"x\ty\n" * 1000)[:-20])
    for name in ("a.tsv", "b.tsv.gz", "c.tsv.gz", "missing.tsv"):
        with pytest.raises(DataError, match=name):
            read_file(tmp_path / name)


@pytest.mark.parametrize("names", [("train.tsv", "valid.tsv.gz", "test.tsv"), ("train.tsv", "dev.tsv", "test.tsv")])
def test_splits_by_file(tmp_path, names):
    for number, name in enumerate(names):
        write(tmp_path / name, f"x\ttext {number}\n")
    splits = read_splits(tmp_path)
    assert {split: samples[0].reviews[0] for split, samples in splits.items()} == {
        "train": "text 0",
        "valid": "text 1",
        "test": "text 2",
    }


def test_splits_of_lists(tmp_path):
    for split in ("train", "valid", "test"):
        write(tmp_path / f"rmsc.data.{split}.json", json.dumps([ALBUM]))
    assert [contents(samples) for samples in read_splits(tmp_path).values()] == [[PARSED]] * 3


def test_single_albums_are_split_by_sorted_name(tmp_path):
    for number in range(20):
        write(tmp_path / f"{number:02}.json", json.dumps(ALBUM | {"all_short_comments": [{"comment": f"r{number}"}]}))
    splits = read_splits(tmp_path)
    assert [len(splits[split]) for split in ("train", "valid", "test")] == [14, 2, 4]
    assert sorted(sample.reviews[0] for samples in splits.values() for sample in samples) == sorted(
        f"r{number}" for number in range(20)
    )
    assert contents(read_splits(tmp_path)["test"]) == contents(splits["test"])


def test_split_sizes_of_the_music_data(monkeypatch, tmp_path):
    monkeypatch.setattr("graph.label_graph.data.read_file", lambda path: [Sample(("x",), ("y",), str(path))] * 7172)
    write(tmp_path / "all.json", "")
    assert [len(samples) for samples in read_splits(tmp_path).values()] == [5020, 646, 1506]


def test_refused_folders(tmp_path):
    with pytest.raises(OptionError, match=r"--data: .* is not a folder"):
        read_splits(tmp_path / "absent")
    with pytest.raises(DataError, match="0 albums; expected"):
        read_splits(tmp_path)
    write(tmp_path / "train.tsv", "x\ty\n")
    write(tmp_path / "test.tsv", "x\ty\n")
    with pytest.raises(DataError, match="no file for valid"):
        read_splits(tmp_path)
    write(tmp_path / "valid.tsv", "x\ty\nx|new\ty\n")
    with pytest.raises(DataError, match=r"valid.tsv:2: label 'new' is not among the 1 labels of training"):
        read_splits(tmp_path)
    write(tmp_path / "dev.tsv", "x\ty\n")
    with pytest.raises(DataError, match=r"both valid.tsv and dev.tsv could be the valid set"):
        read_splits(tmp_path)


def test_labels():
    samples = [Sample(("r",), ("b", "a"), "1"), Sample(("r",), ("c",), "2")]
    assert label_names(samples) == ["a", "b", "c"]
    assert label_matrix(samples, ["a", "b", "c"]).tolist() == [[1, 1, 0], [0, 0, 1]]


def test_words():
    assert tokenizer("words")("Don't  STOP: naïve-Ⅷ, 3.5!") == ["don't", "stop", "naïve", "ⅷ", "3", "5"]
    with pytest.raises(OptionError, match=r"--tokenizer: 'jiba' .* did you mean 'jieba'"):
        tokenizer("jiba")


def test_chinese_words():
    pytest.importorskip("jieba")
    assert tokenizer("jieba")("我来到北京清华大学 ok") == ["我", "来到", "北京", "清华大学", "ok"]


def test_jieba_is_optional(monkeypatch):
    monkeypatch.setitem(sys.modules, "jieba", None)
    with pytest.raises(InputError, match=r"pip install 'fairseq-ext\[chinese\]'"):
        tokenizer("jieba")


def test_pieces():
    assert split_text("不错。太慢！Costs 3.5 euros. Why?", "sentences") == [
        "不错。",
        "太慢！",
        "Costs 3.5 euros.",
        "Why?",
    ]
    assert split_text("好，但是贵。", "clauses") == ["好，", "但是贵。"]
    with pytest.raises(OptionError, match="--pieces"):
        split_text("x", "words")


def test_ids():
    vocabulary = Vocabulary.build([["b", "a", "b"], ["c", "a", "b"]], min_count=2)
    assert vocabulary.words == ("b", "a") and len(vocabulary) == 4
    ids = vocabulary.encode([[["a", "zzz", "b"], ["b"], ["a"]], []], max_reviews=2, max_words=2)
    assert ids.dtype == torch.int32 and ids.tolist() == [[[3, 1], [2, 0]], [[0, 0], [0, 0]]]


def test_reviews_without_words_leave_room_for_others():
    assert tokenized([Sample(("!!!", "a b", "?", "c", "d"), ("x",), "1")], "words", 2) == [[["a", "b"], ["c"]]]


def test_vectors():
    sentences = [["red", "apple"], ["green", "apple"], ["rare"]] * 3
    vocabulary = Vocabulary.build(sentences[:2], min_count=1)
    vectors = train_vectors(sentences, vocabulary, dim=8, seed=3)
    assert vectors.shape == (5, 8) and (vectors[:2] == 0).all() and (vectors[2:] != 0).all()
    assert torch.equal(vectors, train_vectors(sentences, vocabulary, dim=8, seed=3))
    assert not torch.equal(vectors, train_vectors(sentences, vocabulary, dim=8, seed=4))


@pytest.mark.parametrize(
    ("name", "sizes", "labels"), [("mams_acsa", [3149, 400, 400], 8), ("netflix_genres", [7040, 880, 881], 42)]
)
def test_real_data(name, sizes, labels):
    splits = read_splits(require_data("multilabel") / name)
    assert [len(samples) for samples in splits.values()] == sizes
    assert len(label_names(splits["train"])) == labels
