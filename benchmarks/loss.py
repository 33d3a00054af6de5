"""Claim: the encouraging loss costs what smoothed cross-entropy costs, in time and in memory."""

from __future__ import annotations

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.timing import Row, forward_backward, memory_row, time_row
from fairseq_ext.losses import encouraging_loss

SMOOTHING, LOG_END = 0.1, 0.75


def plain_encouraging_loss(logits: Tensor, target: Tensor) -> Tensor:
    """The formula as one would first write it, with the bonus smoothed like the cross-entropy."""
    log_p = F.log_softmax(logits, dim=-1)
    p = log_p.exp()
    tangent = math.log(1 - LOG_END) - (p - LOG_END) / (1 - LOG_END)
    bonus = torch.where(p > LOG_END, tangent, torch.log1p(-p.clamp(max=LOG_END)))
    terms = bonus - log_p
    on_target = terms.gather(1, target[:, None]).squeeze(1)
    return ((1 - SMOOTHING) * on_target + SMOOTHING * terms.mean(1)).mean()


def run(quick: bool) -> list[Row]:
    torch.manual_seed(0)
    rows = []
    for tokens, classes in ((64, 500),) if quick else ((4096, 10_000), (4096, 32_000)):
        logits, target = torch.randn(tokens, classes), torch.randint(classes, (tokens,))
        smoothed = {"target": target, "label_smoothing": SMOOTHING}
        ours = forward_backward(partial(encouraging_loss, log_end=LOG_END, **smoothed), logits)
        references = (
            ("F.cross_entropy(label_smoothing=0.1)", partial(F.cross_entropy, **smoothed), 1.10),
            ("the plain formula", partial(plain_encouraging_loss, target=target), None),
        )
        for name, function, bound in references:
            case = f"encouraging_loss / {name}, forward + backward, {tuple(logits.shape)}"
            reference = forward_backward(function, logits)
            rows.append(time_row(case, ours, reference, pairs=1 if quick else 7, target=bound))
            rows.append(memory_row(case, ours, reference, target=bound))
    return rows
