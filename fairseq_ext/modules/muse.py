r"""Multi-scale dynamic convolution of MUSE, the branch that runs in parallel with self-attention.

Zhao, Sun, Xu, Zhang, Luo: "MUSE: Parallel Multi-Scale Attention for Sequence to Sequence Learning", arXiv 1911.09483.

MUSE adds up, inside one residual block, self-attention, a convolution and the pointwise feed-forward network. The
convolution shares the value projection of attention, :math:`V = X W^V + b^V`. With [ ; ] concatenating channels,

.. math::
    \mathrm{ParAttn}(X) = [\, \mathrm{Attention}(Q, K, V) \,;\, D(V) \,] \, W^O + b^O, \qquad
    D(V) = \sum_i \mathrm{softmax}(\alpha)_i \, \mathrm{Conv}_{K_i}(V)

Projecting the concatenation is the paper's sum of separately projected branches, with one projection for all kernel
sizes as in the released code. This file holds :math:`D` and the initialisation; attention is the model's own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Positions per band matrix. Up to about this length one dense matrix is fastest (also against sums over shifted inputs
# and unfolding, by a factor of 2 to 5); beyond it, blocks keep time and memory linear in the length.
_BLOCK = 128

INIT_LAWS = ("km", "xavier", "xi", "fixup")


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
            state: what the last call returned, None at the start. The batch comes first, so that beam search re-orders
                it with ``state.index_select(0, order)`` like any other cache.

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


class KernelGate(nn.Module):
    r"""Learned mixture of kernel sizes.

    .. math:: D = \sum_{i=1}^{n} \mathrm{softmax}(\alpha)_i \, D_i

    MUSE (arXiv 1911.09483) calls the gate dynamic, yet :math:`\alpha` depends neither on the input nor on the position:
    it is one number per kernel size. It starts at :math:`1/n`, that is from the plain average.

    Args:
        num_kernels: how many tensors are mixed, :math:`n`.

    Shape:
        - input: ``n`` tensors of one shape
        - output: that shape
        - ``weight``: :math:`(n)`
    """

    def __init__(self, num_kernels: int) -> None:
        super().__init__()
        if num_kernels < 1:
            raise ValueError(f"num_kernels must be at least 1, got {num_kernels}")
        self.weight = nn.Parameter(torch.empty(num_kernels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start from the plain average."""
        nn.init.constant_(self.weight, 1 / self.weight.numel())

    def forward(self, branches: list[Tensor]) -> Tensor:
        """Mix the branches."""
        if len(branches) != self.weight.numel():
            raise ValueError(f"branches must be {self.weight.numel()} tensors, one per kernel, got {len(branches)}")
        shares = self.weight.softmax(dim=0)
        mixed = shares[0] * branches[0]
        for share, branch in zip(shares[1:], branches[1:]):  # noqa: B905 -- TorchScript's zip takes nothing else
            mixed = mixed + share * branch
        return mixed

    def extra_repr(self) -> str:
        return f"{self.weight.numel()}"


class MultiScaleConv(nn.Module):
    r"""Dynamic convolutions of several widths over one input, mixed by a gate or concatenated (MUSE, arXiv 1911.09483).

    .. math::
        D(x) = \sum_i \mathrm{softmax}(\alpha)_i \, \mathrm{Conv}_{K_i}(x) \quad\text{(gate)}, \qquad
        D(x) = [\, \mathrm{Conv}_{K_1}(x) \,;\, \dots \,;\, \mathrm{Conv}_{K_n}(x) \,] \quad\text{(no gate)}

    Feed it the projected values of self-attention, and the concatenation of the attention heads and of this module's
    output to the output projection (:attr:`out_dim` more input features).

    Args:
        embed_dim: channels :math:`C`.
        num_heads: kernels per position in every convolution.
        kernel_sizes: the widths :math:`K_i`. MUSE: 3 and 15 in every layer.
        causal: read positions up to the current one only (decoder).
        gate: mix by :class:`KernelGate` instead of concatenating. Default: True (paper and released code).
        weight_dropout: see :class:`DynamicConv`.

    Shape:
        - input: :math:`(T, B, C)`
        - output: :math:`(T, B, C)` with the gate, :math:`(T, B, nC)` without
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        kernel_sizes: Sequence[int],
        causal: bool = False,
        gate: bool = True,
        weight_dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if not kernel_sizes:
            raise ValueError("kernel_sizes must name at least one kernel size, got none")
        self.convs: Sequence[DynamicConv] = nn.ModuleList(  # type: ignore[assignment]
            DynamicConv(embed_dim, num_heads, size, causal, weight_dropout) for size in kernel_sizes
        )
        # The most taps before the current position, and from it on.
        self.reach = (
            max(conv.padding for conv in self.convs),
            max(conv.kernel_size - conv.padding for conv in self.convs),
        )
        self.gate = KernelGate(len(kernel_sizes)) if gate else None
        self.out_dim = embed_dim if gate else embed_dim * len(kernel_sizes)

    def reset_parameters(self) -> None:
        """Draw the kernel predictors anew and open the gate evenly."""
        for conv in self.convs:
            conv.reset_parameters()
        if self.gate is not None:
            self.gate.reset_parameters()

    def forward(self, x: Tensor, key_padding_mask: Tensor | None = None) -> Tensor:
        """Convolve whole sequences.

        Args:
            x: input, :math:`(T, B, C)`.
            key_padding_mask: True at padding, :math:`(B, T)`. Those positions are set to zero first. Without it a
                convolution mixes padding into the words next to it, so that the result depends on the batch a sentence
                is in: this is what the published MUSE models were trained with.
        """
        if key_padding_mask is not None:
            x = x.masked_fill(key_padding_mask.t().unsqueeze(-1), 0)
        if self.gate is None:
            outputs = []
            for conv in self.convs:  # TorchScript unrolls loops over modules, but not comprehensions
                outputs.append(conv(x))
            return torch.cat(outputs, dim=-1)
        # The gate is linear: mixing the kernels, aligned on the current position, leaves one convolution instead of n.
        before, after = self.reach
        aligned = []
        for conv in self.convs:
            left, right = before - conv.padding, after - conv.kernel_size + conv.padding
            aligned.append(F.pad(conv.kernels(x), (left, right)))
        return dynamic_convolution(x, self.gate(aligned), first=-before)

    @torch.jit.export
    def step(self, x: Tensor, state: list[Tensor] | None = None) -> tuple[Tensor, list[Tensor]]:
        """Convolve the next position(s), with one state per kernel size: see :meth:`DynamicConv.step`."""
        outputs, states = [], []
        for index, conv in enumerate(self.convs):
            out, last = conv.step(x, None if state is None else state[index])
            outputs.append(out)
            states.append(last)
        mixed = torch.cat(outputs, dim=-1) if self.gate is None else self.gate(outputs)
        return mixed, states


def parse_kernels(text: str, num_layers: int) -> list[tuple[int, ...]]:
    """Read ``--muse-kernels``: ``"3,15"`` for every layer, ``"3/3/7,15"`` layer by layer.

    Args:
        text: kernel sizes, separated by commas within a layer and by slashes between layers.
        num_layers: layers of the stack.

    Returns:
        The kernel sizes of each of the ``num_layers`` layers.

    Raises:
        ValueError: if a kernel size is not a positive whole number, or the layers are not ``num_layers``.
    """
    layers = [[size.strip() for size in layer.split(",")] for layer in text.split("/")]
    if not all(size.isascii() and size.isdigit() and int(size) > 0 for layer in layers for size in layer):
        raise ValueError(f"--muse-kernels must be positive whole numbers like '3,15' or '3/3/7,15', got {text!r}")
    if len(layers) == 1:
        layers *= num_layers
    if len(layers) != num_layers:
        raise ValueError(f"--muse-kernels {text!r} names {len(layers)} layers, but the model has {num_layers}")
    return [tuple(int(size) for size in layer) for layer in layers]


def _check_law(law: str) -> None:
    if law not in INIT_LAWS:
        raise ValueError(f"law must be one of {', '.join(INIT_LAWS)}, got {law!r}")


def _uniform_(linear: nn.Linear, bound: float) -> None:
    nn.init.uniform_(linear.weight, -bound, bound)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)


def init_attention_projection_(linear: nn.Linear, law: str, role: str) -> None:
    r"""Initialise a projection of self- or cross-attention as the released MUSE code does; the bias becomes 0.

    =========================  ========================================  =======================================
    law                        ``"in"``: query, key, value               ``"out"``: output
    =========================  ========================================  =======================================
    ``km``, ``xi``, ``fixup``  :math:`U(\pm\sqrt{1/f_{in}})`             :math:`U(\pm\sqrt{3/f_{in}})`
    ``xavier``                 :math:`U(\pm\sqrt{6/(f_{in}+3f_{out})})`  :math:`U(\pm\sqrt{6/(f_{in}+f_{out})})`
    =========================  ========================================  =======================================

    The three input projections count as one matrix under ``xavier``, hence the 3. ``km`` is
    the default of the released code; the authors call the step from Xavier to this smaller law essential.

    Args:
        linear: the projection, changed in place.
        law: one of :data:`INIT_LAWS`.
        role: ``"in"`` or ``"out"``.
    """
    _check_law(law)
    if role not in ("in", "out"):
        raise ValueError(f"role must be 'in' or 'out', got {role!r}")
    fan_in, fan_out = linear.in_features, linear.out_features
    if law == "xavier":
        bound = math.sqrt(6 / (fan_in + (3 * fan_out if role == "in" else fan_out)))
    else:
        bound = math.sqrt((1 if role == "in" else 3) / fan_in)
    _uniform_(linear, bound)


def init_ffn_(linear: nn.Linear, law: str, layer_index: int) -> None:
    r"""Initialise a linear map of the feed-forward network as the released MUSE code does; the bias becomes 0.

    ==========  ================================================================
    law         weight
    ==========  ================================================================
    ``km``      :math:`U(\pm\sqrt{1/f_{in}})`
    ``xavier``  :math:`U(\pm g\sqrt{6/(f_{in}+f_{out})})` with :math:`g=1`
    ``xi``      the same with :math:`g=1/\sqrt{l+1}` in layer :math:`l=0,1,\dots`
    ``fixup``   the same with :math:`g=1/\sqrt{6}`
    ==========  ================================================================

    Args:
        linear: the map, changed in place.
        law: one of :data:`INIT_LAWS`.
        layer_index: position :math:`l` of the layer in its stack; only ``xi`` depends on it.
    """
    _check_law(law)
    fan_in, fan_out = linear.in_features, linear.out_features
    if law == "km":
        bound = math.sqrt(1 / fan_in)
    else:
        gain = {"xavier": 1.0, "xi": 1 / math.sqrt(layer_index + 1), "fixup": 1 / math.sqrt(6)}[law]
        bound = gain * math.sqrt(6 / (fan_in + fan_out))
    _uniform_(linear, bound)
