"""Devices, processes, number format and optimiser of a training."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast

from fairseq_ext.training.errors import OptionError, first_line
from fairseq_ext.training.runs import torch_device

__all__ = ["adamw", "make_accelerator", "share_buffers"]


def make_accelerator(mixed_precision: str = "no", device: str = "auto") -> Accelerator:
    """Devices and processes as ``accelerate launch`` or ``accelerate config`` says; a single device without either.

    Args:
        mixed_precision: as ``--mixed-precision``.
        device: as ``--device``: ``auto``, or the kind of device; which of several is for ``accelerate`` to say.

    Raises:
        OptionError: a number format that the device does not have, or a device that this machine does not have.
    """
    wanted = torch_device(device)
    try:
        accelerator = Accelerator(mixed_precision=mixed_precision, cpu=wanted.type == "cpu")
    except ValueError as error:
        raise OptionError(f"--mixed-precision {mixed_precision}: {first_line(error)}") from error
    used = accelerator.device
    if device != "auto" and (wanted.type != used.type or wanted.index not in (None, used.index)):
        raise OptionError(f"--device {device}: accelerate computes on {used}")
    if mixed_precision != "no" and not accelerator.native_amp:  # accelerate goes on in float32
        raise OptionError(f"--mixed-precision {mixed_precision}: not on a {accelerator.device.type}; no and bf16 are")
    return accelerator


def adamw(parameters: Iterable[Any], accelerator: Accelerator, **settings: Any) -> torch.optim.AdamW:
    """Torch's AdamW, fused where the device can.

    That is several times as fast as the default on a CPU, where the step of a small model with a large vocabulary can
    be half of the time of a small batch.
    """
    return torch.optim.AdamW(parameters, fused=accelerator.device.type in ("cpu", "cuda"), **settings)


@torch.no_grad()
def share_buffers(model: torch.nn.Module, accelerator: Any) -> None:
    """Give every process the buffers of the first, whose model is the one that is kept.

    In training each process has batch statistics of its own share until the next forward pass.
    """
    if accelerator.num_processes > 1:
        for buffer in model.buffers():
            broadcast(buffer)
