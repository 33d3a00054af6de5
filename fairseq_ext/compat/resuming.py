"""Resumed trainings: repairs of state that fairseq does not compare, rounds, or counts from 0 again."""

from __future__ import annotations

import argparse
import contextlib
import functools
import logging
import math
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

from fairseq_ext.compat.model_options import first_difference, model_options
from fairseq_ext.compat.wrapping import wrapping
from fairseq_ext.training.errors import CheckpointError, OptionError
from fairseq_ext.training.options import flag

__all__ = [
    "compare_resumed_models",
    "compare_resumed_tasks",
    "each_file_read",
    "end_finished_trainings",
    "keep_master_weights",
    "keep_moving_average",
    "keep_patience",
]

logger = logging.getLogger(__name__)

RESTORED = "checkpoint_last.pt"
"""The default of ``--restore-file``, which a first training has not yet."""

MASTERS, SCALER = "fp32_params", "loss_scaler"
"""What this suite adds to the optimizer's state: fairseq leaves both there unread."""


def compare_resumed_tasks() -> bool:
    """Let a task's ``check_checkpoint`` look at the file that a training resumes: fairseq gives a task no saved state.

    A file to start from that does not exist is refused, too: fairseq would start from random weights.
    """
    from fairseq.file_io import PathManager
    from fairseq.trainer import Trainer

    @wrapping(Trainer, "load_checkpoint")
    def load_checkpoint(
        upstream: Any, self: Any, filename: str, reset_optimizer: bool = False, *args: Any, **kwargs: Any
    ) -> Any:
        cfg = self.cfg.checkpoint
        option = "--restore-file" if cfg.restore_file != RESTORED else "--continue-once"
        if not PathManager.isfile(filename) and (cfg.restore_file != RESTORED or filename == cfg.continue_once):
            raise CheckpointError(f"{option} {filename}: no such file")
        check = getattr(self.task, "check_checkpoint", None)
        if check is not None and os.path.isfile(filename):
            check(filename, not (cfg.reset_dataloader or reset_optimizer))
        return upstream(self, filename, reset_optimizer, *args, **kwargs)

    return True


def compare_resumed_models() -> bool:
    """Refuse to resume, in its own folder, a training whose model computed something else.

    Most model options do not change the shapes of the weights, so that the weights would load.
    """
    from fairseq.trainer import Trainer
    from omegaconf import OmegaConf

    def options(cfg: Any, args: Any = None) -> dict[str, Any]:
        plain = OmegaConf.to_container(cfg, resolve=True, enum_to_str=True) if OmegaConf.is_config(cfg) else cfg
        return model_options({"cfg": plain, "args": args})

    @wrapping(Trainer, "load_checkpoint")
    def load_checkpoint(upstream: Any, self: Any, filename: str, *args: Any, **kwargs: Any) -> Any:
        cfg = self.cfg.checkpoint
        own = os.path.join(cfg.save_dir, RESTORED.replace(".pt", f"{self.checkpoint_suffix}.pt"))
        resets = (cfg.reset_optimizer, cfg.reset_lr_scheduler, cfg.reset_meters, cfg.reset_dataloader)
        if any(resets) or os.path.abspath(filename) != os.path.abspath(own):
            return upstream(self, filename, *args, **kwargs)

        def compare(path: str, state: dict[str, Any]) -> None:
            before, now = options(state.get("cfg"), state.get("args")), options(self.cfg)
            if name := first_difference(now, before):
                option = flag(name.replace(".", "_"))
                raise OptionError(
                    f"{option}: {now[name]} here, but {before[name]} in {filename}, which this training would resume; "
                    f"give another --save-dir (there --finetune-from-model {filename} starts from its weights), or "
                    "--reset-optimizer to go on in this one"
                )

        with each_file_read(compare):
            return upstream(self, filename, *args, **kwargs)

    return True


@contextlib.contextmanager
def each_file_read(look: Callable[[str, dict[str, Any]], None]) -> Iterator[None]:
    """Call ``look`` with the path and the state of each checkpoint that fairseq reads, before it uses it."""
    from fairseq import checkpoint_utils

    read = checkpoint_utils.load_checkpoint_to_cpu

    @functools.wraps(read)
    def looked_at(path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        state = read(path, *args, **kwargs)
        look(path, state)
        return state

    checkpoint_utils.load_checkpoint_to_cpu = looked_at
    try:
        yield
    finally:
        checkpoint_utils.load_checkpoint_to_cpu = read


class _Finished:
    """Takes the place of the iterator of a training that has come to its end."""

    next_epoch_idx = math.nan  # no number of epochs is above it, not even infinity


def end_finished_trainings() -> bool:
    """Train nothing if the checkpoint that is resumed has all its updates, or the last validation of its patience.

    fairseq checks both only after an update, and then writes its checkpoints anew.
    """
    from fairseq import checkpoint_utils

    @wrapping(checkpoint_utils, "load_checkpoint")
    def load_checkpoint(upstream: Any, cfg: Any, trainer: Any, **kwargs: Any) -> Any:
        state, iterator = upstream(cfg, trainer, **kwargs)
        updates, most = trainer.get_num_updates(), trainer.cfg.optimization.max_update or math.inf
        without_gain = getattr(trainer, "validations_without_gain", 0)  # see keep_patience
        if updates >= most:
            reason = f"{updates} updates are made, --max-update is {most}"
        elif 0 < cfg.patience <= without_gain:
            reason = f"{without_gain} validations without a gain, --patience is {cfg.patience}"
        else:
            return state, iterator
        logger.info("nothing left to train: %s", reason)
        return state, _Finished()

    return True


def keep_patience() -> bool:
    """Keep the state of ``--patience`` in a checkpoint: the best value so far, and the validations since."""
    from fairseq.trainer import Trainer

    def counter() -> Any:
        homes = [sys.modules.get(name) for name in ("__main__", "__mp_main__", "fairseq_cli.train")]
        return next(filter(None, [getattr(home, "should_stop_early", None) for home in homes]), None)

    @wrapping(Trainer, "save_checkpoint")
    def save_checkpoint(upstream: Any, self: Any, filename: str, extra_state: dict[str, Any]) -> Any:
        return upstream(self, filename, {**extra_state, "patience": dict(vars(counter() or argparse.Namespace()))})

    @wrapping(Trainer, "load_checkpoint")
    def load_checkpoint(
        upstream: Any,
        self: Any,
        filename: str,
        reset_optimizer: bool = False,
        reset_lr_scheduler: bool = False,
        optimizer_overrides: dict[str, Any] | None = None,
        reset_meters: bool = False,
    ) -> Any:
        state = upstream(self, filename, reset_optimizer, reset_lr_scheduler, optimizer_overrides, reset_meters)
        count = counter()
        if state is not None and count is not None and not reset_optimizer and not reset_meters:
            vars(count).update(state.get("patience", {}))
            self.validations_without_gain = getattr(count, "num_runs", 0) if "patience" in state else 0
        return state

    return True


def keep_master_weights() -> bool:
    """Keep in a checkpoint the state of ``--fp16`` and ``--bf16``: the weights in single precision, which the model
    holds rounded, and the count of updates until the scale of the loss changes.

    Weights that do not round to those of the model are not used: the model was changed since.
    """
    from fairseq.optim import fp16_optimizer

    def kept(optimizer: Any, with_masters: bool) -> None:
        @wrapping(optimizer, "state_dict")
        def state_dict(upstream: Any, self: Any) -> dict[str, Any]:
            state = dict(upstream(self))
            if self.scaler is not None:
                state[SCALER] = {name: value for name, value in vars(self.scaler).items() if name.startswith("_")}
            if with_masters:
                state[MASTERS] = [weight.detach() for weight in _masters(self)]
            return state

        @wrapping(optimizer, "load_state_dict")
        def load_state_dict(upstream: Any, self: Any, state: dict[str, Any], optimizer_overrides: Any = None) -> None:
            upstream(self, state, optimizer_overrides)
            if self.scaler is not None:
                vars(self.scaler).update(state.get(SCALER, {}))
            if with_masters and not _restore_masters(self, state.get(MASTERS, [])):
                logger.warning(
                    "no single-precision weights of this model in the checkpoint: it resumes from rounded ones"
                )

    kept(fp16_optimizer._FP16OptimizerMixin, True)
    kept(fp16_optimizer._MemoryEfficientFP16OptimizerMixin, False)
    return True


def keep_moving_average() -> bool:
    """Let a resumed training go on counting ``--ema-update-freq``, and begin the average of ``--store-ema`` if the
    checkpoint has none: fairseq announces to begin it, but ends in a ``KeyError``.
    """
    from fairseq.trainer import Trainer

    def begin(path: str, state: dict[str, Any]) -> None:
        if "ema" not in state["extra_state"]:
            logger.warning("%s: has no moving average, which starts from its weights", path)
            state["extra_state"]["ema"] = dict(state["model"])

    @wrapping(Trainer, "load_checkpoint")
    def load_checkpoint(upstream: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
        if not self.cfg.ema.store_ema:
            return upstream(self, *args, **kwargs)
        with each_file_read(begin):
            extra_state = upstream(self, *args, **kwargs)
        if extra_state is not None:
            self.ema.update_freq_counter = self.get_num_updates() % self.cfg.ema.ema_update_freq
        return extra_state

    return True


def _masters(optimizer: Any) -> list[Any]:
    """The weights in single precision: a tensor for each parameter, or one for all parameters on a device."""
    weights = optimizer.fp32_params
    return list(weights.values() if isinstance(weights, dict) else weights)


def _restore_masters(optimizer: Any, saved: list[Any]) -> bool:
    """Give the optimizer the saved weights if they round to the model's weights; returns whether they do."""
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
