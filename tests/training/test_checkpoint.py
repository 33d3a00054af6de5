"""A training is resumed only from a checkpoint of its own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import nn

from fairseq_ext.training.checkpoint import BestWeights, Checkpoint, RandomState
from fairseq_ext.training.errors import CheckpointError, OptionError
from fairseq_ext.training.files import load_safely

SETTINGS = {"lr": 0.1, "inputs": {"train": "a", "valid": "b"}}


def checkpoint_of(path, model, settings=SETTINGS, **progress):
    return Checkpoint(path, settings, {"step": 0, "history": [], **progress}, model=model, scaler=None)


def test_restores_parts_and_progress_in_place(tmp_path):
    model, progress = nn.Linear(2, 1), {"step": 3, "history": [1.5]}
    assert not checkpoint_of(tmp_path / "checkpoint.pt", model).restore()
    checkpoint_of(tmp_path / "checkpoint.pt", model, **progress).save()
    assert load_safely(tmp_path / "checkpoint.pt").keys() == {"settings", "progress", "model"}
    other = checkpoint_of(tmp_path / "checkpoint.pt", nn.Linear(2, 1))
    kept = other.progress
    assert other.restore() and kept == progress
    assert torch.equal(other.parts["model"].weight, model.weight)


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({**SETTINGS, "lr": 0.2}, "lr"),
        ({**SETTINGS, "inputs": {"train": "c", "valid": "b"}}, "inputs.train"),
        ({"lr": 0.1, "new": 1, "inputs": {"train": "a"}}, "inputs.valid, new"),
    ],
)
def test_other_settings_are_named(tmp_path, settings, names):
    checkpoint_of(tmp_path / "checkpoint.pt", nn.Linear(2, 1)).save()
    with pytest.raises(OptionError) as error:
        checkpoint_of(tmp_path / "checkpoint.pt", nn.Linear(2, 1), settings).restore()
    path = tmp_path / "checkpoint.pt"
    assert str(error.value) == f"--out: {path} was trained with other {names}: choose another folder, or delete it"


def test_parts_that_do_not_fit(tmp_path):
    checkpoint_of(tmp_path / "checkpoint.pt", nn.Linear(2, 1)).save()
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt: does not fit its model; delete it to start anew"):
        checkpoint_of(tmp_path / "checkpoint.pt", nn.Linear(3, 1)).restore()
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt: not a checkpoint of this training"):
        checkpoint_of(tmp_path / "checkpoint.pt", nn.Linear(2, 1), more=0).restore()


def test_the_random_state_goes_on_where_it_was(tmp_path):
    checkpoint = Checkpoint(tmp_path / "checkpoint.pt", SETTINGS, {}, random=RandomState())
    checkpoint.save()
    expected = torch.rand(3)
    torch.rand(5)
    assert checkpoint.restore()
    assert torch.equal(torch.rand(3), expected)


def test_proving_that_it_can_be_saved_leaves_nothing(tmp_path):
    checkpoint = checkpoint_of(tmp_path / "checkpoint.pt", nn.Linear(2, 1))
    checkpoint.prove()
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"cannot write .*file/checkpoint.pt"):
        checkpoint_of(tmp_path / "file" / "checkpoint.pt", nn.Linear(2, 1)).prove()


def test_other_processes_never_see_the_proof(tmp_path, monkeypatch):
    """They would begin to read a file that goes away again."""
    written, replace = [], os.replace

    def noted(source, target):
        written.append(Path(target).name)
        replace(source, target)

    monkeypatch.setattr(os, "replace", noted)
    checkpoint = checkpoint_of(tmp_path / "checkpoint.pt", nn.Linear(2, 1))
    checkpoint.prove()
    assert written and "checkpoint.pt" not in written
    checkpoint.save()
    assert written[-1] == "checkpoint.pt"


def test_best_weights_outlive_later_steps_and_a_checkpoint(tmp_path):
    def parts():
        model = nn.Linear(2, 1)
        return model, BestWeights(model)

    model, best = parts()
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    best.keep()
    with torch.no_grad():
        model.weight.add_(1)
    Checkpoint(tmp_path / "a.pt", {}, {"step": 1}, model=model, best=best).save()
    model, best = parts()
    Checkpoint(tmp_path / "a.pt", {}, {"step": 0}, model=model, best=best).restore()
    assert not torch.equal(model.weight, kept["weight"])
    best.restore()
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())


def test_best_weights_of_another_model_are_refused(tmp_path):
    model = nn.Linear(2, 1)
    best = BestWeights(model)
    best.keep()
    Checkpoint(tmp_path / "a.pt", {}, {"step": 1}, best=best).save()
    with pytest.raises(CheckpointError, match="does not fit its model"):
        Checkpoint(tmp_path / "a.pt", {}, {"step": 0}, best=BestWeights(nn.Linear(3, 1))).restore()


def test_best_weights_that_were_never_kept_leave_the_model():
    model = nn.Linear(2, 1)
    weight = model.weight.clone()
    BestWeights(model).restore()
    assert torch.equal(model.weight, weight)
