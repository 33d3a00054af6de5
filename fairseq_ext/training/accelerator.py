"""Devices, processes, number format and optimiser of a training."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, broadcast, parse_flag_from_env

from fairseq_ext.training.errors import OptionError, first_line
from fairseq_ext.training.runs import torch_device

__all__ = ["adamw", "make_accelerator", "share_buffers"]


WRAPPERS = {"fsdp": "FSDP", "deepspeed": "DeepSpeed", "megatron_lm": "Megatron-LM", "parallelism_config": "a mesh"}
"""What else than copies of the model ``accelerate launch`` would make: our checkpoints hold a whole model."""


def make_accelerator(
    mixed_precision: str = "no", device: str = "auto", *, unused_parameters: bool = False
) -> Accelerator:
    """Devices and processes as ``accelerate launch`` or ``accelerate config`` says; without either, a single device.

    Args:
        mixed_precision: as ``--mixed-precision``.
        device: as ``--device``: ``auto``, or the kind of device; among several of a kind, ``accelerate`` chooses.
        unused_parameters: whether there may be parameters that the loss does not depend on, as in some models of
            transformers. Several processes then look for these in each step and leave them unchanged, as one process
            does.

    Raises:
        OptionError: a number format that the device does not have, a device that this machine does not have, or a
            setting of the launcher that the training would ignore.
    """
    wanted = torch_device(device)
    _check_launcher(mixed_precision)
    parallel = DistributedDataParallelKwargs(find_unused_parameters=unused_parameters)
    try:
        accelerator = Accelerator(mixed_precision=mixed_precision, cpu=wanted.type == "cpu", kwargs_handlers=[parallel])
    except ValueError as error:
        raise OptionError(f"--mixed-precision {mixed_precision}: {first_line(error)}") from error
    used = accelerator.device
    if device != "auto" and (wanted.type != used.type or wanted.index not in (None, used.index)):
        raise OptionError(f"--device {device}: accelerate computes on {used}")
    if mixed_precision != "no" and not accelerator.native_amp:  # accelerate goes on in float32
        raise OptionError(f"--mixed-precision {mixed_precision}: not on a {accelerator.device.type}; no and bf16 are")
    return accelerator


def _check_launcher(mixed_precision: str) -> None:
    """Refuse settings of ``accelerate launch`` or ``accelerate config`` that a training would ignore."""

    def asked(name: str) -> str:
        return os.environ.get(f"ACCELERATE_{name.upper()}", "").lower()

    if (precision := asked("mixed_precision") or "no") not in ("no", mixed_precision):
        raise OptionError(
            f"accelerate launch --mixed_precision {precision} (ACCELERATE_MIXED_PRECISION): this command uses "
            f"--mixed-precision {mixed_precision}; change it with its own option, if it has one"
        )
    if (steps := asked("gradient_accumulation_steps") or "1") != "1":
        raise OptionError(
            f"accelerate launch --gradient_accumulation_steps {steps} (ACCELERATE_GRADIENT_ACCUMULATION_STEPS): a step "
            "is of one batch here, whose size --batch-size says"
        )
    for name, what in WRAPPERS.items():
        if parse_flag_from_env(f"ACCELERATE_USE_{name.upper()}"):
            raise OptionError(
                f"accelerate launch with {what} (ACCELERATE_USE_{name.upper()}): each process has a copy of the whole "
                "model here, as with --multi_gpu or --cpu"
            )


def adamw(parameters: Iterable[Any], accelerator: Accelerator, **settings: Any) -> torch.optim.AdamW:
    """Torch's AdamW, in its fused form where the device has one.

    On a CPU the fused form is several times as fast as the default; there the optimiser can take half of the time of a
    small batch, for a small model with a large vocabulary.
    """
    return torch.optim.AdamW(parameters, fused=accelerator.device.type in ("cpu", "cuda"), **settings)


@torch.no_grad()
def share_buffers(model: torch.nn.Module, accelerator: Any) -> None:
    """Give every process the buffers of the first process, whose model is the one that is kept.

    In training each process has the batch statistics of its own share until the next forward pass.
    """
    if accelerator.num_processes > 1:
        for buffer in model.buffers():
            broadcast(buffer)
