r"""Multi-scale dynamic convolution of MUSE, the branch that runs in parallel with self-attention.

Zhao, Sun, Xu, Zhang, Luo: "MUSE: Parallel Multi-Scale Attention for Sequence to Sequence Learning", arXiv 1911.09483.

MUSE adds up, inside one residual block, self-attention, a convolution and the pointwise feed-forward network. The
convolution shares the value projection of attention, :math:`V = X W^V + b^V`. With [ ; ] concatenating channels,

.. math::
    \mathrm{ParAttn}(X) = [\, \mathrm{Attention}(Q, K, V) \,;\, D(V) \,] \, W^O + b^O, \qquad
    D(V) = \sum_i \mathrm{softmax}(\alpha)_i \, \mathrm{Conv}_{K_i}(V)

Projecting the concatenation is the paper's sum of separately projected branches, with one projection for all kernel
sizes as in the released code. This file holds :math:`D`; attention is the model's own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairseq_ext.modules.dynamic_convolution import DynamicConv, dynamic_convolution
from fairseq_ext.modules.masks import check_mask

__all__ = ["KernelGate", "MultiScaleConv", "parse_kernels"]


class KernelGate(nn.Module):
    r"""Learned mixture of kernel sizes.

    .. math:: D = \sum_{i=1}^{n} \mathrm{softmax}(\alpha)_i \, D_i

    MUSE (arXiv 1911.09483) calls the gate dynamic, yet :math:`\alpha` depends neither on the input nor on the position:
    it is one number per kernel size. All start at :math:`1/n`, so that :math:`D` starts as the plain average.

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

    Its input are the projected values of self-attention. Feed the concatenation of the attention heads and of this
    module's output to the output projection, which then has :attr:`out_dim` more input features.

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
        # The most taps that any kernel has before the current position, and from it on.
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
                is in; the published MUSE models were trained in this way.
        """
        if key_padding_mask is not None:
            check_mask("key_padding_mask", key_padding_mask)
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
