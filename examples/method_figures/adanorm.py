"""AdaNorm: what it makes of a normalised entry, and the gradient that comes back through each norm."""

from __future__ import annotations

import torch
from matplotlib.figure import Figure

from examples.plotting import colour_of
from fairseq_ext.modules import AdaNorm, DetachNorm, LayerNormSimple
from fairseq_ext.training.plotting import GREY, PALETTE

__all__ = ["SIZE", "draw"]

SIZE = (9.5, 4.4)

NORMS = {
    "DetachNorm": (DetachNorm, GREY, "o"),
    "LayerNorm-simple": (LayerNormSimple, PALETTE[1], "s"),
    "AdaNorm": (AdaNorm, colour_of("AdaNorm"), "^"),
}


def draw(figure: Figure) -> None:
    """Left, the output of one entry as it grows; right, each entry's gradient after the norm and before it."""
    grid = figure.subplots(1, 2, squeeze=False)
    left, right = grid[0]
    rest = torch.randn(511, generator=torch.Generator().manual_seed(0))
    entry = torch.linspace(-8, 17, 200)[:, None]
    rows = torch.cat([entry, rest.expand(len(entry), -1)], -1)
    normalised = LayerNormSimple(512)(rows)[:, 0].numpy()
    left.axvspan(-3, 3, color="0.93", zorder=0)
    left.annotate("nearly all\nentries", (0, -10.5), ha="center", color="0.35")
    left.axhline(0, color="0.8", linewidth=0.8, zorder=0)
    for name in ("LayerNorm-simple", "AdaNorm"):
        norm, colour, _ = NORMS[name]
        left.plot(normalised, norm(512)(rows)[:, 0].numpy(), color=colour, label=name)
    left.set(
        xlabel="normalised entry $y$", ylabel="output $z$", title="$z = C\\,(1 - k\\,y)\\,y$ with $C = 1$, $k = 0.1$"
    )
    left.set(ylim=(-12, 12), xlim=(-7, 13))
    left.legend(loc="upper left")

    row = rest[:24].double()
    simple = LayerNormSimple(len(row))
    upstream = 1.5 + simple(row) + 0.6 * torch.randn(len(row), generator=torch.Generator().manual_seed(1))
    for name, (norm, colour, marker) in NORMS.items():
        x = row.clone().requires_grad_()
        (norm(len(row))(x) * upstream).sum().backward()
        gradient, look = x.grad * row.std(), {"s": 22, "alpha": 0.85, "linewidths": 0}
        right.scatter(upstream.numpy(), gradient.numpy(), color=colour, marker=marker, label=name, **look)
    right.axhline(0, color="0.8", linewidth=0.8, zorder=0)
    right.set(
        xlabel="gradient of the output",
        ylabel="gradient of the input × std",
        title="Gradient of each entry, behind and before the norm",
    )
    right.legend()
