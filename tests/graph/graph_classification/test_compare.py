"""Two experiments, paired by their splits."""

from __future__ import annotations

import json

import pytest

from fairseq_ext.training.errors import OptionError
from fairseq_ext.training.files import write_json
from graph.graph_classification.__main__ import main
from graph.graph_classification.train import spread_of_repeats


def results(folder, **settings):
    folder.mkdir()
    protocol = {"folds": 0, "runs": 10, "repeats": 1, "seed": 0, "inputs": {"graphs": "a"}}
    runs = {"repeat0-run0": {"test_accuracy": 0.5}}
    write_json(folder / "results.json", {"settings": protocol | settings, "runs": runs})
    return str(folder)


@pytest.mark.parametrize("changed", ["folds", "runs", "repeats", "seed"])
def test_runs_of_other_splits_are_no_pairs(tmp_path, capsys, changed):
    first = results(tmp_path / "a", loss="encouraging")
    main(["compare", first, results(tmp_path / "b", loss="cross-entropy")])
    assert json.loads(capsys.readouterr().out.splitlines()[1])["runs"] == 1
    with pytest.raises(OptionError, match=rf"^compare: {changed} is .* in .*a and 99 in .*c: no pairs$"):
        main(["compare", first, results(tmp_path / "c", **{changed: 99})])


def test_spread_of_repeats_is_that_of_their_means():
    runs = {"repeat0-run0": 0.5, "repeat0-run1": 0.7, "repeat1-run0": 0.8, "repeat1-run1": 0.8}
    spread = spread_of_repeats({name: {"test_accuracy": accuracy} for name, accuracy in runs.items()})
    assert spread == pytest.approx(0.1)
