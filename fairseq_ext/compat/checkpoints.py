"""Checkpoints: loaded without running code, written whole or not at all."""

from __future__ import annotations

import argparse
import collections
import contextlib
import logging
import os
import shutil
import sys
import typing
from typing import Any

import numpy as np

from fairseq_ext.compat.wrapping import wrapping

__all__ = ["allow_checkpoint_types", "heed_overrides", "write_whole_checkpoints"]

logger = logging.getLogger(__name__)


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

    @wrapping(PathManager, "copy")
    def atomic_copy(upstream: Any, src_path: str, dst_path: str, overwrite: bool = False) -> bool:
        if PathManager.path_requires_pathmanager(src_path) or PathManager.path_requires_pathmanager(dst_path):
            return upstream(src_path, dst_path, overwrite=overwrite)
        partial = f"{dst_path}.tmp"
        try:
            shutil.copyfile(src_path, partial)
            os.replace(partial, dst_path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.remove(partial)
            raise
        return True

    @wrapping(checkpoint_utils, "torch_persistent_save")
    def clean_save(upstream: Any, obj: Any, filename: str, async_write: bool = False) -> None:
        try:
            upstream(obj, filename, async_write=async_write)
        except BaseException:
            with contextlib.suppress(OSError):
                os.remove(f"{filename}.tmp")
            raise

    return True


def heed_overrides() -> bool:
    """Let ``--model-overrides`` reach options that are newer than the checkpoint, and name what no option answers to.

    The arguments of ``from_pretrained`` take the same way, with settings of tokenizers among them: hence no refusal.
    """
    from fairseq import checkpoint_utils
    from fairseq.models import ARCH_MODEL_REGISTRY
    from omegaconf import DictConfig, OmegaConf, open_dict

    def names(node: Any, of_namespaces: bool = True) -> set[str]:
        inner = node if isinstance(node, dict) else {}
        if of_namespaces and isinstance(node, argparse.Namespace):
            inner = vars(node)
        return set(inner).union(*(names(value, of_namespaces) for value in inner.values()))

    @wrapping(checkpoint_utils, "overwrite_args_by_name")
    def overwrite_args_by_name(upstream: Any, cfg: DictConfig, overrides: dict[str, Any]) -> None:
        model = cfg.get("model")
        if isinstance(model, DictConfig):
            dataclass = getattr(ARCH_MODEL_REGISTRY.get(model.get("_name")), "__dataclass", None)
            fields = getattr(dataclass, "__dataclass_fields__", {})
            with open_dict(model):
                for name in (overrides.keys() & fields.keys()) - model.keys():
                    model[name] = None
        known = names(OmegaConf.to_container(cfg)) | {"generation_args"}  # which from_pretrained itself reads
        upstream(cfg, overrides)
        # Where bpe or tokenizer was chosen just now, its options are there. A namespace takes any name.
        known |= names(OmegaConf.to_container(cfg), of_namespaces=False)
        if idle := sorted(overrides.keys() - known):
            message = "this checkpoint has no option %s (--model-overrides, or from_pretrained): nothing is changed"
            logger.warning(message, ", ".join(idle))

    return True
