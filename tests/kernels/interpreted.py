"""Kernels on CPU tensors: Triton's interpreter runs them where there is no GPU."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import pytest
import torch

from fairseq_ext import kernels

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
"""Where a kernel's tensors live in these tests."""


@contextmanager
def interpreter() -> Iterator[None]:
    """Triton decides when it decorates a function, and again when it calls one, so both happen inside."""
    with pytest.MonkeyPatch.context() as patch:
        if DEVICE.type == "cpu":
            patch.setenv("TRITON_INTERPRET", "1")
        patch.setenv("TRITON_DEFAULT_FP_FUSION", os.environ.get("TRITON_DEFAULT_FP_FUSION", "1"))
        yield


def kernel(name: str) -> ModuleType:
    """``fairseq_ext.kernels.NAME``, decorated for the interpreter."""
    pytest.importorskip("triton")
    with interpreter():
        return kernels.load(name)
