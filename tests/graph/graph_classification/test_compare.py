"""Two experiments, paired by the names of their runs."""

from __future__ import annotations

import pytest

from fairseq_ext.training.errors import DataError, OptionError
from fairseq_ext.training.files import write_json
from fairseq_ext.training.runs import run_name
from graph.graph_classification.__main__ import main
from graph.graph_classification.compare import compare, spread_of_repeats


def results(folder, accuracies, **settings):
    folder.mkdir()
    runs = {name: {"test_accuracy": accuracy} for name, accuracy in accuracies.items()}
    write_json(folder / "results.json", {"settings": {"dataset": "NCI1", "seed": 0, **settings}, "runs": runs})
    return folder


def test_compare_pairs_runs_by_name(tmp_path):
    names = [run_name(repeat=0, run=number) for number in range(3)]
    accuracies = dict(zip(names, (0.5, 0.75, 0.5), strict=True)) | {"repeat1-run0": 0.1}
    first = results(tmp_path / "a", accuracies, loss="cross-entropy")
    second = results(tmp_path / "b", dict(zip(names[::-1], (0.5, 0.5, 1.0), strict=True)), loss="encouraging")
    pairs = compare(first, second)
    assert (pairs["runs"], pairs["better"], pairs["equal"], pairs["worse"]) == (3, 1, 1, 1)
    assert pairs["difference"] == pytest.approx(0.25 / 3)


def test_compare_refuses_what_cannot_be_paired(tmp_path):
    first = results(tmp_path / "a", {"repeat0-run0": 0.5})
    with pytest.raises(OptionError, match=r"compare: seed is 0 in .* and 1 in "):
        compare(first, results(tmp_path / "b", {"repeat0-run0": 0.5}, seed=1))
    with pytest.raises(OptionError, match=r"share no finished run"):
        compare(first, results(tmp_path / "c", {"repeat0-run1": 0.5}))
    with pytest.raises(SystemExit, match=r"nowhere: no results.json"):
        main(["compare", str(first), str(tmp_path / "nowhere")])
    records = [{"accuracy": 1.0}, *({"test_accuracy": value} for value in ("1", float("nan"), 50))]
    damaged = [{"settings": {}, "runs": {"repeat0-run0": record}} for record in records]
    for number, content in enumerate(({"runs": {}}, [], *damaged)):
        (tmp_path / f"other{number}").mkdir()
        write_json(tmp_path / f"other{number}" / "results.json", content)
        with pytest.raises(DataError, match=f"other{number}: no results.json of graph_classification"):
            compare(first, tmp_path / f"other{number}")


@pytest.mark.parametrize(
    "changed",
    [
        {"dataset": "MUTAG"},
        {"use_node_attr": True},
        {"folds": 3},
        {"runs": 9},
        {"repeats": 2},
        {"inputs": {"graphs": "b"}},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_runs_of_other_graphs_or_splits_are_no_pairs(tmp_path, changed):
    shared = {"use_node_attr": False, "folds": 0, "runs": 10, "repeats": 1, "inputs": {"graphs": "a"}}
    first = results(tmp_path / "a", {"repeat0-run0": 0.5}, loss="encouraging", **shared)
    same = results(tmp_path / "b", {"repeat0-run0": 0.5}, loss="cross-entropy", lr=1, **shared)
    assert compare(first, same)["runs"] == 1
    with pytest.raises(OptionError, match=rf"compare: {next(iter(changed))} is .* in .* and .* in .*: no pairs"):
        compare(first, results(tmp_path / "c", {"repeat0-run0": 0.5}, **shared | changed))


def test_spread_of_repeats_is_that_of_their_means():
    runs = {"repeat0-run0": 0.5, "repeat0-run1": 0.7, "repeat1-run0": 0.8, "repeat1-run1": 0.8}
    spread = spread_of_repeats({name: {"test_accuracy": accuracy} for name, accuracy in runs.items()})
    assert spread == pytest.approx(0.1)
