"""Claim: AdaNorm, LayerNorm-simple and DetachNorm are about as fast as torch's LayerNorm."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.models import build, train_step_row
from benchmarks.timing import Row, forward_backward, memory_row, time_row
from fairseq_ext.modules import AdaNorm, DetachNorm, LayerNormSimple


def _layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    # gain and bias are inputs, so that their gradients are computed, as in training
    return F.layer_norm(x, weight.shape, weight, bias)


def run(quick: bool) -> list[Row]:
    torch.manual_seed(0)
    states = torch.randn(64, 32) if quick else torch.randn(4096, 512)
    rows = []
    for norm in (AdaNorm(states.size(1)), LayerNormSimple(states.size(1)), DetachNorm(states.size(1))):
        case = f"{type(norm).__name__} / F.layer_norm, forward + backward, {tuple(states.shape)}"
        ours = forward_backward(norm, states)
        reference = forward_backward(_layer_norm, states, torch.ones(states.size(1)), torch.zeros(states.size(1)))
        rows.append(time_row(case, ours, reference, pairs=1 if quick else 15, target=1.3))
        rows.append(memory_row(case, ours, reference))
    for norm_name in ("adanorm", "layernorm-simple"):
        models = build(quick, norm=norm_name), build(quick)
        rows.append(train_step_row(f"--norm {norm_name} / layernorm", *models, quick))
    return rows
