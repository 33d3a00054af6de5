"""Two experiments, paired by their seeds where nothing else that decides them differs."""

from __future__ import annotations

import pytest

from fairseq_ext.training.errors import OptionError
from fairseq_ext.training.files import write_json
from vision_language.image_classification.compare import Pair, compare

SHARED = {
    "inputs": {"train": "a"},
    "long_tail": "",
    "imbalance_factor": 100.0,
    "network": "resnet32",
    "epochs": 9,
    "batch_size": 64,
}


def results(folder, **settings):
    folder.mkdir()
    write_json(folder / "results.json", {"settings": settings, "runs": {"seed1": {"test_accuracy": 0.5}}})
    return str(folder)


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("inputs", {"train": "b"}),
        ("long_tail", "step"),
        ("imbalance_factor", 10.0),
        ("network", "resnet20"),
        ("epochs", 8),
        ("batch_size", 32),
    ],
)
def test_runs_that_differ_in_more_than_the_method_are_no_pairs(tmp_path, name, other):
    first = results(tmp_path / "first", loss="encouraging", **SHARED)
    same = results(tmp_path / "same", loss="cross-entropy", lr=1.0, **SHARED)
    assert compare(Pair(first=first, second=same))["runs"] == 1
    changed = results(tmp_path / "changed", **SHARED | {name: other})
    with pytest.raises(OptionError, match=rf"^compare: {name} differs between .*first and .*changed: no pairs$"):
        compare(Pair(first=first, second=changed))
