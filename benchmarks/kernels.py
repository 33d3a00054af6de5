"""Claim: the Triton kernels are several times as fast as the torch path of the same functions, and need no matrices."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.timing import Function, Row, forward_backward, memory_row, time_row
from fairseq_ext import kernels
from fairseq_ext.modules import AdaNorm, LayerNormSimple, topk_attention
from fairseq_ext.modules.dynamic_convolution import dynamic_convolution

not_on = kernels.why_unused
"""Where no kernel is used, the torch path would be measured against itself."""
K, HEADS, HEAD_DIM = 8, 8, 64
DTYPE = torch.bfloat16


def torch_path(function: Callable[..., Tensor], *inputs: Tensor) -> Function:
    """:func:`forward_backward` of ``function`` without kernels."""
    with kernels.disabled():
        call = forward_backward(function, *inputs)

    def without() -> object:
        with kernels.disabled():
            return call()

    return without


def attention_rows(quick: bool) -> list[Row]:
    """Against the torch path (scores, top-k, mask, softmax, product) and against dense flash attention."""
    ours, dense = partial(topk_attention, k=K), F.scaled_dot_product_attention
    rows, pairs = [], 1 if quick else 9
    for sentences, length in ((1, 16),) if quick else ((32, 512), (16, 1024)):
        states = torch.randn(3, sentences, HEADS, length, HEAD_DIM, dtype=DTYPE).unbind()
        kernel = forward_backward(ours, *states)
        case = f"forward + backward, k = {K}, {tuple(states[0].shape)}, bfloat16"
        plain = torch_path(ours, *states)
        target = 0.2 if length <= 512 else None
        rows.append(time_row(f"topk_attention / torch path, {case}", kernel, plain, pairs=pairs, target=target))
        rows.append(memory_row(f"topk_attention / torch path, {case}", kernel, plain))
        flash, name = forward_backward(dense, *states), "topk_attention / F.scaled_dot_product_attention"
        rows.append(time_row(f"{name}, {case}", kernel, flash, pairs=pairs, target=2))
    length = 32 if quick else 16_384  # where a matrix of all scores would take 512 MiB per head in bfloat16
    states = torch.randn(3, 1, HEADS, length, HEAD_DIM, dtype=DTYPE).unbind()
    case = f"{name}, forward + backward, k = {K}, {tuple(states[0].shape)}, bfloat16"
    calls = forward_backward(ours, *states), forward_backward(dense, *states)
    rows.append(time_row(case, *calls, pairs=1 if quick else 3))
    rows.append(memory_row(case, *calls, target=2))
    return rows


def norm_rows(quick: bool) -> list[Row]:
    rows, pairs = [], 1 if quick else 15
    for dtype in (torch.float32, DTYPE):
        for shape in ((64, 32),) if quick else ((4096, 512), (16_384, 1024)):
            states, width = torch.randn(shape, dtype=dtype), shape[1]
            gain, bias = torch.ones(width, dtype=dtype), torch.zeros(width, dtype=dtype)
            layer_norm = forward_backward(lambda x, w, b: F.layer_norm(x, w.shape, w, b), states, gain, bias)
            case = f"forward + backward, {shape}, {str(dtype).removeprefix('torch.')}"
            for norm in (AdaNorm(width), LayerNormSimple(width)):
                name, kernel = type(norm).__name__, forward_backward(norm, states)
                plain = torch_path(norm, states)
                row = partial(time_row, pairs=pairs)
                rows.append(row(f"{name} / F.layer_norm, {case}", kernel, layer_norm, target=1.1))
                rows.append(row(f"{name} / torch path, {case}", kernel, plain))
    return rows


def convolution_rows(quick: bool) -> list[Row]:
    """MUSE's, with the kernels of every position as inputs."""
    steps, sentences, heads, width = (8, 2, 2, 8) if quick else (512, 32, 8, 512)
    rows, pairs = [], 1 if quick else 9
    for size in (3,) if quick else (3, 7, 15, 31):
        states = torch.randn(steps, sentences, width, dtype=DTYPE)
        weights = torch.randn(steps, sentences, heads, size, dtype=DTYPE).softmax(-1)
        convolve = partial(dynamic_convolution, first=1 - size)
        kernel, plain = forward_backward(convolve, states, weights), torch_path(convolve, states, weights)
        case = f"dynamic convolution / torch path, kernel {size}, forward + backward, {tuple(states.shape)}, bfloat16"
        rows.append(time_row(case, kernel, plain, pairs=pairs, target=1 / 3))
        rows.append(memory_row(case, kernel, plain))
    return rows


def run(quick: bool) -> list[Row]:
    torch.manual_seed(0)
    return [*norm_rows(quick), *convolution_rows(quick), *attention_rows(quick)]
