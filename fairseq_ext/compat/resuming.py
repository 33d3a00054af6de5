"""Resumed trainings: what fairseq rounds, or counts from 0 again."""

from __future__ import annotations

import functools
import logging
from typing import Any

__all__ = ["keep_master_weights", "keep_moving_average"]

logger = logging.getLogger(__name__)

MASTERS, SCALER = "fp32_params", "loss_scaler"
"""What this suite adds to the optimizer's state: fairseq leaves both there unread."""


def keep_master_weights() -> bool:
    """Keep in a checkpoint what ``--fp16`` and ``--bf16`` update: weights in single precision, of which the model holds
    the rounded ones; and what counts the updates until the loss is scaled otherwise.

    Weights that do not round to those of the model, which was changed since, are left alone.
    """
    from fairseq.optim import fp16_optimizer

    def kept(optimizer: Any, with_masters: bool) -> None:
        save, load = optimizer.state_dict, optimizer.load_state_dict

        @functools.wraps(save)
        def state_dict(self: Any) -> dict[str, Any]:
            state = dict(save(self))
            if self.scaler is not None:
                state[SCALER] = {name: value for name, value in vars(self.scaler).items() if name.startswith("_")}
            if with_masters:
                state[MASTERS] = [weight.detach() for weight in _masters(self)]
            return state

        @functools.wraps(load)
        def load_state_dict(self: Any, state: dict[str, Any], optimizer_overrides: Any = None) -> None:
            load(self, state, optimizer_overrides)
            if self.scaler is not None:
                vars(self.scaler).update(state.get(SCALER, {}))
            if with_masters and not _restore_masters(self, state.get(MASTERS, [])):
                logger.warning(
                    "no single-precision weights of this model in the checkpoint: it resumes from rounded ones"
                )

        optimizer.state_dict, optimizer.load_state_dict = state_dict, load_state_dict

    kept(fp16_optimizer._FP16OptimizerMixin, True)
    kept(fp16_optimizer._MemoryEfficientFP16OptimizerMixin, False)
    return True


def keep_moving_average() -> bool:
    """Let a resumed training go on counting ``--ema-update-freq``, and begin the average of ``--store-ema`` where the
    checkpoint has none: fairseq says that it does, and ends in a ``KeyError``.
    """
    from fairseq import checkpoint_utils
    from fairseq.trainer import Trainer

    load = Trainer.load_checkpoint

    @functools.wraps(load)
    def load_checkpoint(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not self.cfg.ema.store_ema:
            return load(self, *args, **kwargs)
        read = checkpoint_utils.load_checkpoint_to_cpu

        @functools.wraps(read)
        def read_with_average(path: str, *options: Any, **named: Any) -> dict[str, Any]:
            state = read(path, *options, **named)
            if "ema" not in state["extra_state"]:
                logger.warning("%s: has no moving average, which starts from its weights", path)
                state["extra_state"]["ema"] = dict(state["model"])
            return state

        checkpoint_utils.load_checkpoint_to_cpu = read_with_average
        try:
            extra_state = load(self, *args, **kwargs)
        finally:
            checkpoint_utils.load_checkpoint_to_cpu = read
        if extra_state is not None:
            self.ema.update_freq_counter = self.get_num_updates() % self.cfg.ema.ema_update_freq
        return extra_state

    Trainer.load_checkpoint = load_checkpoint
    return True


def _masters(optimizer: Any) -> list[Any]:
    """A tensor for each parameter, or for all of a device."""
    weights = optimizer.fp32_params
    return list(weights.values() if isinstance(weights, dict) else weights)


def _restore_masters(optimizer: Any, saved: list[Any]) -> bool:
    """Whether the saved weights are those that the model's were rounded from; then they are the optimizer's."""
    masters = _masters(optimizer)
    if [weight.shape for weight in masters] != [weight.shape for weight in saved]:
        return False
    rounded = [weight.detach().clone() for weight in optimizer.fp16_params]
    before = [weight.detach().clone() for weight in masters]

    def set_to(weights: list[Any]) -> None:
        for master, weight in zip(masters, weights, strict=True):
            master.data.copy_(weight)
        optimizer._sync_fp32_params_to_fp16()

    set_to(saved)
    same = all(map(_equal, optimizer.fp16_params, rounded))
    if not same:
        set_to(before)
    return same


def _equal(one: Any, other: Any) -> bool:
    return bool((one.detach() == other).all())
