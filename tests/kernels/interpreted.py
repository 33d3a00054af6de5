"""Kernels on CPU tensors: where there is no GPU, Triton interprets them, which ``tests/conftest.py`` asks for."""

from __future__ import annotations

import functools
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from fairseq_ext import kernels

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
"""Where a kernel's tensors live in these tests."""


@contextmanager
def interpreter() -> Iterator[None]:
    """What kernels run in: the interpreter mended, and no warning that a default will change."""
    with pytest.MonkeyPatch.context() as patch:
        if DEVICE.type == "cpu" and importlib.util.find_spec("triton") is not None:
            from triton.runtime import interpreter

            patch.setattr(interpreter.InterpreterBuilder, "create_dot", _dot)
            patch.setattr(interpreter, "_patch_lang", functools.partial(_patch_once, interpreter._patch_lang))
        patch.setenv("TRITON_DEFAULT_FP_FUSION", os.environ.get("TRITON_DEFAULT_FP_FUSION", "1"))
        yield


def _patch_once(patch: Callable[[Any], Any], function: Any) -> Any:
    """What lets Triton's language compute, of which Triton's own does all again at every call of a function: half of
    the time of a kernel that has many."""
    from triton.language import core
    from triton.runtime.interpreter import _LangPatchScope

    languages = [x for x in function.__globals__.values() if x is core or x is sys.modules["triton.language"]]
    return patch(function) if any(core.is_builtin(x.load) for x in languages) else _LangPatchScope()


def _float(handle: Any) -> np.ndarray:
    """The interpreter keeps bfloat16 as the upper half of a float32, in a 16-bit integer."""
    return (handle.data.astype(np.uint32) << 16).view(np.float32) if str(handle.dtype) == "bf16" else handle.data


def _dot(self: Any, a: Any, b: Any, d: Any, *precision: Any) -> Any:
    """``tl.dot``: Triton 3.9's own multiplies those integers."""
    return type(d)(np.matmul(_float(a), _float(b), dtype=d.data.dtype) + d.data, d.dtype.scalar)


def kernel(name: str) -> ModuleType:
    """``fairseq_ext.kernels.NAME``; the test is skipped without Triton."""
    pytest.importorskip("triton")
    return kernels.load(name)
