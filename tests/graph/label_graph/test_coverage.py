"""What of the data is not read: counted by hand, reported once, and kept beside the results."""

from __future__ import annotations

import json

import pytest

from graph.label_graph.__main__ import main
from graph.label_graph.coverage import coverage, notes
from graph.label_graph.data import Sample
from graph.label_graph.options import Options


def counted(reviews, labels=("x",), **options):
    samples = [Sample(("",), labels, "1")] * len(reviews)
    words = [[["w"] * length for length in sample] for sample in reviews]
    return coverage(samples, words, ["x"], Options(data="", **options))


def test_shares_by_hand():
    read = counted([[1, 4, 9], [2], []], max_reviews=2, max_words=3)
    assert read == {
        "samples": 3,
        "without_labels": 0,
        "without_words": 1,
        "reviews_read": 3 / 4,
        "words_read": (1 + 3 + 2) / (1 + 4 + 2),
        "reviews_cut": 1 / 3,
        "max_words_of_most": 4,
        "unknown_labels": {},
    }


@pytest.mark.parametrize(("reviews", "most"), [([*range(1, 101)], 95), ([*range(1, 20), 99], 19), ([7], 7), ([], 0)])
def test_the_proposed_words_leave_95_percent_whole(reviews, most):
    assert counted([reviews], max_words=1, max_reviews=200)["max_words_of_most"] == most


def test_nothing_left_out_is_nothing_told():
    options = Options(data="")
    of_splits = {split: counted([[20], [1]], max_words=20) for split in ("train", "valid", "test")}
    assert list(notes(of_splits, options)) == []
    of_splits["valid"] = counted([[1]], labels=("x", "new"))
    of_splits["test"] = counted([[1], []], labels=())
    assert list(notes(of_splits, options)) == [
        "valid: labels that training does not have are not scored: new (1)",
        "test: 2 of 2 samples have no labels",
        "test: 1 of 2 samples have no words",
    ]


def test_a_training_says_what_it_does_not_read(tmp_path, capsys):
    for split, labels in (("train", "food"), ("valid", "food"), ("test", "food|wine")):
        text = "".join(f"{labels}\tone two three {'four ' * number}\n" for number in range(4))
        (tmp_path / f"{split}.tsv").write_text(text + "\tno label\n")
    words = "--embedding learned --hidden-size 4 --attention-size 4 --embedding-dim 4 --epochs 1 --start-eval 1"
    main(["train", "--data", str(tmp_path), "--out", str(tmp_path / "out"), *words.split(), "--max-words", "4"])
    lines = [line for line in capsys.readouterr().err.splitlines() if "seed" not in line]
    assert lines == [
        "train: --max-words 4 cuts 40.0% of the reviews and reads 85.0% of their words; 6 would leave 95% whole",
        *(f"{split}: 1 of 5 samples have no labels" for split in ("train", "valid", "test")),
        "test: labels that training does not have are not scored: wine (4)",
    ]
    run = json.loads((tmp_path / "out" / "results.json").read_text())["runs"]["seed1"]
    assert run["coverage"]["test"]["unknown_labels"] == {"wine": 4}
    assert run["coverage"]["train"]["reviews_cut"] == 0.4
    assert list(run["f1_by_label"]) == ["food"]
