"""MUSE: what each branch of one layer reads, in the encoder and in the decoder."""

from __future__ import annotations

import torch
from matplotlib.figure import Figure
from torch import Tensor

from fairseq_ext.modules import MultiScaleConv, attention_weights
from fairseq_ext.modules.dynamic_convolution import dynamic_convolution

__all__ = ["SIZE", "draw"]

SIZE = (9.5, 5.1)

TOKENS, CHANNELS, HEADS = 24, 64, 4
KERNELS = (3, 15)
SPREAD = 3.0
"""Factor of the input that makes untrained kernels as peaked as trained ones."""


def draw(figure: Figure) -> None:
    """Rows of weights: from the token of the row to what it reads. Input and projections are random."""
    grid = figure.subplots(2, 4, squeeze=False, sharex=True, sharey=True)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(TOKENS, 1, CHANNELS, generator=generator)
    query, key = torch.randn(2, TOKENS, CHANNELS // HEADS, generator=generator)
    scores = query @ key.T / (CHANNELS // HEADS) ** 0.5
    for axes, side in zip(grid, ("encoder", "decoder"), strict=True):
        causal = side == "decoder"
        masked = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -torch.inf) if causal else scores
        maps = {"self-attention": attention_weights(1.5 * masked), **_convolutions(x, causal)}
        for axis, (name, weights) in zip(axes, maps.items(), strict=True):
            image = axis.imshow(
                weights.masked_fill(weights == 0, torch.nan).numpy(), cmap="Blues", vmin=-0.03, vmax=0.6
            )
            axis.set(xticks=[], yticks=[])
            axis.grid(visible=False)
            axis.spines[:].set(visible=True, color="0.7")
            if not causal:
                axis.set_title(name)
        axes[0].set_ylabel(f"{side}: token")
    for axis in grid[-1]:
        axis.set_xlabel("reads token")
    figure.colorbar(image, ax=grid, shrink=0.7, label="weight", extend="max", ticks=(0, 0.2, 0.4, 0.6))


@torch.no_grad()
def _convolutions(x: Tensor, causal: bool) -> dict[str, Tensor]:
    """The first head's weights, of each kernel size and of the mixture that runs in their place."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        branch = MultiScaleConv(CHANNELS, HEADS, KERNELS, causal).eval()
    ones, maps = torch.eye(TOKENS)[:, None], {}
    for size, conv in zip(KERNELS, branch.convs, strict=True):
        kernels = conv.kernels(SPREAD * x)[:, :, :1]
        maps[f"kernel of {size}"] = dynamic_convolution(ones, kernels, -conv.padding)[:, 0]
    assert branch.gate is not None
    return {**maps, "gated mixture": branch.gate(list(maps.values()))}
