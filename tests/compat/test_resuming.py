"""A training that is resumed goes on as one that was never killed: weights in single precision, counters, averages."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from fairseq import checkpoint_utils
from fairseq.optim import fp16_optimizer
from fairseq.optim.dynamic_loss_scaler import DynamicLossScaler
from fairseq.trainer import Trainer
from fairseq_cli.train import should_stop_early
from omegaconf import OmegaConf

from fairseq_ext.compat import resuming


class Half(fp16_optimizer._FP16OptimizerMixin):
    """fairseq's, of given weights, beside an optimizer that has no state."""

    def __init__(self, weights, flat):
        super().__init__()
        self.fp16_params = [torch.nn.Parameter(weight.bfloat16()) for weight in weights]
        rounded = [weight.detach().float() for weight in self.fp16_params]
        self.fp32_params = {None: torch.cat([w.flatten() for w in rounded])} if flat else rounded
        self.scaler = DynamicLossScaler()
        self.fp32_optimizer = SimpleNamespace(state_dict=dict, load_state_dict=lambda state, overrides: None)

    @property
    def masters(self):
        return torch.cat([weight.flatten() for weight in resuming._masters(self)])


@pytest.mark.parametrize("flat", [False, True], ids=["fp16_no_flatten_grads and bf16", "fp16"])
def test_a_resumed_training_keeps_its_weights_in_single_precision(flat, caplog):
    weights = [torch.rand(5), torch.rand(3, 2)]
    exact = torch.cat([weight.flatten() for weight in weights])
    trained = Half(weights, flat)
    rounded = trained.masters.clone()
    for master, weight in zip(resuming._masters(trained), [exact] if flat else weights, strict=True):
        master.copy_(weight)
    trained.scaler.update()
    saved = trained.state_dict()
    assert not torch.equal(exact, rounded)

    resumed = Half(weights, flat)
    resumed.load_state_dict(saved)
    assert torch.equal(resumed.masters, exact) and vars(resumed.scaler) == vars(trained.scaler) and not caplog.records
    assert torch.equal(torch.cat([weight.detach().flatten() for weight in resumed.fp16_params]).float(), rounded)

    older = Half(weights, flat)
    older.load_state_dict({})
    assert torch.equal(older.masters, rounded)
    changed = Half([weight + 1 for weight in weights], flat)
    kept = changed.masters.clone()
    changed.load_state_dict(saved)
    assert torch.equal(changed.masters, kept) and not torch.equal(kept, rounded)
    assert torch.equal(torch.cat([weight.detach().flatten() for weight in changed.fp16_params]).float(), kept)
    assert [record.message for record in caplog.records] == [caplog.records[0].message] * 2
    assert "no single-precision weights" in caplog.records[0].message


def test_a_moving_average_starts_and_goes_on_where_a_training_is_resumed(monkeypatch, caplog):
    states = {"new.pt": {"ema": {"w": 2}}, "old.pt": {}}
    states = {name: {"model": {"w": 1}, "extra_state": extra} for name, extra in states.items()}
    monkeypatch.setattr(checkpoint_utils, "load_checkpoint_to_cpu", states.get)
    read = checkpoint_utils.load_checkpoint_to_cpu
    load = lambda self, file: checkpoint_utils.load_checkpoint_to_cpu(file)["extra_state"]  # noqa: E731
    monkeypatch.setattr(Trainer, "load_checkpoint", load)
    resuming.keep_moving_average()
    trainer = SimpleNamespace(ema=SimpleNamespace(update_freq_counter=0), get_num_updates=lambda: 13)
    for store in (False, True):
        trainer.cfg = SimpleNamespace(ema=SimpleNamespace(store_ema=store, ema_update_freq=5))
        found = {name: Trainer.load_checkpoint(trainer, name) for name in ("new.pt", "old.pt")}
        assert found == {"new.pt": {"ema": {"w": 2}}, "old.pt": {"ema": {"w": 1}} if store else {}}
        assert trainer.ema.update_freq_counter == (3 if store else 0)
        assert checkpoint_utils.load_checkpoint_to_cpu == read
    assert [record.message.partition(",")[0] for record in caplog.records] == ["old.pt: has no moving average"]


def test_a_resumed_training_keeps_its_patience(monkeypatch):
    saved = {}
    monkeypatch.setattr(Trainer, "save_checkpoint", lambda self, file, state: saved.update({file: state}))
    monkeypatch.setattr(Trainer, "load_checkpoint", lambda self, file, *reset: saved[file])
    resuming.keep_patience()
    trainer = Trainer.__new__(Trainer)
    cfg = OmegaConf.create({"checkpoint": {"patience": 3, "maximize_best_checkpoint_metric": False}})

    def stops(*losses):
        return [should_stop_early(cfg, loss) for loss in losses]

    monkeypatch.setattr(should_stop_early, "__dict__", {})
    assert stops(1.0, 2.0) == [False, False]
    trainer.save_checkpoint("x.pt", {"best": 1.0})
    assert saved["x.pt"]["best"] == 1.0
    for reset, stopped in (((), True), ((True,), False), ((False, False, None, True), False)):
        should_stop_early.__dict__.clear()  # another process
        trainer.validations_without_gain = 0
        trainer.load_checkpoint("x.pt", *reset)
        assert trainer.validations_without_gain == (0 if reset else 1)
        assert stops(2.0, 2.0)[-1] == stopped


@pytest.mark.parametrize(
    ("updates", "most", "patience", "without_gain", "reason"),
    [
        (7, 0, 0, 0, None),
        (6, 7, 0, 3, None),
        (7, 7, 0, 0, "7 updates are made, --max-update is 7"),
        (6, 7, 3, 2, None),
        (6, 7, 3, 3, "3 validations without a gain, --patience is 3"),
    ],
)
def test_a_finished_training_has_no_epoch_left(monkeypatch, caplog, updates, most, patience, without_gain, reason):
    monkeypatch.setattr(checkpoint_utils, "load_checkpoint", lambda cfg, trainer: ({}, "batches"))
    resuming.end_finished_trainings()
    cfg = OmegaConf.create({"optimization": {"max_update": most}, "checkpoint": {"patience": patience}})
    trainer = SimpleNamespace(get_num_updates=lambda: updates, cfg=cfg, validations_without_gain=without_gain)
    with caplog.at_level("INFO"):
        iterator = checkpoint_utils.load_checkpoint(cfg.checkpoint, trainer)[1]
    assert (iterator == "batches") == (reason is None)
    if reason is not None:
        assert caplog.messages == [f"nothing left to train: {reason}"]
        assert not any(iterator.next_epoch_idx <= epochs for epochs in (0, 10, math.inf))
