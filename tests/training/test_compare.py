"""Two experiments, paired by the names of their runs where they read the same."""

from __future__ import annotations

import importlib
import json

import pytest

from fairseq_ext.training.compare import compare_experiments, paired_differences
from fairseq_ext.training.errors import DataError, OptionError
from fairseq_ext.training.files import write_json

PROGRAMS = (
    *("graph.renode", "graph.label_graph", "graph.graph_classification"),
    *("vision_language.iais", "vision_language.image_classification"),
)


def results(folder, runs, **settings):
    folder.mkdir()
    write_json(folder / "results.json", {"settings": {"inputs": {"train": "a"}, **settings}, "runs": runs})
    return str(folder)


def test_every_figure_that_all_runs_have_and_every_setting_that_differs(tmp_path):
    runs = {"seed1": {"test_accuracy": 0.5, "loss": 2.0, "epochs": 3, "tuned": True, "note": "x", "history": []}}
    first = results(tmp_path / "a", runs, loss="ce", lr=1)
    second = results(tmp_path / "b", {"seed1": {**runs["seed1"], "test_accuracy": 0.75, "loss": 1.0}}, loss="el", lr=1)
    settings, *rows = compare_experiments(first, second)
    assert settings == {"settings": {"loss": ["ce", "el"]}}
    assert [row["metric"] for row in rows] == ["test_accuracy", "loss", "epochs"]
    assert [row["difference"] for row in rows] == [0.25, -1, 0] and rows[1]["better"] == rows[2]["equal"] == 1
    assert compare_experiments(first, second, "loss") == [settings, rows[1]]


def test_runs_are_paired_by_name_and_by_what_was_read(tmp_path):
    first = results(tmp_path / "a", {"seed1": {"f1": 0.5}, "seed2": {"f1": 0.75}}, folds=3)
    second = results(tmp_path / "b", {"seed2": {"f1": 1.0}, "seed3": {"f1": 0.0}}, folds=4)
    (_, row) = compare_experiments(first, second)
    assert (row["runs"], row["first"], row["second"], row["better"]) == (1, 0.75, 1.0, 1)
    with pytest.raises(OptionError, match=r"^compare: folds is 3 in .*a and 4 in .*b: no pairs$"):
        compare_experiments(first, second, paired_by=["folds"])
    other = results(tmp_path / "c", {"seed1": {"f1": 0.5}}, inputs={"train": "b"})
    with pytest.raises(OptionError, match=r"^compare: inputs.train is a in .*a and b in .*c: no pairs$"):
        compare_experiments(first, other)
    with pytest.raises(OptionError, match=r"share no finished run$"):
        compare_experiments(first, results(tmp_path / "d", {"seed9": {"f1": 0.5}}))
    with pytest.raises(OptionError, match=r"^--metric auc: the runs have f1$"):
        compare_experiments(first, first, "auc")


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_program_compares(tmp_path, capsys, program):
    """Each of its options changes what is printed."""
    main = importlib.import_module(f"{program}.__main__").main
    first, second = (
        results(tmp_path / name, {"seed1": {"f1": value, "loss": 1.0}}) for name, value in (("a", 0.25), ("b", 0.75))
    )
    printed = []
    for words in ([first, second], [second, second], [first, first], [first, second, "--metric", "f1"]):
        main(["compare", *words])
        printed.append(capsys.readouterr().out)
    assert printed[0] not in printed[1:] and printed[1] != printed[2]
    assert json.loads(printed[3].splitlines()[1])["difference"] == 0.5


def test_runs_of_other_labelled_nodes_are_no_pairs(tmp_path):
    from graph.renode.__main__ import main

    first = results(tmp_path / "a", {"split0-init0": {"f1": 0.5}}, train_each=20)
    other = results(tmp_path / "b", {"split0-init0": {"f1": 0.5}}, train_each=50)
    with pytest.raises(OptionError, match=r"^compare: train_each is 20 in .*a and 50 in .*b: no pairs$"):
        main(["compare", first, other])


def test_what_is_no_experiment_is_named(tmp_path):
    first = results(tmp_path / "a", {"seed1": {"f1": 0.5}})
    (tmp_path / "b").mkdir()
    with pytest.raises(DataError, match=r"b/results.json"):
        compare_experiments(first, str(tmp_path / "b"))
    contents = {"no results.json of a training": ({"runs": {}}, [], {"settings": {}, "runs": {"seed1": 1}})}
    contents["its settings do not say what was read"] = ({"settings": {}, "runs": {}},)
    for message, values in contents.items():
        for content in values:
            write_json(tmp_path / "b" / "results.json", content)
            with pytest.raises(DataError, match=message):
                compare_experiments(first, str(tmp_path / "b"))


def test_what_earlier_versions_stored_as_no_number_is_no_figure(tmp_path):
    first = results(tmp_path / "a", {"seed1": {"f1": 0.5, "auc": 0.5}})
    (tmp_path / "a" / "results.json").write_text((tmp_path / "a" / "results.json").read_text().replace("0.5", "NaN", 1))
    _, row = compare_experiments(first, first)
    assert row["metric"] == "auc" and row["difference"] == 0


def test_only_runs_of_both_count():
    result = paired_differences({"a": 1.0, "b": 2.0, "c": 9.0}, {"b": 1.0, "a": 4.0, "d": 0.0})
    assert (result["runs"], result["first"], result["second"]) == (2, 1.5, 2.5)
    assert (result["difference"], result["std"]) == (1.0, 2.0)
    assert (result["better"], result["equal"], result["worse"]) == (1, 0, 1)


def test_less_of_a_loss_is_better_and_neither_of_a_count():
    first, second = {"a": 1.0, "b": 2.0, "c": 3.0}, {"a": 2.0, "b": 3.0, "c": 1.0}
    of_loss, of_neither = (paired_differences(first, second, lower) for lower in (True, None))
    assert of_loss["difference"] == of_neither["difference"] == 0
    assert (of_loss["better"], of_loss["equal"], of_loss["worse"]) == (1, 0, 2)
    assert (of_neither["higher"], of_neither["equal"], of_neither["lower"]) == (2, 0, 1)
    assert not {"better", "worse"} & of_neither.keys()
    assert list(of_loss) == list(paired_differences(first, second))
