"""Encouraging loss: loss and gradient of a token by the probability of its target."""

from __future__ import annotations

import torch
from matplotlib.figure import Figure

from fairseq_ext.losses import encouraging_loss
from fairseq_ext.training.plotting import GREY, PALETTE, name_lines

__all__ = ["SIZE", "draw"]

SIZE = (9.5, 4.2)

BLUE, VERMILION, GREEN, PURPLE, *_ = PALETTE
LOG_ENDS = {0.0: PURPLE, 0.5: GREEN, 0.75: BLUE, 1.0: VERMILION}


def draw(figure: Figure) -> None:
    """Two classes; the same axis of probabilities for the loss and for the size of its gradient."""
    grid = figure.subplots(1, 2, squeeze=False)
    left, right = grid[0]
    odds = torch.linspace(-5, 6.2, 200)
    probability = odds.sigmoid().numpy()
    for log_end, colour in {None: GREY, **LOG_ENDS}.items():
        logits = torch.stack([odds, torch.zeros_like(odds)], -1).requires_grad_()
        target = torch.zeros(len(odds), dtype=torch.long)
        weight = {"bonus_weight": 0.0} if log_end is None else {"log_end": log_end}
        loss = encouraging_loss(logits, target, reduction="none", bonus_clamp=0.0, **weight)
        loss.sum().backward()
        name = "cross-entropy" if log_end is None else f"log_end {log_end:g}"
        style = {"color": colour, "linestyle": "--" if log_end is None else "-", "label": name}
        left.plot(probability, loss.detach().numpy(), **style)
        right.plot(probability, logits.grad[:, 0].abs().numpy(), **style)
    left.set(ylim=(-6, 4), ylabel="loss", title="Loss of a token")
    right.set(ylim=(0, 1.05), ylabel="gradient in the logit of the target", title="Its gradient")
    for axes in (left, right):
        axes.set(xlim=(0, 1), xlabel="probability of the target")
    name_lines(left)
