"""Results and checkpoints belong to settings: which of them count as equal."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from fairseq_ext.training import settings
from fairseq_ext.training.checkpoint import Checkpoint
from fairseq_ext.training.errors import OptionError
from fairseq_ext.training.files import read_json
from fairseq_ext.training.options import OptionSet, option
from fairseq_ext.training.pretrained import fingerprint
from fairseq_ext.training.runs import Experiment
from fairseq_ext.training.settings import Blocks, Settings, digest, file_digest, files_digest
from graph.graph_classification import options as graph_classification
from graph.label_graph import options as label_graph
from graph.renode import options as renode
from vision_language.iais import options as iais
from vision_language.image_classification import options as image_classification
from vision_language.muka import options as muka


@dataclass(frozen=True, kw_only=True)
class Older(OptionSet):
    data: str = option()
    lr: float = option(0.1)
    sizes: tuple[int, ...] = option((2, 3))


@dataclass(frozen=True, kw_only=True)
class Placed(Older):
    data: str = option(outcome=False)


@dataclass(frozen=True, kw_only=True)
class Newer(Older):
    dropout: float = option(0.5)


def older(**options):
    return Settings.of(Older(data="a", **options), inputs={"train": "1"})


def newer(train="1", **options):
    return Settings.of(Newer(**{"data": "a", **options}), inputs={"train": train})


def test_settings_are_as_they_are_read_back():
    assert older() == {"data": "a", "lr": 0.1, "sizes": [2, 3], "inputs": {"train": "1"}}
    assert Settings.of(Older(data="a"), inputs={}, seed=1) == {
        "data": "a",
        "lr": 0.1,
        "sizes": [2, 3],
        "inputs": {},
        "seed": 1,
    }


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        (older(), older(), []),
        (older(), newer(), []),
        (older(), newer(dropout=0.1), [("dropout", 0.5, 0.1)]),
        (older(), newer(lr=1.0), [("lr", 0.1, 1.0)]),
        (older(), newer(train="2"), [("inputs.train", "1", "2")]),
        (newer(), older(), [("dropout", 0.5, None)]),
        ({"lr": 0.1, "sizes": [2, 3], "inputs": {"train": "1"}}, newer(), [("data", None, "a")]),
    ],
    ids=["same", "new option", "new option in use", "other", "other data", "option gone", "required option missing"],
)
def test_what_differs(before, now, expected):
    assert list(now.differing(before)) == expected


def test_a_new_option_orphans_neither_results_nor_checkpoints(tmp_path):
    Experiment(tmp_path, older(), device="cpu").add("0", {"accuracy": 0.5})
    Checkpoint(tmp_path / "c.pt", older(), {}, model=nn.Linear(1, 1)).save()
    assert list(Experiment(tmp_path, newer(), device="cpu").runs) == ["0"]
    assert Checkpoint(tmp_path / "c.pt", newer(), {}, model=nn.Linear(1, 1)).restore()
    with pytest.raises(OptionError, match=r"dropout = 0\.5, now dropout = 0\.1"):
        Experiment(tmp_path, newer(dropout=0.1), device="cpu")
    with pytest.raises(OptionError, match=r"trained with other dropout, inputs\.train"):
        Checkpoint(tmp_path / "c.pt", newer("2", dropout=0.1), {}, model=nn.Linear(1, 1)).restore()


def test_what_changes_no_outcome_is_kept_but_not_compared(tmp_path):
    """Of results, too, that do not hold it; and it stays so in the settings that an experiment makes of these."""

    def moved(data):
        return Settings.of(Placed(data=data), inputs={"train": "1"}, leave_out=("lr",), lr=ord(data))

    unsaid = {name: value for name, value in older().items() if name != "data"}
    for before in (older(), moved("b"), unsaid):
        assert list(moved("c").differing(before)) == [] and list(Settings(moved("c")).differing(before)) == []
    Experiment(tmp_path, moved("b"), device="cpu").add("0", {"accuracy": 0.5})
    assert list(Experiment(tmp_path, moved("c"), device="cpu").runs) == ["0"]
    assert read_json(tmp_path / "results.json")["settings"]["data"] == "b"


TRAINERS = (
    *(label_graph.Options, graph_classification.Options, renode.TrainOptions, renode.LargeOptions, iais.Options),
    *(image_classification.Options, muka.TeacherOptions, muka.AmalgamationOptions),
)


@pytest.mark.parametrize("kind", TRAINERS, ids=lambda kind: f"{kind.__module__}.{kind.__name__}")
def test_no_trainer_asks_where_its_data_lies(kind):
    """It is known by its content, so that a training goes on where its folders have been moved."""
    places = {"data", "root", "cache", "workers"} & kind.__dataclass_fields__.keys()
    assert places and places <= set(kind.without_outcome()) <= places | {"encoder"}


def test_digests_differ_where_anything_does():
    ones = torch.ones(2, 3)
    parts = [
        (ones,),
        (ones.numpy().T,),
        (ones.double(),),
        (ones.flatten(),),
        (ones, ones),
        (torch.zeros(2, 3),),
        (ones.bool(),),
        ("a", "b"),
        ("ab",),
        (["a", "b"],),
        (1,),
        ("1",),
        (None,),
        (np.ones(0),),
        (np.ones((0, 3)),),
        (ones.bfloat16(),),
        (ones.bfloat16().T,),
        (ones.bfloat16()[0, 0],),
        (2 * ones.bfloat16(),),
        (ones.to(torch.float8_e4m3fn),),
        (ones.to_sparse(),),
        (ones.bfloat16().to_sparse(),),
        (2 * ones.to_sparse(),),
        (torch.eye(3).to_sparse(),),
        (torch.eye(3)[[1, 0, 2]].to_sparse(),),
    ]
    digests = [digest(*part) for part in parts]
    assert len(set(digests)) == len(parts)
    assert digest(ones) == digest(ones.clone().numpy()) == digest(torch.ones(3, 2).T)
    values = np.arange(1500 * 1500.0).reshape(1500, 1500)
    assert digest(values) == digest(np.asfortranarray(values)) != digest(np.asfortranarray(values.T))
    twice = torch.sparse_coo_tensor([[1, 0, 1], [0, 2, 0]], [0.5, 1.0, 0.5], (2, 3))
    once = torch.tensor([[0.0, 0, 1], [1, 0, 0]])
    assert digest(twice) == digest(once.to_sparse()) == digest(once.to_sparse_csr()) != digest(once)
    assert digest(ones.bfloat16()) == digest(torch.ones(3, 2).bfloat16().T.requires_grad_())


def test_digests_of_stored_results_stay_what_they_are():
    tensors = [torch.arange(6, dtype=dtype).view(2, 3) for dtype in (torch.int64, torch.float32, torch.float16)]
    assert digest(*tensors, torch.tensor([True, False]), np.arange(3), [1, "a"], {"b": None})[:16] == "d52182c11ecf95d0"


@pytest.mark.parametrize("block", [1, 2, 5])
def test_digests_do_not_depend_on_blocks(monkeypatch, block):
    lists = [[], (), [[]], ["\u00e9", None], [{"b": 1, "a": [2, 3]}, [1, [2]], (3,), 4.5, True], ("a", "b", "c", "d")]
    texts = [json.dumps(values, sort_keys=True).encode() for values in lists]
    monkeypatch.setattr(settings, "ENTRIES", block)
    assert [digest(values) for values in lists] == [hashlib.sha256(text + b"\0").hexdigest() for text in texts]
    array = np.arange(12).reshape(6, 2)
    rows = (array[start : start + block] for start in range(0, 6, block))
    assert digest(Blocks("float32", (6, 2), rows)) == digest(array.astype(np.float32)) != digest(array)


@dataclass(frozen=True, kw_only=True)
class Renamed(OptionSet):
    data: str = option()
    step_size: float = option(0.1, aliases=("lr",))
    sizes: tuple[int, ...] = option((2, 3))


def test_digests_of_files_stay_what_they_are(tmp_path):
    """Those of caches and results that are there."""
    contents = {"a.txt": b"abc", "b.txt": b""}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    a, b = (hashlib.sha256(content) for content in contents.values())
    paths = [tmp_path / name for name in contents]
    assert [file_digest(path) for path in paths] == [a.hexdigest(), b.hexdigest()]
    assert a.hexdigest() == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert files_digest(paths) == hashlib.sha256(a.digest() + b.digest()).hexdigest() != files_digest(paths[::-1])
    of_folder = hashlib.sha256(b"a.txt\0" + a.digest() + b"b.txt\0" + b.digest())
    assert fingerprint(tmp_path) == of_folder.hexdigest()


def test_a_renamed_option_is_the_same_setting():
    now = Settings.of(Renamed(data="a", step_size=1.0), inputs={"train": "1"})
    assert list(now.differing(older(lr=1.0))) == []
    assert list(Settings(now).differing(older())) == [("step_size", 0.1, 1.0)]
