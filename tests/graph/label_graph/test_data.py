"""Every form of the data, the split of single albums, text to ids; and files that are refused by file and line."""

from __future__ import annotations

import gzip
import json
import sys

import pytest
import torch
from gensim.models import Word2Vec
from hypothesis import given
from hypothesis import strategies as st
from sklearn.model_selection import train_test_split

from fairseq_ext.training.errors import DataError, InputError, OptionError
from fairseq_ext.training.files import MAX_LINE
from fairseq_ext.training.settings import digest
from graph.label_graph.classifier import tokenized
from graph.label_graph.data import Sample, label_matrix, label_names, read_file, read_splits, unknown_labels
from graph.label_graph.options import Options
from graph.label_graph.text import Sentences, Vocabulary, split_text, tokenizer, train_vectors
from tests.helpers import damaged_texts, require_data

ALBUM = {
    "name": "The xx - Coexist",
    "tags": ["indie", "electronic"],
    "all_short_comments": [{"name": "a", "rate": "5", "vote": 3, "comment": "很好听"}, {"comment": " "}],
}
PARSED = (("很好听", " "), ("indie", "electronic"))


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


@pytest.mark.parametrize("labels", ["label", "labels"])
def test_a_header_is_no_sample(tmp_path, labels):
    path = write(tmp_path / "a.tsv", f"\n{labels}\ttext\nx|y\tone\n")
    for need_labels in (True, False):
        (sample,) = read_file(path, need_labels)
        assert (sample.labels, sample.reviews) == (("x", "y"), ("one",))


@pytest.mark.parametrize("name", ["a.tsv", "a.tsv.gz"])
def test_lines_of_labels_and_text(tmp_path, name):
    path = write(tmp_path / name, "food|staff|food\tGood food. Slow, rude\tstaff!\r\n\n\tnothing\nx\t\n")
    assert contents(read_file(path)) == [
        (("Good food. Slow, rude\tstaff!",), ("food", "staff")),
        (("nothing",), ()),
        (("",), ("x",)),
    ]


def test_one_label_however_its_letters_are_written(tmp_path):
    path = write(tmp_path / "a.tsv", "caf\u00e9|cafe\u0301\tx\ncafe\u0301\ty\n")
    assert label_names(read_file(path)) == ["caf\u00e9"]


@pytest.mark.parametrize("name", ["a.json.gz", "a.json"])
def test_albums_without_tags_or_reviews(tmp_path, name):
    albums = [ALBUM | {"tags": []}, ALBUM | {"all_short_comments": []}]
    path = write(tmp_path / name, json.dumps(albums))
    assert contents(read_file(path)) == [(("很好听", " "), ()), ((), ("indie", "electronic"))]
    del albums[0]["tags"]
    write(path, json.dumps(albums))
    assert read_file(path, need_labels=False)[0].labels == ()
    with pytest.raises(DataError, match="album 1: tags must be a list of strings"):
        read_file(path)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.tsv", "x\ty\nno tab here\n", "a.tsv:2: no tab"),
        ("a.tsv", "x\ty\n\n|\ty\n", "a.tsv:3: a label is empty"),
        ("a.tsv", "x||z\ty\n", "a.tsv:1: a label is empty"),
        ("a.tsv", "", "a.tsv: no sample"),
        ("a.tsv", "x\t" + "y" * MAX_LINE, f"a.tsv:1: a line has at most {MAX_LINE} characters"),
        ("a.csv", "x\ty\n", "a.csv: the name must end in .tsv, .txt or .json"),
        ("a.json", "[1", "a.json: not a JSON file"),
        ("a.json", "[" * 100_000, "a.json: not a JSON file"),
        ("a.json", "[3]", "a.json: album 1: an album is a mapping, got int"),
        ("a.json", "[NaN]", "a.json: album 1: an album is a mapping, got float"),
        ("a.json", json.dumps(ALBUM | {"tags": "indie"}), "a.json: album 1: tags must be a list of strings"),
        ("a.json", json.dumps(ALBUM | {"tags": [3]}), "a.json: album 1: tags must be a list of strings"),
        ("a.json", json.dumps(ALBUM | {"tags": ["a", " "]}), "a.json: album 1: a label is empty"),
        ("a.json", json.dumps(ALBUM | {"all_short_comments": {}}), "must be a list"),
        ("a.json", json.dumps(ALBUM | {"all_short_comments": [{"text": "x"}]}), "a review must be a string"),
        ("a.json", json.dumps(ALBUM | {"all_short_comments": [None]}), "a review must be a string"),
        ("a.txt", "__import__('os').system('touch hacked')", "a.txt:1: not a Python literal (ValueError)"),
        ("a.txt", "{'tags': ['a'], 'all_reviews': open('x')}", "a.txt:1: not a Python literal"),
        ("a.txt", "(" * 50_000, "a.txt:1: not a Python literal"),
        ("a.txt", "-" * 500_000 + "1", "a.txt:1: not a Python literal"),
        ("a.txt", "{[]: 1}", "a.txt:1: not a Python literal (TypeError)"),
        ("a.txt", "9" * 5_000, "a.txt:1: not a Python literal"),
        ("a.txt", "[1, 2]", "a.txt:1: an album is a mapping, got list"),
    ],
)
def test_refused_files(tmp_path, name, text, message):
    with pytest.raises(DataError) as error:
        read_file(write(tmp_path / name, text))
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "hacked").exists()


GOOD = {
    ".tsv": "x\ty\nz\tw\n",
    ".json": json.dumps([ALBUM, ALBUM], indent=1),
    ".txt": "".join(f"{ {'tags': ['rock'], 'all_reviews': [n]}!r}\n" for n in ("loud", "fast")),
}


@pytest.mark.parametrize("kind", damaged_texts(b"one\ntwo\n"))
@pytest.mark.parametrize("form", GOOD)
def test_damaged_files_are_refused_by_name(tmp_path, form, kind):
    assert len(read_file(write(tmp_path / f"good{form}", "\ufeff" + GOOD[form].replace("\n", "\r\n")))) == 2
    path = tmp_path / f"bad{form}{'.gz' if kind.endswith('gz') else ''}"
    path.write_bytes(damaged_texts(GOOD[form].encode())[kind])
    with pytest.raises(DataError) as refusal:
        read_file(path)
    assert str(refusal.value).startswith(str(path)) and "\n" not in str(refusal.value)
    with pytest.raises(DataError, match="missing"):
        read_file(tmp_path / f"missing{form}")


def test_texts_to_label_are_lines_whatever_they_hold(tmp_path):
    for lines in (["{'all_reviews': ['x']}", "", "{"], ["", " "], ["{'all_reviews': 'x'}"]):
        path = write(tmp_path / "a.txt", "\n".join([*lines, ""]))
        assert contents(read_file(path, need_labels=False)) == [((line,), ()) for line in lines]
    write(path, "{'all_reviews': ['x']}\n\n{'all_reviews': []}")  # albums alone are albums
    assert contents(read_file(path, need_labels=False)) == [(("x",), ()), ((), ())]


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


def test_single_albums_are_split_with_the_released_seeds(tmp_path):
    for number in range(20):
        write(tmp_path / f"{number:02}.json", json.dumps(ALBUM | {"all_short_comments": [f"{number}"]}))
    train, rest = train_test_split(range(20), test_size=0.3, random_state=1)
    test, valid = train_test_split(rest, test_size=0.3, random_state=1)
    numbers = {split: [int(sample.reviews[0]) for sample in part] for split, part in read_splits(tmp_path).items()}
    assert numbers == {"train": train, "valid": valid, "test": test}


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
    assert len(read_splits(tmp_path)["valid"]) == 2
    for text in ("new\ty\n", "\ty\n"):
        write(tmp_path / "valid.tsv", text)
        with pytest.raises(DataError, match="no sample of valid has any of the 1 labels of training"):
            read_splits(tmp_path)
    write(tmp_path / "dev.tsv", "x\ty\n")
    with pytest.raises(DataError, match=r"both valid.tsv and dev.tsv could be the valid set"):
        read_splits(tmp_path)


def test_labels():
    samples = [Sample(("r",), ("b", "a"), "1"), Sample(("r",), ("c",), "2")]
    assert label_names(samples) == ["a", "b", "c"]
    assert label_matrix(samples, ["a", "b", "c"]).tolist() == [[1, 1, 0], [0, 0, 1]]
    assert label_matrix(samples, ["b"]).tolist() == [[1], [0]]
    assert label_matrix([*samples, Sample(("r",), (), "3")], ["c"]).tolist() == [[0], [1], [0]]
    assert label_matrix(samples, ["b"]).dtype == torch.bool
    assert unknown_labels([*samples, samples[1]], ["b"]) == {"c": 2, "a": 1}


def test_words():
    assert tokenizer("words")("cafe\u0301") == ["caf\u00e9"]
    for text in ("हिन्दी भाषा", "தமிழ் மொழி", "كِتَاب جَمِيل", "שָׁלוֹם עוֹלָם", "می\u200cخواهم بروم", "ภาษาไทย"):
        assert tokenizer("words")(f"{text}, «{text}».") == text.split() * 2
    assert tokenizer("words")("İSTANBUL İstanbul istanbul I\u0307stanbul") == ["istanbul"] * 4
    assert tokenizer("words")("\u0301 a\u0323 - \u200d") == ["ạ"]
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
    texts = vocabulary.encode([[["a", "zzz", "b"], ["b"], ["a"]], []], max_reviews=2, max_words=2)
    ids = texts[torch.tensor([0, 1])]
    assert ids.dtype == torch.int32 and ids.tolist() == [[[3, 1], [2, 0]], [[0, 0], [0, 0]]]


@given(st.lists(st.lists(st.text("abcd", min_size=1, max_size=7), max_size=5), max_size=6), st.data())
def test_ids_are_padded_to_the_limits_however_they_are_kept(samples, data):
    vocabulary = Vocabulary(("a", "b", "c"))
    texts = vocabulary.encode(samples, max_reviews=3, max_words=4)
    padded = torch.zeros(len(samples), 3, 4, dtype=torch.int32)
    for row, sample in zip(padded, samples, strict=True):
        for line, review in zip(row, sample, strict=False):
            line[: len(review)] = torch.tensor([" dabc".index(word) for word in review[:4]])
    assert len(texts) == len(samples)
    rows = torch.tensor(data.draw(st.lists(st.integers(0, len(samples) - 1))) if samples else [], dtype=torch.long)
    assert torch.equal(texts[rows], padded[rows]) and texts[rows].dtype == torch.int32
    assert digest(texts.blocks()) == digest(padded)


def test_padding_is_not_kept():
    reviews = [[["a"] * 3]] * 999 + [[["a"] * 20] * 40]
    texts = Vocabulary(("a",)).encode(reviews, max_reviews=40, max_words=20)
    kept = sum(value.untyped_storage().nbytes() for value in vars(texts).values() if isinstance(value, torch.Tensor))
    assert kept < 2 * 4 * sum(len(review) for sample in reviews for review in sample) + 24 * len(reviews)


def test_equal_words_of_texts_are_one_object():
    samples = [Sample(("soup of the day",), (), "1"), Sample(("Soup",), (), "2")]
    (((soup, *_),), ((again,),)) = tokenized(samples, Options(data=""))
    assert soup is again


def test_reviews_without_words_leave_room_for_others():
    samples = [Sample(("!!!", "a b", "?", "c. d, e", "f"), ("x",), "1")]
    assert tokenized(samples, Options(data="")) == [[["a", "b"], ["c", "d", "e"], ["f"]]]
    assert tokenized(samples, Options(data="", pieces="clauses"))[0][1:4] == [["c"], ["d"], ["e"]]


def test_vectors():
    sentences = [["red", "apple"], ["green", "apple"], ["rare"], []] * 3
    vocabulary = Vocabulary.build(sentences[:2], min_count=1)
    known = Sentences(sentences, vocabulary)
    assert [*known] == [*known] == [["red", "apple"], ["green", "apple"], [], []] * 3 and len(known) == 12
    vectors = train_vectors(sentences, vocabulary, dim=8, seed=3)
    assert vectors.shape == (5, 8) and (vectors[:2] == 0).all() and (vectors[2:] != 0).all()
    assert torch.equal(vectors, train_vectors(sentences, vocabulary, dim=8, seed=3))
    assert not torch.equal(vectors, train_vectors(sentences, vocabulary, dim=8, seed=4))


@pytest.mark.parametrize(
    ("name", "sizes", "labels"),
    [
        ("mams_acsa", [3149, 400, 400], 8),
        ("netflix_genres", [7040, 880, 881], 42),
        ("imdb_reviews_genres", [4351, 544, 543], 18),
    ],
)
def test_real_data(name, sizes, labels):
    splits = read_splits(require_data("multilabel") / name)
    assert [len(samples) for samples in splits.values()] == sizes
    assert len(label_names(splits["train"])) == labels


def test_vectors_are_those_of_gensims_defaults():
    words = "one two three four five six seven eight nine ten".split()
    sentences = [words[n % 10 :] + words[: n % 10] for n in range(30)]
    vocabulary = Vocabulary.build(sentences)
    published = {"window": 5, "epochs": 5, "sg": 0, "negative": 5, "alpha": 0.025, "sample": 1e-3}
    expected = Word2Vec(sentences, vector_size=8, min_count=1, seed=3, workers=1, **published).wv
    vectors = train_vectors(sentences, vocabulary, dim=8, seed=3)
    assert vectors[2:].tolist() == [expected[word].tolist() for word in vocabulary.words]
