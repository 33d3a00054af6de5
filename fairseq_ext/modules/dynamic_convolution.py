"""Dynamic convolution: every position has a kernel of its own, predicted from the input.

Wu, Fan, Baevski, Dauphin, Auli: "Pay Less Attention with Lightweight and Dynamic Convolutions", arXiv 1901.10430.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairseq_ext.kernels import load, usable

__all__ = ["DynamicConv", "dynamic_convolution"]

# Positions per band matrix. Up to about this length one dense matrix is fastest (also against sums over shifted inputs
# and unfolding, by a factor of 2 to 5); beyond it, blocks keep time and memory linear in the length.
_BLOCK = 128


def dynamic_convolution(x: Tensor, kernels: Tensor, first: int, block_size: int = _BLOCK) -> Tensor:
    r"""Convolve every position with its own kernel, one per head, as multiplications by band matrices.

    .. math:: y_{t,b,c} = \sum_{j=0}^{K-1} k_{t,b,h(c),j} \, x_{t + \mathit{first} + j,\, b,\, c}

    where head :math:`h(c)` owns a contiguous block of channels and a tap outside of ``x`` counts as zero. Works for any
    kernel width, also wider than ``x``.

    Args:
        x: input.
        kernels: kernels of the ``T`` output positions; they are used as given.
        first: position in ``x`` that tap 0 of output position 0 reads; negative where that lies before the input.
        block_size: positions that share a band matrix; a matter of speed only.

    Shape:
        - x: :math:`(S, B, C)`
        - kernels: :math:`(T, B, H, K)`, with :math:`H` dividing :math:`C`
        - output: :math:`(T, B, C)`
    """
    if not torch.jit.is_scripting():  # alone: TorchScript would compile the rest of a longer condition
        if usable(x, kernels) and load("dynamic_convolution").takes(x, kernels):
            return load("dynamic_convolution").dynamic_convolution(x, kernels, first)
    length, batch, channels = x.shape
    steps, _, heads, width = kernels.shape
    rows = batch * heads
    values = x.reshape(length, rows, channels // heads).transpose(0, 1)
    bands = kernels.reshape(steps, rows, width).transpose(0, 1)
    outputs = [values[:, :0].transpose(0, 1)]  # there may be no step
    for start in range(0, steps, block_size):
        block = bands[:, start : start + block_size]
        n, origin = block.size(1), first + start
        # Row i of the band holds its taps from column i on: rows of n + K entries, read again as rows of n + K - 1.
        columns = n + width - 1
        band = F.pad(block, (0, n)).flatten(1)[:, : n * columns].unflatten(1, (n, columns))
        low, high = max(0, -origin), min(columns, length - origin)
        outputs.append(torch.bmm(band[:, :, low:high], values[:, origin + low : origin + high]).transpose(0, 1))
    return torch.cat(outputs).view(steps, batch, channels)


class DynamicConv(nn.Module):
    r"""Depthwise convolution whose kernels are predicted from the input, position by position.

    .. math::
        k_{t,h} &= \mathrm{softmax}_{j}\big( (W x_t)_{hK + j} \big) \\
        y_{t,c} &= \sum_{j=0}^{K-1} k_{t,h(c),j} \, x_{t+j-P,\,c}, \qquad h(c) = \lfloor c H / C \rfloor

    with :math:`P = (K-1)/2` (centred, for an encoder) or :math:`P = K-1` (causal, for a decoder). Dynamic convolution:
    Wu, Fan, Baevski, Dauphin, Auli, "Pay Less Attention with Lightweight and Dynamic Convolutions", arXiv 1901.10430.
    MUSE (arXiv 1911.09483) applies it to the values of attention. Its formula has one centred kernel for all channels;
    the released code, which we follow, has one kernel per head, and causal ones in the decoder.

    The softmax runs over all :math:`K` taps, in the precision of the input; taps beyond the ends of the sequence are
    then dropped and the rest is not renormalised.

    Args:
        embed_dim: channels :math:`C`.
        num_heads: kernels per position :math:`H`; MUSE takes the number of attention heads.
        kernel_size: taps :math:`K`; odd unless ``causal``.
        causal: read positions up to the current one only.
        weight_dropout: dropout on the kernels, after the softmax. Default: 0.1 (the released code, fixed there; not in
            the paper).

    Shape:
        - input and output: :math:`(T, B, C)`
        - ``weight_linear.weight``: :math:`(HK, C)`

    Raises:
        ValueError: for sizes that do not fit together, or an even kernel that is not causal.

    Example:
        >>> conv = DynamicConv(512, num_heads=8, kernel_size=3, causal=True)
        >>> y = conv(x)                                    # the whole sequence
        >>> y_0, state = conv.step(x[:1])                  # or one step after the other
        >>> y_1, state = conv.step(x[1:2], state)
    """

    def __init__(
        self, embed_dim: int, num_heads: int, kernel_size: int, causal: bool = False, weight_dropout: float = 0.1
    ) -> None:
        super().__init__()
        if num_heads < 1 or embed_dim % num_heads:
            raise ValueError(f"embed_dim ({embed_dim}) must be a multiple of num_heads ({num_heads})")
        if kernel_size < 1:
            raise ValueError(f"kernel_size must be at least 1, got {kernel_size}")
        if not causal and kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd in the encoder (centred convolution), got {kernel_size}")
        if not 0 <= weight_dropout < 1:
            raise ValueError(f"weight_dropout must be in [0, 1), got {weight_dropout}")
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.kernel_size = kernel_size
        self.causal = causal
        self.dropout_module = nn.Dropout(weight_dropout)
        self.weight_linear = nn.Linear(embed_dim, num_heads * kernel_size, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        r"""Draw the kernel predictor from :math:`U(\pm 1/\sqrt{C})`, whatever law the projections follow."""
        bound = 1 / math.sqrt(self.embed_dim)
        nn.init.uniform_(self.weight_linear.weight, -bound, bound)

    @property
    def padding(self) -> int:
        """How many of the taps lie before the current position, :math:`P`."""
        return self.kernel_size - 1 if self.causal else self.kernel_size // 2

    def kernels(self, x: Tensor) -> Tensor:
        """The kernels of every position of ``x``, after dropout: :math:`(T, B, H, K)`."""
        logits = self.weight_linear(x).unflatten(-1, (self.num_heads, self.kernel_size))
        return self.dropout_module(logits.softmax(dim=-1))

    def forward(self, x: Tensor) -> Tensor:
        """Convolve whole sequences."""
        return dynamic_convolution(x, self.kernels(x), first=-self.padding)

    @torch.jit.export
    def step(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        r"""Convolve the next position(s) of sequences that are generated from left to right.

        Args:
            x: the new positions.
            state: the state that the last call returned, None at the start. The batch comes first, so that beam search
                re-orders it with ``state.index_select(0, order)`` like any other cache.

        Shape:
            - x and output: :math:`(T_{new}, B, C)`
            - state: :math:`(B, C, \min(T', K-1))`, the latest of the :math:`T'` inputs so far, oldest first

        Returns:
            The output at the new positions, and the new state.
        """
        if not self.causal:
            raise ValueError("step needs a causal convolution, got causal=False")
        seen = x if state is None else torch.cat([state.permute(2, 0, 1), x])
        past = seen.size(0) - x.size(0)
        out = dynamic_convolution(seen, self.kernels(x), first=past - self.padding)
        return out, seen[max(0, seen.size(0) - self.padding) :].permute(1, 2, 0)

    def extra_repr(self) -> str:
        return f"{self.embed_dim}, num_heads={self.num_heads}, kernel_size={self.kernel_size}, causal={self.causal}"
