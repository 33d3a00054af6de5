"""Devices, processes and number format of a training."""

from __future__ import annotations

from accelerate import Accelerator

from fairseq_ext.errors import OptionError

__all__ = ["PRECISIONS", "make_accelerator"]

PRECISIONS = ("no", "fp16", "bf16")


def make_accelerator(mixed_precision: str = "no", cpu: bool = False) -> Accelerator:
    """Devices and processes as ``accelerate launch`` or ``accelerate config`` says; a single device without either.

    Raises:
        OptionError: a number format that the device does not have.
    """
    try:
        return Accelerator(mixed_precision=mixed_precision, cpu=cpu)
    except ValueError as error:
        raise OptionError(f"--mixed-precision {mixed_precision}: {str(error).splitlines()[0]}") from error
