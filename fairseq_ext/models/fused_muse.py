"""The fused forms of MUSE's layers."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairseq_ext.models.attention import IncrementalState, additive, averaged
from fairseq_ext.models.decoding_cache import DecodingCache
from fairseq_ext.models.fused_layer import (
    FusedDecoding,
    FusedLayer,
    frozen_linear,
    stack_columns,
    stack_rows,
)
from fairseq_ext.models.muse_attention import MuseSelfAttention
from fairseq_ext.models.muse_layers import MuseDecoderLayer, MuseEncoderLayer
from fairseq_ext.modules.muse import MultiScaleConv

__all__ = ["FusedMuseDecoderLayer", "FusedMuseEncoderLayer"]


class _StepConv(nn.Module):
    """The last position of a causal :class:`~fairseq_ext.modules.muse.MultiScaleConv`, all kernel sizes at once.

    Every kernel is widened to the largest one. The taps that are added get a logit of minus infinity from the bias, so
    that one softmax serves all sizes.
    """

    def __init__(self, conv: MultiScaleConv) -> None:
        super().__init__()
        heads, self.width = conv.convs[0].num_heads, max(part.kernel_size for part in conv.convs)
        weights, biases = [], []
        for part in conv.convs:
            absent = (0, 0, self.width - part.kernel_size, 0)
            taps = part.weight_linear.weight.detach().unflatten(0, (heads, part.kernel_size))
            weights.append(F.pad(taps, absent))
            biases.append(F.pad(taps.new_zeros(heads, part.kernel_size), absent[2:], value=float("-inf")))
        # rows ordered head, kernel, tap: the kernels of a head are the rows of one small matrix
        self.predictor = frozen_linear(torch.stack(weights, 1).flatten(0, 2), torch.stack(biases, 1).flatten())
        self.shape = (heads, len(conv.convs), self.width)
        self.register_buffer("shares", None if conv.gate is None else conv.gate.weight.detach().softmax(0)[None])

    def forward(self, last: Tensor, values: Tensor) -> Tensor:
        """``last`` (B, C) is the newest of ``values`` (B, H, T, D); the result is (B, C), without a gate (B, n * C)."""
        kernels = self.predictor(last).unflatten(-1, self.shape).softmax(dim=-1)
        if self.shares is not None:
            kernels = self.shares @ kernels
        taps = min(self.width, values.size(2))
        return (kernels[..., -taps:] @ values[:, :, -taps:]).transpose(1, 2).flatten(1)


class _WithConvolution(FusedLayer):
    """Base of MUSE's fused layers: the convolution beside self-attention."""

    option = "--block muse, muse-simple"

    def __init__(self, layer: MuseEncoderLayer | MuseDecoderLayer, *args: Any) -> None:
        super().__init__(layer, *args)
        attention = layer.self_attn
        self.conv = attention.conv if isinstance(attention, MuseSelfAttention) else None
        self.mask_padding = self.conv is not None and attention.mask_padding

    def attend_and_convolve(
        self, qkv: Tensor, key_padding_mask: Tensor | None, attn_mask: Tensor | None
    ) -> list[Tensor]:
        """The self-attention and convolution blocks of whole sequences, from ``qkv`` (T, B, 3 * C)."""
        blocks = [self.self_attention.whole(qkv, key_padding_mask, attn_mask)]
        if self.conv is not None:
            blocks.append(self.conv(qkv[..., -self.embed_dim :], key_padding_mask if self.mask_padding else None))
        return blocks


class FusedMuseEncoderLayer(_WithConvolution):
    """A :class:`~fairseq_ext.models.muse_layers.MuseEncoderLayer` with one input and one output matrix.

    Args:
        layer: the trained layer, which stays as it is; norm and convolution are shared with it.
    """

    def __init__(self, layer: MuseEncoderLayer) -> None:
        super().__init__(layer)
        attention = layer.self_attn
        self.in_proj = stack_rows(attention.q_proj, attention.k_proj, attention.v_proj, layer.fc1)
        self.out_proj = stack_columns(attention.out_proj, layer.fc2)
        self.eval()

    def forward(self, x: Tensor, encoder_padding_mask: Tensor | None, attn_mask: Tensor | None = None) -> Tensor:
        """Shapes as in :class:`~fairseq_ext.models.muse_layers.MuseEncoderLayer`."""
        attn_mask = None if attn_mask is None else additive(attn_mask, x)
        h = self.norm(x) if self.normalize_before else x
        qkv, hidden = self.in_proj(h).split([3 * self.embed_dim, self.ffn_dim], dim=-1)
        blocks = self.attend_and_convolve(qkv, encoder_padding_mask, attn_mask)
        x = x + self.out_proj(torch.cat([*blocks, self.activation_fn(hidden)], dim=-1))
        return x if self.normalize_before else self.norm(x)


class FusedMuseDecoderLayer(_WithConvolution, FusedDecoding):
    """A :class:`~fairseq_ext.models.muse_layers.MuseDecoderLayer` with one input and one output matrix.

    The queries and the output projection of the cross-attention are merged as well, unless it reads several views:
    then ``encoder_attn`` is the original module, whose output is added.

    Args:
        layer: the trained layer, which stays as it is; norm, convolution and views are shared with it.
        cache: shared by the layers of one decoder.
    """

    def __init__(self, layer: MuseDecoderLayer, cache: DecodingCache | None = None) -> None:
        super().__init__(layer, cache)
        attention, cross = layer.self_attn, layer.encoder_attn
        self.step_conv = None if self.conv is None else _StepConv(self.conv)
        rows = [attention.q_proj, attention.k_proj, attention.v_proj]
        columns = [attention.out_proj]
        if self.cross_attention is not None:
            rows.append(cross.q_proj)
            columns.append(cross.out_proj)
        self.in_proj = stack_rows(*rows, layer.fc1)
        self.out_proj = stack_columns(*columns, layer.fc2)
        self.eval()

    def forward(
        self,
        x: Tensor,
        encoder_out: Tensor | None = None,
        encoder_padding_mask: Tensor | None = None,
        incremental_state: IncrementalState | None = None,
        self_attn_mask: Tensor | None = None,
        self_attn_padding_mask: Tensor | None = None,
        need_attn: bool = False,
        need_head_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None, None]:
        """Shapes as in :class:`~fairseq_ext.models.muse_layers.MuseDecoderLayer`; incremental: one position a call."""
        memory = encoder_out, encoder_padding_mask, incremental_state, need_attn or need_head_weights or self.need_attn
        h = self.norm(x) if self.normalize_before else x
        projected = self.in_proj(h)
        qkv, hidden = projected[..., : 3 * self.embed_dim], projected[..., -self.ffn_dim :]
        if incremental_state is None:
            blocks = self.attend_and_convolve(qkv, self_attn_padding_mask, self_attn_mask)
        else:
            context, values = self.step(qkv[0], incremental_state, self_attn_padding_mask)
            blocks = [context]
            if self.step_conv is not None:
                blocks.append(self.step_conv(qkv[0, :, -self.embed_dim :], values)[None])
        weights = None
        if self.cross_attention is not None:
            context, weights = self.read(projected[..., 3 * self.embed_dim : 4 * self.embed_dim], *memory)
            blocks.append(context)
        y = x + self.out_proj(torch.cat([*blocks, self.activation_fn(hidden)], dim=-1))
        if self.encoder_attn is not None and encoder_out is not None:
            context, weights = self.read_views(h, *memory)
            y = y + context
        return (y if self.normalize_before else self.norm(y)), averaged(weights, need_head_weights), None
