"""Triton forms of the methods' functions, for CUDA tensors. torch only, and Triton (extra ``triton``) where it is used.

The torch path of a method is the reference and always there; it asks :func:`usable` whether to hand over. A kernel has
one file, which computes forward and backward and is imported when it is first used, since importing it needs Triton.

Kernels keep their inputs for the backward pass, and the torch path of a norm does not: where a kernel is used, autograd
refuses to go back through an input that was then changed in place (``h += norm(h)``).
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import os
import shutil
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

__all__ = ["cannot_compile", "disabled", "load", "usable", "why_unused"]

SWITCH = "FAIRSEQ_EXT_KERNELS"
"""Environment variable: ``0`` keeps every method on its torch path, ``1`` (or nothing) lets kernels be used."""

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
CAPABILITY = (8, 0)
"""The oldest cards that the kernels are compiled for in the tests: bfloat16 and asynchronous copies begin there."""

_WITH_MEMORY = Tensor.__torch_dispatch__
"""Of tensors and parameters, and of subclasses that are no wrappers: a kernel gets the address of their numbers."""

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

    Never while TorchScript, ``torch.compile`` or ``torch.func`` look at the code, which do not see through a kernel,
    nor of tensors with operations of their own, whose numbers lie elsewhere (``DTensor``, ``FakeTensor``).

    Warns:
        RuntimeWarning: once, where this machine cannot build kernels: see :func:`cannot_compile`.

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
    for tensor in tensors:
        if tensor.device != device or tensor.dtype not in DTYPES:
            return False
        if type(tensor).__torch_dispatch__ is not _WITH_MEMORY:
            return False
    return not _lacks(device) and _compiles()


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
    return (_lacks(device) or cannot_compile()) if _switched_on() else f"{SWITCH}=0"


@functools.cache
def _lacks(device: torch.device) -> str:
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed: pip install 'fairseq-ext[triton]'"
    capability = torch.cuda.get_device_capability(device)
    if capability < CAPABILITY:
        return "capability {}.{}, kernels need {}.{}".format(*capability, *CAPABILITY)
    return ""


@functools.cache
def cannot_compile() -> str:
    """Why Triton cannot build a kernel here, for people; empty where it can.

    What launches a kernel is a module of Python's in C, which Triton has the machine's compiler build at first use.
    """
    try:
        own = importlib.import_module("triton").knobs.build.impl
    except Exception as error:  # a package that does not fit to torch or to this machine
        return f"Triton cannot be imported ({type(error).__name__}: {error})"
    if own is not None:  # a way to build of one's own
        return ""
    chosen = os.environ.get("CC")
    if chosen is not None and shutil.which(chosen) is None:
        return f"CC={chosen} is no C compiler for Triton"
    if chosen is None and not (shutil.which("gcc") or shutil.which("clang")):
        return "Triton needs a C compiler: install gcc"
    scheme = sysconfig.get_default_scheme().replace("posix_local", "posix_prefix")  # as Triton looks for it
    include = sysconfig.get_paths(scheme=scheme)["include"]
    others = os.pathsep.join(os.environ.get(name, "") for name in ("CPATH", "C_INCLUDE_PATH")).split(os.pathsep)
    if not any(Path(folder, "Python.h").is_file() for folder in [include, *filter(None, others)]):
        return f"Triton needs {include}/Python.h: install python3-dev"
    return ""


@functools.cache
def _compiles() -> bool:
    """Whether kernels can be built; says once why not, for unlike an old card that can be mended."""
    reason = cannot_compile()
    if reason:
        text = f"no kernel is used, methods take their torch path: {reason}, or set {SWITCH}=0"
        warnings.warn(text, RuntimeWarning, stacklevel=3)
    return not reason
