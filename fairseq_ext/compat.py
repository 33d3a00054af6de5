"""Six repairs that fairseq 0.12.3 needs on current PyTorch and NumPy.

``import fairseq_ext`` applies them when fairseq is loaded; no installed file is edited. ``FAIRSEQ_EXT_NO_COMPAT=1``
turns them all off.

=================  =================================================================================================
Repair             Without it
=================  =================================================================================================
safe checkpoints   ``torch.load`` (safe by default since 2.6) refuses checkpoints of legacy architectures, checkpoints
                   made with ``--eval-bleu``, and the broadcast with which several processes resume. Only inert types
                   are allowed: a hostile pickle is still refused.
last batch         up to ``required_batch_size_multiple - 1`` (7) sentences of every validation and test set are
                   dropped without a word, the longest ones; a set of fewer than 8 sentences yields no batch at all.
numpy.compat       ``--sample-break-mode eos`` uses ``numpy.compat.long``, which NumPy 2 removed.
whole checkpoints  a full disk, or a kill, during the copy to ``checkpoint_last.pt`` destroys the previous one.
damaged files      a truncated or refused checkpoint ends in a traceback that does not name the file.
hydra refusals     with ``fairseq-hydra-train`` an option that is refused ends in a traceback and exit code 1.
=================  =================================================================================================
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import functools
import logging
import os
import shutil
import sys
import types
import typing
from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["OFF_SWITCH", "allow_checkpoint_types", "apply", "patched"]

OFF_SWITCH = "FAIRSEQ_EXT_NO_COMPAT"

logger = logging.getLogger(__name__)
_patched: list[str] = []


def apply() -> list[str]:
    """Apply every repair that is missing; calling it again changes nothing.

    Returns:
        The names of all repairs now in place, as :func:`patched`.
    """
    if os.environ.get(OFF_SWITCH, "0") not in ("", "0"):
        return patched()
    news = [name for name, repair in _REPAIRS.items() if name not in _patched and repair()]
    if news:
        _patched.extend(news)
        logger.info("fairseq repaired: %s (%s=1 turns this off)", ", ".join(news), OFF_SWITCH)
    return patched()


def patched() -> list[str]:
    """The names of the repairs in place in this process."""
    return list(_patched)


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


def _keep_last_batch() -> bool:
    """Give back the indices that fairseq's ``batch_by_size`` cuts off the end; no index makes no batch."""
    from fairseq.data import data_utils

    upstream = data_utils.batch_by_size

    @functools.wraps(upstream)
    def batch_by_size(indices: Any, *args: Any, **kwargs: Any) -> list[Any]:
        if not isinstance(indices, np.ndarray):
            indices = np.fromiter(indices, dtype=np.int64, count=-1)
        if len(indices) == 0:
            return []
        batches = list(upstream(indices, *args, **kwargs))
        covered = sum(len(batch) for batch in batches)
        # The batches follow the order of the indices, so what is missing is the end.
        if covered < len(indices):
            batches.append(indices[covered:])
        return batches

    data_utils.batch_by_size = batch_by_size
    return True


def _restore_numpy_compat() -> bool:
    """``numpy.compat.long`` was Python's ``int``."""
    if hasattr(np, "compat") and hasattr(np.compat, "long"):
        return False
    shim = types.ModuleType("numpy.compat", "Gone from NumPy 2; fairseq reads `long` from it.")
    shim.long = int  # type: ignore[attr-defined]
    np.compat = shim  # type: ignore[attr-defined]
    return True


def _write_whole_checkpoints() -> bool:
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


def _name_damaged_checkpoints() -> bool:
    """Let the error of a checkpoint that cannot be read name the file, in one line."""
    from fairseq import checkpoint_utils

    from .files import load_safely

    load = checkpoint_utils.load_checkpoint_to_cpu

    @functools.wraps(load)
    def named_load(path: str, *args: Any, **kwargs: Any) -> Any:
        try:
            return load(path, *args, **kwargs)
        except Exception:
            if os.path.isfile(path):
                load_safely(path)  # its errors say what is wrong; where it can read the file, fairseq's own stands
            raise

    checkpoint_utils.load_checkpoint_to_cpu = named_load
    return True


def _end_hydra_in_one_line() -> bool:
    """Let bad input end a hydra job as it ends every other program: hydra keeps any ``Exception`` for a traceback."""
    from hydra.core import utils

    from .errors import InputError

    job: Any = utils.JobReturn
    kept = job.return_value

    def keep(self: Any, value: Any) -> None:
        if isinstance(value, InputError):
            raise SystemExit(value.code) from value
        kept.__set__(self, value)

    job.return_value = kept.setter(keep)
    return True


_REPAIRS: dict[str, Callable[[], bool]] = {
    "safe checkpoints": allow_checkpoint_types,
    "last batch": _keep_last_batch,
    "numpy.compat": _restore_numpy_compat,
    "whole checkpoints": _write_whole_checkpoints,
    "damaged files": _name_damaged_checkpoints,
    "hydra refusals": _end_hydra_in_one_line,
}
