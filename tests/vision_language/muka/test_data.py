"""Files of texts, splits, the classes of each teacher, batches; and files that are refused by name and line."""

from __future__ import annotations

import gc
import gzip
import hashlib
import sys
import tracemalloc
import types
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import processors
from transformers import DataCollatorWithPadding

from fairseq_ext.training.errors import DataError, InputError, OptionError
from fairseq_ext.training.files import MAX_LINE
from tests.helpers import require_data
from tests.vision_language.muka.texts import tiny_tokenizer, write_texts
from vision_language.muka.data import gold_ids, read_data, read_splits, split_labels
from vision_language.muka.options import TeacherOptions
from vision_language.muka.text_files import Texts, read_file, read_new_texts
from vision_language.muka.tokens import Tokens


def write(path, text):
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.mark.parametrize("name", ["a.tsv", "a.tsv.gz"])
def test_labelled_lines(tmp_path, name):
    texts = read_file(write(tmp_path / name, "\ufeffsport\tthe goal\ta tab \r\n\n music \tsong\u2028same line"))
    assert texts.texts == ("the goal\ta tab", "song\u2028same line") and texts.labels == ("sport", "music")
    assert texts.origin == str(tmp_path / name)


@pytest.mark.parametrize("case", [str.lower, str.title, str.upper])
@pytest.mark.parametrize("column", ["text", "sentence"])
def test_a_header_is_no_class(tmp_path, column, case):
    """The released code's files have one; only the first line can be it."""
    lines = f"{case('label')}\t{case(column)}\nsport\tthe goal\nlabel\t{column}\n"
    texts = read_file(write(tmp_path / "a.tsv", f"\n{lines}"))
    assert texts.labels == ("sport", "label") and texts.texts == ("the goal", column)
    assert read_new_texts(write(tmp_path / "b.tsv", lines)) == ["the goal", column]
    assert read_new_texts(write(tmp_path / "b.tsv", f"\n{lines}\n")) == ["", "the goal", column, ""]
    assert read_file(write(tmp_path / "a.txt", lines)).texts[0] == case(f"label\t{column}")
    with pytest.raises(DataError, match=rf"a\.tsv:1: the columns are '{column}', 'label'; a line is label TAB text"):
        read_file(write(tmp_path / "a.tsv", f"{case(column)}\t{case('label')}\nthe goal\tsport\n"))


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_lines_without_labels(tmp_path, name):
    texts = read_file(write(tmp_path / name, "the goal\twith a tab\n\nsong\n"))
    assert texts.texts == ("the goal\twith a tab", "song") and texts.labels is None
    with pytest.raises(DataError, match="no labels"):
        texts.gold()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.tsv", "x\ty\n\nno tab\n", "a.tsv:3: no tab"),
        ("a.tsv", "x\ty\n \ty\n", "a.tsv:2: the label is empty"),
        ("a.tsv", "x\t \n", "a.tsv:1: the text is empty"),
        ("a.tsv", "\n\n", "a.tsv: no text"),
        ("a.txt", "", "a.txt: no text"),
        ("a.tsv", "x\t" + "y" * MAX_LINE, f"a.tsv:1: a line has at most {MAX_LINE} characters"),
        ("a.csv", "x\ty\n", "a.csv: the name must end in .tsv, .tsv.gz, .txt, .txt.gz"),
    ],
)
def test_refused_files(tmp_path, name, text, message):
    with pytest.raises(DataError) as error:
        read_file(write(tmp_path / name, text))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_files_that_are_no_text(tmp_path):
    (tmp_path / "a.tsv").write_bytes(b"x\t\xff\xfe\n")
    (tmp_path / "b.tsv.gz").write_bytes(b"no gzip")
    (tmp_path / "c.tsv.gz").write_bytes(gzip.compress(b"x\ty\n" * 1000)[:-20])
    for name in ("a.tsv", "b.tsv.gz", "c.tsv.gz", "missing.tsv"):
        with pytest.raises(DataError, match=name):
            read_file(tmp_path / name)


def test_splits_by_file(tmp_path):
    for number, name in enumerate(("train.tsv", "dev.txt.gz", "test.tsv.gz")):
        write(tmp_path / name, f"x\ttext {number}\n")
    splits = read_splits(tmp_path)
    assert {split: texts.texts for split, texts in splits.items()} == {
        "train": ("text 0",),
        "valid": ("x\ttext 1",),
        "test": ("text 2",),
    }
    write(tmp_path / "valid.tsv", "x\ty\n")
    with pytest.raises(DataError, match=r"both valid\.tsv and dev\.txt\.gz could be the valid set"):
        read_splits(tmp_path)


def test_hold_out(tmp_path):
    path = write(tmp_path / "train.tsv", "".join(f"{i % 3}\ttext {i}\n" for i in range(200)))
    splits = read_splits(tmp_path, seed=3)
    assert {split: len(texts) for split, texts in splits.items()} == {"train": 190, "valid": 10}
    assert sorted(splits["train"].texts + splits["valid"].texts) == sorted(f"text {i}" for i in range(200))
    assert read_splits(path, seed=3) == splits  # a file alone is a training set
    assert read_splits(path, seed=4)["valid"] != splits["valid"]
    assert len(read_splits(path, 0.2)["valid"]) == 40
    numbers = [int(text.split()[1]) for text in splits["valid"].texts]
    assert splits["valid"].labels == tuple(str(number % 3) for number in numbers)
    with pytest.raises(DataError, match="too few to hold out"):
        read_splits(write(tmp_path / "one.txt", "text\n"))


def test_a_folder_without_test_texts_is_named(tmp_path, capsys):
    """It leaves all without."""
    whole, part = (write_texts(tmp_path / name) for name in ("whole", "part"))
    splits = read_data(TeacherOptions(model="x", data=(str(whole), str(whole))))
    assert list(splits) == ["train", "valid", "test"] and not capsys.readouterr().err
    (part / "test.tsv").unlink()
    assert list(read_data(TeacherOptions(model="x", data=(str(whole), str(part))))) == ["train", "valid"]
    told = f"| no test texts are used: {part} has none, the other folders of --data have some"
    assert capsys.readouterr().err.splitlines() == [told]
    read_data(TeacherOptions(model="x", data=(str(part),)))
    assert not capsys.readouterr().err


def test_folders_without_a_training_set(tmp_path):
    write(tmp_path / "test.tsv", "x\ty\n")
    with pytest.raises(DataError, match=r"no train\{\.tsv,"):
        read_splits(tmp_path)
    with pytest.raises(OptionError, match=r"--data: .*missing does not exist"):
        read_splits(tmp_path / "missing")


@pytest.mark.parametrize(
    ("labels", "parts", "wanted"),
    [
        (["World", "Sports", "Business", "Sci"], 2, [["Business", "Sci"], ["Sports", "World"]]),
        (["b", "a", "c", "e", "d", "a"], 2, [["a", "b"], ["c", "d", "e"]]),
        ([str(i) for i in range(11)], 3, [["0", "1", "10"], ["2", "3", "4"], ["5", "6", "7", "8", "9"]]),
        (["b", "a"], 1, [["a", "b"]]),
    ],
)
def test_classes_of_each_teacher(labels, parts, wanted):
    assert split_labels(labels, parts) == wanted


@pytest.mark.parametrize("parts", [0, 3])
def test_a_teacher_needs_two_classes(parts):
    with pytest.raises(OptionError, match=f"{parts} parts of 4 classes: each part needs at least two classes"):
        split_labels("abcd", parts)


def test_labels_to_numbers():
    texts = Texts(("x", "y", "z"), ("b", "a", "b"), "f.tsv")
    assert gold_ids(texts, ("a", "b")).tolist() == [1, 0, 1]
    assert texts.of_classes(["a"]) == Texts(("y",), ("a",), "f.tsv")
    with pytest.raises(DataError, match=r"f\.tsv: the label 'b' is not among the 2 known: a, c"):
        gold_ids(texts, ("a", "c"))


def test_joined_texts():
    labelled, plain = Texts(("x",), ("a",), "one"), Texts(("y",), None, "two")
    assert Texts.joined([labelled, labelled]) == Texts(("x", "x"), ("a", "a"), "one, one")
    assert Texts.joined([labelled, plain]) == Texts(("x", "y"), None, "one, two")


def test_digest_tells_texts_apart():
    made = [
        Texts(("ab", "c"), None, ""),
        Texts(("a", "bc"), None, ""),
        Texts(("c", "ab"), None, ""),
        Texts(("ab", "c"), ("x", "y"), ""),
        Texts(("ab", "c"), ("y", "x"), ""),
    ]
    assert len({texts.digest() for texts in made}) == len(made)
    assert made[0].digest() == made[3].without_labels().digest()


class FakeDataset:
    column_names: tuple[str, ...] = ("sentence", "label")
    features: ClassVar = {"label": types.SimpleNamespace(int2str=["sport", "music"].__getitem__)}

    def __getitem__(self, name):
        return {"sentence": ["goal", "song", "tune"], "label": [0, 1, 1]}[name]


def saved_split(folder):
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text("{}")
    return folder


def test_saved_data_sets(tmp_path, monkeypatch):
    for split in ("train", "validation"):
        saved_split(tmp_path / split)
    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_from_disk=lambda path: FakeDataset()))
    splits = read_splits(tmp_path)
    assert list(splits) == ["train", "valid"]
    assert splits["valid"].texts == ("goal", "song", "tune") and splits["valid"].labels == ("sport", "music", "music")
    monkeypatch.setattr(FakeDataset, "column_names", ("title", "label"))
    with pytest.raises(DataError, match="no column text or sentence among title, label"):
        read_splits(tmp_path)


def saved(monkeypatch, folder, texts, labels=None, int2str=("sport", "music").__getitem__):
    """A split whose data set, as the package reads it, holds these columns."""
    columns = {"text": texts} | ({} if labels is None else {"label": labels})
    feature = types.SimpleNamespace(int2str=int2str) if int2str else types.SimpleNamespace()

    class Saved(dict):
        column_names, features = tuple(columns), {"label": feature}

    module = types.SimpleNamespace(load_from_disk=lambda path: Saved(columns))
    monkeypatch.setitem(sys.modules, "datasets", module)
    return saved_split(folder)


@pytest.mark.parametrize(
    ("labels", "int2str", "expected"),
    [
        ([1, 0], ("sport", "music").__getitem__, ("music", "sport")),
        (["x", " y "], None, ("x", "y")),
        ([-1, -1], None, None),
        ([None, None], None, None),
        (None, None, None),
    ],
)
def test_labels_of_saved_data_sets(tmp_path, monkeypatch, labels, int2str, expected):
    texts = read_file(saved(monkeypatch, tmp_path / "test", [" goal ", "song"], labels, int2str))
    assert texts.texts == ("goal", "song") and texts.labels == expected


def refuse(number):
    raise ValueError(f"Invalid integer class label {number}")


@pytest.mark.parametrize(
    ("texts", "labels", "int2str", "message"),
    [
        ([], [], None, ": no text in it"),
        (["goal", " "], [0, 1], ("a", "b").__getitem__, ": row 2: the text is empty"),
        (["goal", None], None, None, ": row 2: the text is empty"),
        (["goal", "song"], ["x", ""], None, ": row 2: the label is empty"),
        (["goal", "song"], [0, -1], None, ": row 2 has no label, others have one"),
        (["goal", "song"], [0, 7], refuse, ": a label that is none of its classes: Invalid integer class label 0"),
    ],
)
def test_refused_saved_data_sets(tmp_path, monkeypatch, texts, labels, int2str, message):
    folder = saved(monkeypatch, tmp_path / "test", texts, labels, int2str)
    with pytest.raises(DataError) as error:
        read_file(folder)
    assert str(error.value) == f"{folder}{message}"


def test_saved_data_sets_need_their_package(tmp_path, monkeypatch):
    saved_split(tmp_path / "train")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(OptionError, match="train was saved by the package datasets, which is not installed"):
        read_splits(tmp_path)


@pytest.mark.parametrize("name", ["stackoverflow20", "google_snippets", "ag_news_7600"])
def test_real_data(name):
    splits = read_splits(require_data("text_cls") / name)
    labels = sorted(set(splits["train"].gold()))
    assert sum(map(len, split_labels(labels, 2))) == len(labels)
    for texts in splits.values():
        assert len(gold_ids(texts, labels)) == len(texts)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    texts = read_splits(write_texts(tmp_path_factory.mktemp("texts"), train=233))["train"].texts
    return Tokens(texts, tiny_tokenizer(), 12)


def test_a_batch_is_padded_to_its_longest(tokens):
    rows = np.argsort(tokens.lengths, kind="stable")[:5]
    batch = tokens.batch(rows)
    assert batch["input_ids"].shape == (5, tokens.lengths[rows].max()) and batch["input_ids"].dtype == torch.int64
    assert batch["attention_mask"].sum(1).tolist() == tokens.lengths[rows].tolist()
    assert tokens.lengths.max() == 12  # and longer ones are cut
    assert (batch["input_ids"][batch["attention_mask"] == 0] == 0).all()


def of_two_types():
    """A tokenizer whose token types are 1, but for those of [CLS] and [SEP]."""
    tokenizer = tiny_tokenizer()
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    special = [(name, tokenizer.convert_tokens_to_ids(name)) for name in ("[CLS]", "[SEP]")]
    form = processors.TemplateProcessing(single="[CLS]:0 $A:1 [SEP]:0", special_tokens=special)
    tokenizer.backend_tokenizer.post_processor = form
    return tokenizer


@pytest.mark.parametrize("tokenizer", [tiny_tokenizer(), of_two_types()])
def test_batches_and_digest_are_those_of_lists_of_tokens(tokenizer):
    """Files of teachers' outputs are found by this digest."""
    texts = ["goal rain", "a zebra", "", *["song " * 3] * 1000, "the old race of the very new team"]
    tokens, encoded = Tokens(texts, tokenizer, 8), tokenizer(texts, truncation=True, max_length=8)
    rows = [0, 1, 2, 1002, 1003]
    expected = tokenizer([texts[row] for row in rows], truncation=True, max_length=8, padding=True, return_tensors="pt")
    batch = tokens.batch(rows)
    assert batch.keys() == expected.keys() and all(torch.equal(batch[name], expected[name]) for name in batch)
    sha = hashlib.sha256(repr((DataCollatorWithPadding(tokenizer, "longest", return_tensors="pt"), None)).encode())
    for row in range(len(texts)):
        for name, values in encoded.items():
            sha.update(f"{name} {len(values[row])} ".encode() + np.array(values[row], dtype=np.int32).tobytes())
    assert tokens.digest() == sha.hexdigest()


def test_tokens_take_the_memory_of_their_numbers():
    texts = [" ".join(["song"] * (2 + number % 20)) for number in range(2000)]
    tokenizer = of_two_types()
    tokenizer.backend_tokenizer.post_processor = tiny_tokenizer().backend_tokenizer.post_processor  # all types are 0
    Tokens(texts, tokenizer, 32)  # what the first use imports and caches stays, too
    gc.collect()
    tracemalloc.start()
    tokens = Tokens(texts, tokenizer, 32)
    gc.collect()
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 4 * tokens.lengths.sum() + 16 * len(texts) + 20_000


def test_each_tokenizer_gives_its_own_ids():
    first, second = (Tokens(["goal rain"], tiny_tokenizer(extra), 8).batch([0]) for extra in ((), ("zig", "zag")))
    assert (second["input_ids"] - first["input_ids"]).tolist() == [[0, 2, 2, 0]]


@given(st.integers(1, 60), st.integers(0, 2**31), st.integers(0, 9), st.integers(1, 5))
def test_every_epoch_has_every_text_once(tokens, size, seed, epoch, window):
    batches = tokens.shuffled(size, seed, epoch, window)
    assert sorted(np.concatenate(batches)) == list(range(len(tokens)))
    assert len(batches) == -(-len(tokens) // size) and sorted(map(len, batches))[1:] == [size] * (len(batches) - 1)
    again = tokens.shuffled(size, seed, epoch, window)
    assert all((a == b).all() for a, b in zip(batches, again, strict=True))


def test_batches_have_texts_of_similar_length(tokens):
    def padded(batches):
        return sum(len(batch) * tokens.lengths[batch].max() for batch in batches)

    order = np.random.default_rng(0).permutation(len(tokens))
    random = padded(np.split(order, range(8, len(order), 8)))
    assert sorted(np.concatenate(tokens.in_order(8))) == list(range(len(tokens)))
    assert max(padded(tokens.in_order(8)), padded(tokens.shuffled(8, 1, 0))) < 0.9 * random
    assert not np.array_equal(tokens.shuffled(8, 1, 0)[0], tokens.shuffled(8, 1, 1)[0])


def test_errors_are_one_kind(tmp_path):
    with pytest.raises(InputError):
        read_file(tmp_path / "nothing.tsv")
