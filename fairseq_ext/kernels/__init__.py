"""Triton forms of the methods' functions, for CUDA tensors. torch only, and Triton (extra ``triton``) where it is used.

The torch path of a method is the reference and always there; it asks :func:`usable` whether to hand over. A kernel has
one file, which computes forward and backward and is imported when it is first used, since importing it needs Triton.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import os
from collections.abc import Iterator
from types import ModuleType

import torch
from torch import Tensor

__all__ = ["disabled", "load", "usable", "why_unused"]

SWITCH = "FAIRSEQ_EXT_KERNELS"
"""Environment variable: ``0`` keeps every method on its torch path, ``1`` (or nothing) lets kernels be used."""

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
CAPABILITY = (8, 0)
"""The oldest cards that the kernels are compiled for in the tests: bfloat16 and asynchronous copies begin there."""

_disabled = 0


@contextlib.contextmanager
def disabled() -> Iterator[None]:
    """No kernel is used inside: ``with kernels.disabled(): ...``. May be nested; holds for all threads."""
    global _disabled
    _disabled += 1
    try:
        yield
    finally:
        _disabled -= 1


def usable(*tensors: Tensor) -> bool:
    """Whether a kernel may take ``tensors``: on one CUDA card that is new enough, in a dtype that kernels know.

    Never while TorchScript, ``torch.compile`` or ``torch.func`` look at the code, which do not see through a kernel.

    Raises:
        ValueError: the environment variable ``FAIRSEQ_EXT_KERNELS`` is neither 0 nor 1.
    """
    # First of all, since a graph of torch.compile would end at the environment's variable.
    if torch.jit.is_scripting() or torch.jit.is_tracing() or torch.compiler.is_compiling():
        return False
    if _disabled or not tensors[0].is_cuda or not _switched_on():
        return False
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return False
    device = tensors[0].device
    fit = all(tensor.device == device and tensor.dtype in DTYPES for tensor in tensors)
    return fit and not _lacks(device)


@functools.cache
def load(name: str) -> ModuleType:
    """``fairseq_ext.kernels.NAME``, once :func:`usable` has agreed: a function that is scripted has no import in it."""
    return importlib.import_module(f"fairseq_ext.kernels.{name}")


def _switched_on() -> bool:
    value = os.environ.get(SWITCH, "1")
    if value not in ("0", "1"):
        raise ValueError(f"{SWITCH} must be 0 or 1, got {value!r}")
    return value == "1"


def why_unused(device: torch.device) -> str:
    """Why no kernel is used on ``device``, for people; empty where they are used.

    Raises:
        ValueError: the environment variable ``FAIRSEQ_EXT_KERNELS`` is neither 0 nor 1.
    """
    if device.type != "cuda":
        return "kernels need a CUDA card"
    return _lacks(device) if _switched_on() else f"{SWITCH}=0"


@functools.cache
def _lacks(device: torch.device) -> str:
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed: pip install 'fairseq-ext[triton]'"
    capability = torch.cuda.get_device_capability(device)
    if capability < CAPABILITY:
        return "capability {}.{}, kernels need {}.{}".format(*capability, *CAPABILITY)
    return ""
