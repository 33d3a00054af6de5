"""Claim: output layer and encouraging loss fused are no slower than the two apart, in a fraction of the memory."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.models import batch, build, task
from benchmarks.timing import Function, Row, forward_backward, memory_row, time_row
from fairseq_ext.criterions import LabelSmoothedEncouragingLossCriterion
from fairseq_ext.losses import fused_linear_encouraging_loss

SMOOTHING = 0.1


def apart(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden, weight), target, label_smoothing=SMOOTHING)


def train_step(quick: bool, fused: bool) -> Function:
    """Forward, criterion, backward, Adam."""
    model, words = build(quick).train(), task(quick)
    criterion = LabelSmoothedEncouragingLossCriterion(
        SimpleNamespace(target_dictionary=words.target_dictionary), False, SMOOTHING, fused_output_loss=fused
    )
    data = batch(quick)
    target = data.pop("target")
    sample = {"net_input": data, "target": target, "ntokens": int(target.ne(words.target_dictionary.pad()).sum())}
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-5)

    def step() -> None:
        loss, size, _ = criterion(model, sample)
        (loss / size).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def run(quick: bool) -> list[Row]:
    torch.manual_seed(0)
    rows, pairs = [], 1 if quick else 5
    tokens, width, classes = (64, 16, 500) if quick else (4096, 512, 32_000)
    hidden, weight = torch.randn(tokens, width), torch.randn(classes, width) * width**-0.5
    target = torch.randint(classes, (tokens,))
    reference = forward_backward(partial(apart, target=target), hidden, weight)
    for name, bonus_weight in (("", 1.0), (" without bonus", 0.0)):
        function = partial(
            fused_linear_encouraging_loss, target=target, label_smoothing=SMOOTHING, bonus_weight=bonus_weight
        )
        ours = forward_backward(function, hidden, weight)
        case = (
            f"fused_linear_encouraging_loss{name} / F.linear, F.cross_entropy(label_smoothing={SMOOTHING}), "
            f"forward + backward, {(tokens, width)} x {(width, classes)}"
        )
        rows.append(time_row(case, ours, reference, pairs=pairs, target=1.0))
        rows.append(memory_row(case, ours, reference, target=0.15))
    case = "train step, criterion with / without --fused-output-loss"
    steps = train_step(quick, True), train_step(quick, False)
    rows.append(time_row(case, *steps, pairs=pairs, target=1.0))
    rows.append(memory_row(case, *steps))
    return rows
