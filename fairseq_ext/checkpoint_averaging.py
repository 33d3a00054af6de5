"""Average the weights of several checkpoints of one training run, or take its exponential moving average out.

The command line is ``fairseq-ext average``. The mean of the last checkpoints is what most published translation
scores were measured with. Sums run in float64 and the result takes back the type that each tensor had. fairseq itself
is not imported.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from fairseq_ext.compat import allow_checkpoint_types
from fairseq_ext.compat.model_options import first_difference, model_options
from fairseq_ext.training.errors import CheckpointError
from fairseq_ext.training.files import load_safely
from fairseq_ext.training.progress import progress
from fairseq_ext.training.weights import check_finite

__all__ = ["average_checkpoints", "last_checkpoints", "load_checkpoint"]

_NAMES = {
    "epoch": (re.compile(r"checkpoint(\d+)\.pt"), "checkpoint<epoch>.pt"),
    "update": (re.compile(r"checkpoint_\d+_(\d+)\.pt"), "checkpoint_<epoch>_<update>.pt"),
}

_START = {"version": 2, "epoch": 1, "iterations_in_epoch": 0, "shuffle": True}
"""What fairseq saves of the data before a first update."""


def last_checkpoints(folder: str | Path, last: int, by: str = "epoch", upper: int | None = None) -> list[Path]:
    """The newest checkpoints of a folder, newest first.

    Args:
        folder: a ``--save-dir`` of fairseq.
        last: how many checkpoints.
        by: ``"epoch"`` takes ``checkpoint<epoch>.pt``, ``"update"`` takes ``checkpoint_<epoch>_<update>.pt``.
        upper: the largest epoch (or update) to take; the newest when omitted.

    Raises:
        CheckpointError: where the folder holds fewer of them than ``last``.
    """
    if last < 1:
        raise CheckpointError(f"--last must be at least 1, got {last}")
    pattern, form = _NAMES[by]
    try:
        names = os.listdir(folder)
    except OSError as error:
        raise CheckpointError(f"{folder}: {error.strerror}") from error
    numbered = sorted(((int(match[1]), name) for name in names if (match := pattern.fullmatch(name))), reverse=True)
    numbered = [(number, name) for number, name in numbered if upper is None or number <= upper]
    if len(numbered) < last:
        bound = "" if upper is None else f" up to {by} {upper}"
        raise CheckpointError(f"--last {last}: {folder} holds {len(numbered)} files named {form}{bound}")
    return [Path(folder, name) for _, name in numbered[:last]]


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a fairseq checkpoint onto the CPU with torch's safe loader.

    Raises:
        CheckpointError: where the file is missing, truncated, unsafe, or no fairseq checkpoint.
    """
    allow_checkpoint_types()
    state = load_safely(path)
    if not isinstance(state, dict) or not isinstance(state.get("model"), Mapping):
        raise CheckpointError(f"{path}: not a fairseq checkpoint (it has no 'model')")
    return state


def average_checkpoints(paths: Sequence[str | Path], ema: bool = False) -> dict[str, Any]:
    r"""The checkpoint whose parameters are the mean :math:`\frac1n \sum_i \theta_i`, accumulated in float64.

    Configuration and task state are those of the first file; so are integer tensors, which count things and have no
    mean. The optimizer's state, the moving average, the best value and the place in the data belong to other weights
    and stay behind: a training that ``--restore-file`` gives the file starts at its first epoch.

    Args:
        paths: checkpoints of one architecture.
        ema: read the moving average that ``--store-ema`` keeps (in float32 where ``--ema-fp32`` does) instead of the
            trained weights.

    Raises:
        CheckpointError: where a file cannot be read, is there twice, holds parameters that are not finite, or differs
            from the first in architecture, in what its model computes, or in names or shapes of parameters.
    """
    if not paths:
        raise CheckpointError("no checkpoint to average")
    files = [os.path.realpath(path) for path in paths]
    for number, file in enumerate(files):
        if file in files[:number]:
            raise CheckpointError(f"{paths[number]}: is there twice, and would weigh twice in the mean")
    result = load_checkpoint(paths[0])
    reference = _parameters(result, paths[0], ema)
    architecture, options = _architecture(result), model_options(result)
    sums = {name: value.double() for name, value in reference.items() if value.is_floating_point()}
    for path in progress(paths[1:], "averaging", total=len(paths), initial=1, unit=" checkpoints"):
        state = load_checkpoint(path)
        parameters = _parameters(state, path, ema)
        _check_same(paths[0], architecture, reference, path, _architecture(state), parameters)
        _check_options(paths[0], options, path, model_options(state))
        for name, total in sums.items():
            total += parameters[name]

    # Tied weights (embedding and output projection) share storage in the file; averaging keeps that, so that the file
    # does not grow.
    averaged: dict[str, Tensor] = {}
    tied: dict[tuple[Any, ...], Tensor] = {}
    for name, value in reference.items():
        place = (value.untyped_storage().data_ptr(), value.storage_offset(), value.shape, value.stride(), value.dtype)
        if place not in tied or value.numel() == 0:
            tied[place] = (sums[name] / len(paths)).to(value.dtype) if name in sums else value
        averaged[name] = tied[place]

    result["model"] = averaged
    result.pop("last_optimizer_state", None)
    result["extra_state"] = {"train_iterator": dict(_START)}
    return result


def _parameters(state: Mapping[str, Any], path: str | Path, ema: bool) -> dict[str, Tensor]:
    extra = state.get("extra_state") or {}
    if ema and not extra.get("ema"):
        raise CheckpointError(f"--ema: {path} holds no moving average (was it trained with --store-ema?)")
    parameters = {**extra["ema"], **extra.get("ema_fp32_params", {})} if ema else dict(state["model"])
    check_finite(parameters, path)  # the mean would not be finite either
    return parameters


def _architecture(state: Mapping[str, Any]) -> str | None:
    """The registered name of the model: in ``cfg.model`` today, in ``args.arch`` for old checkpoints."""
    config = state.get("cfg") or {}
    model = config.get("model") if hasattr(config, "get") else None
    for holder in (model, state.get("args")):
        fields: Any = holder if isinstance(holder, Mapping) else getattr(holder, "__dict__", {})
        if hasattr(holder, "_name") and not fields.get("_name"):
            return holder._name  # type: ignore[union-attr]
        for field in ("_name", "arch"):
            if fields.get(field):
                return str(fields[field])
    return None


def _check_same(
    first: str | Path,
    architecture: str | None,
    reference: Mapping[str, Tensor],
    path: str | Path,
    other: str | None,
    parameters: Mapping[str, Tensor],
) -> None:
    def refuse(difference: str) -> None:
        raise CheckpointError(f"cannot average different architectures: {difference}")

    if architecture != other:
        refuse(f"{first} is {architecture}, {path} is {other}")
    if unshared := sorted(reference.keys() ^ parameters.keys()):
        owner = first if unshared[0] in reference else path
        refuse(f"{unshared[0]} is only in {owner} ({len(unshared)} parameters are not shared)")
    for name, value in reference.items():
        if value.shape != parameters[name].shape:
            refuse(f"{name} is {tuple(value.shape)} in {first} and {tuple(parameters[name].shape)} in {path}")


def _check_options(first: str | Path, options: Mapping[str, Any], path: str | Path, others: Mapping[str, Any]) -> None:
    if name := first_difference(options, others):
        one, other = f"{options[name]!r} in {first}", f"{others[name]!r} in {path}"
        raise CheckpointError(f"cannot average different models: {name} is {one} and {other}")
