"""TensorBoard's curves: the same tags in a folder of each run, and every step once, whatever killed the training."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fairseq_ext.training.board import log_test
from fairseq_ext.training.loop import Training
from fairseq_ext.training.runs import Experiment
from tests.training.boards import scalars


def run(folder, kill_at=0):
    """Eight steps that are saved in pairs, and tested at the best one."""
    training = Training(
        8,
        select="score",
        validate_every=4,
        save_every=2,
        folder=folder,
        settings={},
        parts={"model": nn.Linear(1, 1)},
    )
    for step in training:
        training.log(train_loss=torch.tensor(float(step)), lr=0.1)
        if training.validates:
            training.improved({"epoch": step, "score": 1 / step, "curve": [1.0, 2.0], "converged": True})
        if step == kill_at:
            raise KeyboardInterrupt
    log_test({"test_score": 0.5, "recall": 1, "by_class": {}}, training.best_step)
    return training.record()


@pytest.mark.parametrize("kill_at", [0, 1, 2, 5, 8])
def test_curves_of_a_run(tmp_path, kill_at):
    experiment, folder = Experiment(tmp_path, {}, device="cpu"), tmp_path / "seed1"
    if kill_at:
        with pytest.raises(KeyboardInterrupt):
            experiment.complete({"seed1": lambda: run(folder, kill_at)})
    experiment.complete({"seed1": lambda: run(folder)})
    curves = scalars(tmp_path / "tensorboard" / "seed1")
    assert curves.keys() == {"train/loss", "train/lr", "valid/score", "test/score", "test/recall"}
    assert curves["train/loss"] == {2: 1.5, 4: 3.5, 6: 5.5, 8: 7.5}
    assert curves["valid/score"] == {4: 0.25, 8: 0.125}
    assert curves["test/score"] == {4: 0.5} and curves["test/recall"] == {4: 1.0}


def test_a_run_that_is_tested_again_has_one_test(tmp_path):
    def tested(value):
        def tested_run():
            log_test({"score": value}, 3)
            raise KeyboardInterrupt

        return tested_run

    for value in (0.25, 0.5):
        with pytest.raises(KeyboardInterrupt):
            Experiment(tmp_path, {}, device="cpu").complete({"seed1": tested(value)})
    assert scalars(tmp_path / "tensorboard" / "seed1") == {"test/score": {3: 0.5}}


def test_a_training_without_experiment_writes_beside_its_checkpoint(tmp_path):
    run(tmp_path)
    assert scalars(tmp_path / "tensorboard").keys() == {"train/loss", "train/lr", "valid/score"}


def test_a_training_without_folder_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(None)
    assert not list(tmp_path.iterdir())


def test_only_the_first_process_writes(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_rank", lambda: 1)
    run(tmp_path)
    assert not (tmp_path / "tensorboard").exists()
