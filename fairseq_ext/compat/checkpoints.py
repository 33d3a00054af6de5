"""Checkpoints: loaded without running code, written whole or not at all."""

from __future__ import annotations

import argparse
import collections
import contextlib
import functools
import logging
import math
import os
import shutil
import sys
import typing
from typing import Any

import numpy as np

from ..training.errors import CheckpointError, OptionError
from .model_options import first_difference, model_options

__all__ = [
    "allow_checkpoint_types",
    "compare_resumed_models",
    "compare_resumed_tasks",
    "end_finished_trainings",
    "heed_overrides",
    "keep_patience",
    "write_whole_checkpoints",
]

logger = logging.getLogger(__name__)

RESTORED = "checkpoint_last.pt"
"""The default of ``--restore-file``, which a first training has not yet."""


def allow_checkpoint_types() -> bool:
    """Let ``torch.load(weights_only=True)`` read what fairseq's checkpoints hold: configurations and counters.

    Needs no fairseq; where it is loaded, the broadcast between its processes is allowed as well.
    """
    import torch

    if not hasattr(torch.serialization, "add_safe_globals"):
        return False
    from omegaconf import DictConfig, ListConfig
    from omegaconf.base import ContainerMetadata, Metadata
    from omegaconf.nodes import AnyNode

    allowed: list[Any] = [
        argparse.Namespace,
        collections.defaultdict,
        DictConfig,
        ListConfig,
        AnyNode,
        Metadata,
        ContainerMetadata,
    ]
    allowed += [(kind, f"builtins.{kind.__name__}") for kind in (dict, list, int)]
    allowed.append((typing.Any, "typing.Any"))

    allowed += [np.ndarray, np.dtype, *{type(np.dtype(code)) for code in ("f2", "f4", "f8", "i4", "i8", "u1", "?")}]
    # Pickles name these functions by where NumPy kept them at the time: `core` before version 2, `_core` since.
    homes = ("numpy._core.multiarray", "numpy.core.multiarray")
    multiarray = next(sys.modules[home] for home in homes if home in sys.modules)
    for home in homes:
        allowed += [(getattr(multiarray, name), f"{home}.{name}") for name in ("_reconstruct", "scalar")]

    distributed = sys.modules.get("fairseq.distributed.utils")
    if distributed is not None:
        allowed.append(distributed._TensorPlaceholder)
    torch.serialization.add_safe_globals(allowed)
    return True


def write_whole_checkpoints() -> bool:
    """Copy checkpoints through a temporary file, and leave no partial file behind when the disk is full."""
    from fairseq import checkpoint_utils
    from fairseq.file_io import PathManager

    copy, save = PathManager.copy, checkpoint_utils.torch_persistent_save

    @functools.wraps(copy)
    def atomic_copy(src_path: str, dst_path: str, overwrite: bool = False) -> bool:
        if PathManager.path_requires_pathmanager(src_path) or PathManager.path_requires_pathmanager(dst_path):
            return copy(src_path, dst_path, overwrite=overwrite)
        partial = f"{dst_path}.tmp"
        try:
            shutil.copyfile(src_path, partial)
            os.replace(partial, dst_path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.remove(partial)
            raise
        return True

    @functools.wraps(save)
    def clean_save(obj: Any, filename: str, async_write: bool = False) -> None:
        try:
            save(obj, filename, async_write=async_write)
        except BaseException:
            with contextlib.suppress(OSError):
                os.remove(f"{filename}.tmp")
            raise

    PathManager.copy = staticmethod(atomic_copy)
    checkpoint_utils.torch_persistent_save = clean_save
    return True


def heed_overrides() -> bool:
    """Let ``--model-overrides`` reach options that are newer than the checkpoint, and name what no option answers to.

    The arguments of ``from_pretrained`` take the same way, with settings of tokenizers among them: hence no refusal.
    """
    from fairseq import checkpoint_utils
    from fairseq.models import ARCH_MODEL_REGISTRY
    from omegaconf import DictConfig, OmegaConf, open_dict

    upstream = checkpoint_utils.overwrite_args_by_name

    def names(node: Any) -> set[str]:
        inner = node if isinstance(node, dict) else vars(node) if isinstance(node, argparse.Namespace) else {}
        return set(inner).union(*map(names, inner.values()))

    @functools.wraps(upstream)
    def overwrite_args_by_name(cfg: DictConfig, overrides: dict[str, Any]) -> None:
        model = cfg.get("model")
        if isinstance(model, DictConfig):
            dataclass = getattr(ARCH_MODEL_REGISTRY.get(model.get("_name")), "__dataclass", None)
            fields = getattr(dataclass, "__dataclass_fields__", {})
            with open_dict(model):
                for name in (overrides.keys() & fields.keys()) - model.keys():
                    model[name] = None
        idle = sorted(overrides.keys() - names(OmegaConf.to_container(cfg)))
        if idle:
            logger.warning("--model-overrides: this checkpoint has no option %s, nothing is changed", ", ".join(idle))
        upstream(cfg, overrides)

    checkpoint_utils.overwrite_args_by_name = overwrite_args_by_name
    return True


def compare_resumed_tasks() -> bool:
    """Let a task's ``check_checkpoint`` look at the file that a training resumes, which gives it no saved state.

    Refused is also a file to start from that is not there: fairseq starts from random weights then.
    """
    from fairseq.file_io import PathManager
    from fairseq.trainer import Trainer

    load = Trainer.load_checkpoint

    @functools.wraps(load)
    def load_checkpoint(self: Any, filename: str, reset_optimizer: bool = False, *args: Any, **kwargs: Any) -> Any:
        cfg = self.cfg.checkpoint
        option = "--restore-file" if cfg.restore_file != RESTORED else "--continue-once"
        if not PathManager.isfile(filename) and (cfg.restore_file != RESTORED or filename == cfg.continue_once):
            raise CheckpointError(f"{option} {filename}: no such file")
        check = getattr(self.task, "check_checkpoint", None)
        if check is not None and os.path.isfile(filename):
            check(filename, not (cfg.reset_dataloader or reset_optimizer))
        return load(self, filename, reset_optimizer, *args, **kwargs)

    Trainer.load_checkpoint = load_checkpoint
    return True


def compare_resumed_models() -> bool:
    """Refuse to resume, in its own folder, a training whose model computed something else.

    Most options of a model leave the shapes of its weights as they are, so that these would load.
    """
    from fairseq import checkpoint_utils
    from fairseq.trainer import Trainer
    from omegaconf import OmegaConf

    load = Trainer.load_checkpoint

    def options(cfg: Any, args: Any = None) -> dict[str, Any]:
        plain = OmegaConf.to_container(cfg, resolve=True, enum_to_str=True) if OmegaConf.is_config(cfg) else cfg
        return model_options({"cfg": plain, "args": args})

    @functools.wraps(load)
    def load_checkpoint(self: Any, filename: str, *args: Any, **kwargs: Any) -> Any:
        cfg, read = self.cfg.checkpoint, checkpoint_utils.load_checkpoint_to_cpu
        own = os.path.join(cfg.save_dir, RESTORED.replace(".pt", f"{self.checkpoint_suffix}.pt"))
        resets = (cfg.reset_optimizer, cfg.reset_lr_scheduler, cfg.reset_meters, cfg.reset_dataloader)
        if any(resets) or os.path.abspath(filename) != os.path.abspath(own):
            return load(self, filename, *args, **kwargs)

        @functools.wraps(read)
        def compared(*args: Any, **kwargs: Any) -> Any:
            state = read(*args, **kwargs)
            before, now = options(state.get("cfg"), state.get("args")), options(self.cfg)
            if name := first_difference(now, before):
                option = f"--{name.replace('.', '-').replace('_', '-')}"
                raise OptionError(
                    f"{option}: {now[name]} here, but {before[name]} in {filename}, which this training would resume; "
                    f"give another --save-dir (there --finetune-from-model {filename} starts from its weights), or "
                    "--reset-optimizer to go on in this one"
                )
            return state

        checkpoint_utils.load_checkpoint_to_cpu = compared
        try:
            return load(self, filename, *args, **kwargs)
        finally:
            checkpoint_utils.load_checkpoint_to_cpu = read

    Trainer.load_checkpoint = load_checkpoint
    return True


class _Finished:
    """In place of the iterator of a training that has come to its end."""

    next_epoch_idx = math.nan  # which no number of epochs reaches, nor infinity


def end_finished_trainings() -> bool:
    """Train nothing where the checkpoint that is resumed has all its updates, or the last validation of its patience.

    fairseq looks at both only after an update, and writes its checkpoints anew then.
    """
    from fairseq import checkpoint_utils

    upstream = checkpoint_utils.load_checkpoint

    @functools.wraps(upstream)
    def load_checkpoint(cfg: Any, trainer: Any, **kwargs: Any) -> Any:
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

    checkpoint_utils.load_checkpoint = load_checkpoint
    return True


def keep_patience() -> bool:
    """Keep in a checkpoint what ``--patience`` counts: the best value so far, and the validations since."""
    from fairseq.trainer import Trainer

    save, load = Trainer.save_checkpoint, Trainer.load_checkpoint

    def counter() -> Any:
        homes = [sys.modules.get(name) for name in ("__main__", "__mp_main__", "fairseq_cli.train")]
        return next(filter(None, [getattr(home, "should_stop_early", None) for home in homes]), None)

    @functools.wraps(save)
    def save_checkpoint(self: Any, filename: str, extra_state: dict[str, Any]) -> Any:
        return save(self, filename, {**extra_state, "patience": dict(vars(counter() or argparse.Namespace()))})

    @functools.wraps(load)
    def load_checkpoint(
        self: Any,
        filename: str,
        reset_optimizer: bool = False,
        reset_lr_scheduler: bool = False,
        optimizer_overrides: dict[str, Any] | None = None,
        reset_meters: bool = False,
    ) -> Any:
        state = load(self, filename, reset_optimizer, reset_lr_scheduler, optimizer_overrides, reset_meters)
        count = counter()
        if state is not None and count is not None and not reset_optimizer and not reset_meters:
            vars(count).update(state.get("patience", {}))
            self.validations_without_gain = getattr(count, "num_runs", 0) if "patience" in state else 0
        return state

    Trainer.save_checkpoint, Trainer.load_checkpoint = save_checkpoint, load_checkpoint
    return True
