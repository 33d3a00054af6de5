"""Products of int8 weights with rows of floats on a CPU: one function, whichever library this PyTorch has for it.

fbgemm quantizes rows while it copies them, and for the few rows of a beam needs half of oneDNN's time. But it takes
its weights as a quantized tensor, which PyTorch is going to drop; oneDNN's product takes plain int8 and stays.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["int8_product", "levels"]

Product = Callable[[Tensor], Tensor]


def levels() -> int:
    """The largest integer of a quantized input.

    Without AVX-512 VNNI the sum of two products is kept in 16 bits: products of 8 by 8 bits saturate there silently,
    those of 7 by 8 bits fit.
    """
    return 127 if torch.cpu._is_vnni_supported() else 63


def fbgemm_product(weight: Tensor, scale: Tensor) -> Product:
    largest = levels()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*quantized tensor creation")
        zeros = torch.zeros(len(scale), dtype=torch.int64)
        quantized = torch._make_per_channel_quantized_tensor(weight, scale, zeros, 0)
        packed = torch.ops.quantized.linear_prepack(quantized, None)
    # With the overload named: else each call looks at all arguments in Python, which shows with the few rows of a beam.
    multiply = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32.default
    return lambda rows: multiply(rows, 1 / largest, largest, packed)


def onednn_product(weight: Tensor, scale: Tensor) -> Product:
    largest = levels()
    packed = torch.ops.onednn.qlinear_prepack(weight.contiguous(), None)  # it takes every layout for this one
    zeros = torch.zeros(len(scale), dtype=torch.int32)
    rounding = torch.tensor(largest + 0.5)  # the zero point, and 0.5 so that truncation rounds

    def product(rows: Tensor) -> Tensor:
        quantized = torch.add(rounding, rows, alpha=largest).to(torch.uint8), 1 / largest, largest
        return torch.ops.onednn.qlinear_pointwise.default(
            *quantized, packed, scale, zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )

    return product


PRODUCTS: dict[str, Callable[[Tensor, Tensor], Product]] = {"fbgemm": fbgemm_product, "onednn": onednn_product}


@functools.cache
def _works(name: str) -> bool:
    try:
        PRODUCTS[name](torch.ones(32, 32, dtype=torch.int8), torch.ones(32))(torch.zeros(2, 32))
    except (RuntimeError, AttributeError):  # AttributeError: no such operator in this PyTorch
        return False
    return True


def int8_product(weight: Tensor, scale: Tensor) -> Product:
    """The product of rows in [-1, 1], which are rounded to :func:`levels` steps, with ``scale[:, None] * weight``.

    Args:
        weight: int8, (N, K).
        scale: float32, (N).

    Returns:
        A function from (..., K) to (..., N), float32.

    Raises:
        RuntimeError: this PyTorch has no such product for this processor.
    """
    for name, product in PRODUCTS.items():
        if _works(name):
            return product(weight, scale)
    raise RuntimeError("no int8 product in this PyTorch on this processor")
