"""Every option of every command: that it changes what comes out, and that it is refused where it would not."""

from __future__ import annotations

import json
import shutil

import pytest

from fairseq_ext.training.errors import OptionError
from graph.graph_classification import train as training
from graph.graph_classification.__main__ import main
from tests.graph.graph_classification.conftest import write_tu
from tests.helpers import Row, options_of, words_of

TRAIN = (
    "train --dataset RINGS --root data --out out --runs 1 --epochs 3 --defer-start 0 --hidden-size 8"
    " --num-layers 1 --batch-size 16 --lr 0.01 --device cpu"
)


CROSS_ENTROPY = ("--loss cross-entropy",)
ROWS = {
    "train": {
        "dataset": Row("PATHS"),
        "root": Row("other"),
        "out": Row("elsewhere"),
        "use_node_attr": Row("", "--dataset ATTRIBUTES", ("",)),
        "runs": Row("2", "", ("--folds 4",)),
        "folds": Row("4"),
        "repeats": Row("2"),
        "seed": Row("1"),
        "device": Row("cuda:99"),
        "loss": Row("cross-entropy", "", ("--defer-start 2", "--defer-start 9")),
        "log_end": Row("0.9", "", CROSS_ENTROPY),
        "defer_start": Row("-1", "", CROSS_ENTROPY),
        "hidden_size": Row("9"),
        "num_layers": Row("2"),
        "ratio": Row("0.9"),
        "dropout": Row("0.1"),
        "lr": Row("0.02"),
        "weight_decay": Row("0.1"),
        "batch_size": Row("8"),
        "patience": Row("1"),
        "epochs": Row("2"),
    },
}


OPTIONS = options_of(main.parser())
del OPTIONS["compare"]  # one for all programs: tests/training/test_compare.py


def test_every_option_of_every_command_has_a_row():
    assert {command: set(options) for command, options in OPTIONS.items()} == {
        command: set(rows) for command, rows in ROWS.items()
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Data sets of the same and of other names, one with node attributes."""
    folder = tmp_path_factory.mktemp("every_option")
    nodes = sum(4 + number % 5 for number in range(40))
    attributes = {"node_attributes": "\n".join(str(node % 7) for node in range(nodes))}
    labels = {"node_labels": "\n".join(str(node % 3) for node in range(nodes))}
    write_tu(folder / "data")
    write_tu(folder / "data", "PATHS", graphs=30)
    write_tu(folder / "data", "ATTRIBUTES", **labels, **attributes)
    write_tu(folder / "other", graphs=50)
    return folder


@pytest.fixture
def outcome(folder, tmp_path, monkeypatch):
    """The losses of a training and what it writes, except what it records of its options."""
    real = training.train_epoch

    def run(*words):
        losses = []
        monkeypatch.setattr(training, "train_epoch", lambda *parts: losses.append(real(*parts)) or losses[-1])
        here = tmp_path / str(len(list(tmp_path.iterdir())))
        shutil.copytree(folder, here)
        monkeypatch.chdir(here)
        try:
            main(words)
        except OptionError as error:
            assert "cuda:99" in words, error
            return str(error)
        (results,) = here.rglob("results.json")
        return losses, str(results.relative_to(here)), list(json.loads(results.read_text())["runs"])

    return run


@pytest.mark.parametrize("option", ROWS["train"])
def test_an_option_of_train_changes_what_comes_out(outcome, option):
    row = ROWS["train"][option]
    base = [*TRAIN.split(), *row.given.split()]
    excluded = {"folds": "--runs 1 ", "loss": "--defer-start 0 "}.get(option, "")  # of the base, idle beside it
    changed = [*TRAIN.replace(excluded, "").split(), *row.given.split(), *words_of(OPTIONS["train"][option], row.value)]
    assert str(OPTIONS["train"][option].default) != row.value
    assert outcome(*changed) != outcome(*base)


@pytest.mark.parametrize(
    ("option", "place"), [(option, place) for option, row in ROWS["train"].items() for place in row.idle]
)
def test_an_option_without_effect_is_refused_by_name(folder, tmp_path, monkeypatch, option, place):
    monkeypatch.chdir(folder)
    row = ROWS["train"][option]
    words = ["--loss", "encouraging"] if option == "loss" else words_of(OPTIONS["train"][option], row.value)
    base = TRAIN.replace(" --defer-start 0", "") if "cross-entropy" in place else TRAIN
    with pytest.raises(OptionError, match=f"^{words[0]}.*: has no effect with"):
        main([*base.split(), "--out", str(tmp_path / "out"), *words, *place.split()])
    assert not (tmp_path / "out").exists()
