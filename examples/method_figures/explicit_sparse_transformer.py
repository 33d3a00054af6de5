"""Explicit Sparse Transformer: the same scores under softmax, top-k and the normalizers that choose keys themselves."""

from __future__ import annotations

import torch
from matplotlib.figure import Figure

from fairseq_ext.modules import attention_weights

__all__ = ["SIZE", "draw"]

SIZE = (9.5, 3.0)

TOKENS, K = 16, 4
FORMS = {
    "softmax": {},
    f"top-k, k = {K}": {"k": K},
    "sparsemax": {"normalizer": "sparsemax"},
    "entmax, α = 1.5": {"normalizer": "entmax15"},
}


def draw(figure: Figure) -> None:
    """Four matrices of a decoder's self-attention on one scale; the scores are synthetic."""
    grid = figure.subplots(1, len(FORMS), squeeze=False, sharey=True)
    generator = torch.Generator().manual_seed(1)
    query, key = torch.randn(2, TOKENS, 8, generator=generator)
    future = torch.ones(TOKENS, TOKENS, dtype=torch.bool).triu(1)
    scores = (query @ key.T / 2).masked_fill(future, -torch.inf)
    for axes, (name, options) in zip(grid[0], FORMS.items(), strict=True):
        weights = attention_weights(scores, **options)
        image = axes.imshow(weights.masked_fill(weights == 0, torch.nan).numpy(), cmap="Blues", vmin=-0.05, vmax=1)
        least, most = (weights > 0).sum(-1)[K:].aminmax()
        kept = f"{least} to {most}" if least < most else f"{least}"
        axes.set(title=name, xlabel=f"key\nkept: {kept}", xticks=[], yticks=[])
        axes.grid(visible=False)
        axes.spines[:].set(visible=True, color="0.7")
    grid[0, 0].set_ylabel("query")
    figure.colorbar(image, ax=grid, shrink=0.7, label="weight", ticks=(0, 0.5, 1))
