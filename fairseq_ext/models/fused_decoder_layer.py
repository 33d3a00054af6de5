"""The fused form of MUSE's decoder layer, with the caches of generation."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from fairseq.incremental_decoding_utils import FairseqIncrementalState
from torch import Tensor, nn

from fairseq_ext.models.attention import IncrementalState
from fairseq_ext.models.cross_view_attention import CrossViewAttention
from fairseq_ext.models.fused_layer import (
    FusedAttention,
    FusedLayer,
    additive,
    frozen_linear,
    stack_columns,
    stack_rows,
)
from fairseq_ext.models.muse_layers import MuseDecoderLayer
from fairseq_ext.modules.muse import MultiScaleConv


class _StepConv(nn.Module):
    """The last position of a causal :class:`~fairseq_ext.modules.muse.MultiScaleConv`, all kernel sizes at once.

    Every kernel is widened to the largest one. The taps it does not have get a logit of minus infinity from the bias,
    so that one softmax serves all sizes.
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
        """``last`` (B, C) is the newest of ``values`` (B, H, T, D); result (B, C), without a gate (B, n * C)."""
        kernels = self.predictor(last).unflatten(-1, self.shape).softmax(dim=-1)
        if self.shares is not None:
            kernels = self.shares @ kernels
        taps = min(self.width, values.size(2))
        return (kernels[..., -taps:] @ values[:, :, -taps:]).transpose(1, 2).flatten(1)


class FusedMuseDecoderLayer(FairseqIncrementalState, FusedLayer):
    """A :class:`~fairseq_ext.models.muse_layers.MuseDecoderLayer` with one input and one output matrix.

    The queries and the output projection of the cross-attention are merged as well, unless it reads several views:
    then ``encoder_attn`` is the original module, whose output is added.

    Example:
        >>> fused = FusedMuseDecoderLayer.from_layer(layer)
    """

    def __init__(self, layer: MuseDecoderLayer) -> None:
        super().__init__(layer)
        attention, cross = layer.self_attn, layer.encoder_attn
        self.need_attn = layer.need_attn
        self.beam_size = 1
        self.step_conv = None if self.conv is None else _StepConv(self.conv)
        rows = [attention.q_proj, attention.k_proj, attention.v_proj]
        columns = [attention.out_proj]
        merged = cross is not None and not isinstance(cross, CrossViewAttention)
        if merged:
            rows.append(cross.q_proj)
            columns.append(cross.out_proj)
            self.cross_attention = FusedAttention(cross)
            self.memory_proj = stack_rows(cross.k_proj, cross.v_proj)
            self.beam_size = cross.beam_size
        self.in_proj = stack_rows(*rows, layer.fc1)
        self.out_proj = stack_columns(*columns, layer.fc2)
        self.widths = [self.embed_dim, 2 * self.embed_dim, self.embed_dim if merged else 0, self.ffn_dim]
        self.merges_cross_attention = merged
        self.encoder_attn = None if merged else cross
        self.eval()

    @classmethod
    def from_layer(cls, layer: MuseDecoderLayer) -> FusedMuseDecoderLayer:
        """The fused copy of a trained layer, which stays as it is; norm, convolution and views are shared with it."""
        return cls(layer)

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
        """Shapes as in :class:`~fairseq_ext.models.muse_layers.MuseDecoderLayer`; incremental, one position a call."""
        need_weights = need_attn or need_head_weights or self.need_attn
        h = self.norm(x) if self.normalize_before else x
        projected = self.in_proj(h)
        hidden = projected[..., -self.ffn_dim :]
        if incremental_state is None:
            qkv = projected[..., : 3 * self.embed_dim]
            blocks = self.attend_and_convolve(qkv, self_attn_padding_mask, self_attn_mask)
        else:
            blocks = self.step(projected[0], incremental_state, self_attn_padding_mask)
        weights = None
        if self.merges_cross_attention:
            query = projected[..., 3 * self.embed_dim : 4 * self.embed_dim]
            memory = self.memory(encoder_out, encoder_padding_mask, incremental_state)
            context, weights = self.read(query, *memory, need_weights)
            blocks.append(context)
        y = x + self.out_proj(torch.cat([*blocks, self.activation_fn(hidden)], dim=-1))
        if self.encoder_attn is not None and encoder_out is not None:
            context, weights = self.encoder_attn(
                h,
                encoder_out,
                encoder_out,
                key_padding_mask=encoder_padding_mask,
                incremental_state=incremental_state,
                static_kv=True,
                need_weights=need_weights,
                need_head_weights=need_head_weights,
            )
            y = y + context
        elif weights is not None and not need_head_weights:
            weights = weights.mean(dim=0)
        return (y if self.normalize_before else self.norm(y)), weights, None

    def step(
        self, projected: Tensor, incremental_state: IncrementalState, key_padding_mask: Tensor | None
    ) -> list[Tensor]:
        """The self-attention and convolution blocks of the newest position, from ``projected`` (B, ...)."""
        saved = self.get_incremental_state(incremental_state, "self") or {}
        past, padding = saved.get("key_value"), saved.get("padding")
        # keys and values share one cache (B, T, 2 * C): one tensor to extend and to reorder
        latest = projected[:, None, self.embed_dim : 3 * self.embed_dim]
        cache = latest if past is None else torch.cat([past, latest], dim=1)
        if key_padding_mask is not None or padding is not None:
            seen = cache.size(1) - (0 if key_padding_mask is None else 1)
            if padding is None:
                padding = torch.zeros(cache.size(0), 0, dtype=torch.bool, device=cache.device)
            padding = F.pad(padding, (0, seen - padding.size(1)))
            if key_padding_mask is not None:
                padding = torch.cat([padding, key_padding_mask.bool()], dim=1)
        self.set_incremental_state(incremental_state, "self", {"key_value": cache, "padding": padding})
        query = projected[:, : self.embed_dim].unflatten(-1, (self.num_heads, 1, -1))
        key, value = cache.unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind()
        context, _ = self.self_attention(query, key, value, None if padding is None else additive(padding, cache))
        blocks = [context.reshape(1, -1, self.embed_dim)]
        if self.step_conv is not None:
            blocks.append(self.step_conv(latest[:, 0, self.embed_dim :], value)[None])
        return blocks

    def memory(
        self, encoder_out: Tensor | None, key_padding_mask: Tensor | None, incremental_state: IncrementalState | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Keys, values (B', H, S, D) and mask of the encoder's output, B' being B, or B / beam when shared by beams."""
        saved = self.get_incremental_state(incremental_state, "memory")
        if saved is not None:
            return saved["key"], saved["value"], saved["mask"]
        if encoder_out is None:
            raise ValueError("encoder_out must be given to a layer with merged cross-attention, got None")
        if incremental_state is not None and self.beam_size > 1:
            encoder_out = encoder_out[:, :: self.beam_size]
            key_padding_mask = None if key_padding_mask is None else key_padding_mask[:: self.beam_size]
        mask = None
        if key_padding_mask is not None and key_padding_mask.any():
            mask = additive(key_padding_mask, encoder_out)
        key_value = self.memory_proj(encoder_out).unflatten(-1, (2, self.num_heads, -1)).permute(2, 1, 3, 0, 4)
        key, value = key_value.contiguous().unbind()
        self.set_incremental_state(incremental_state, "memory", {"key": key, "value": value, "mask": mask})
        return key, value, mask

    def read(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, need_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Cross-attention from queries (T, B, C): contexts (T, B, C), weights by head (H, B, T, S)."""
        length, batch, _ = query.shape
        # the hypotheses of a beam read one memory like successive positions of one sentence
        beam = batch // key.size(0)
        query = query.unflatten(-1, (self.num_heads, -1)).unflatten(1, (-1, beam)).permute(1, 3, 2, 0, 4).flatten(2, 3)
        context, weights = self.cross_attention(query, key, value, mask, need_weights)
        context = context.unflatten(2, (beam, length)).permute(3, 0, 2, 1, 4).reshape(length, batch, -1)
        if weights is not None:
            weights = weights.unflatten(2, (beam, length)).permute(1, 0, 2, 3, 4).flatten(1, 2)
        return context, weights

    def reorder_incremental_state(self, incremental_state: IncrementalState, new_order: Tensor) -> IncrementalState:
        """Called by beam search between two steps."""
        for name in ("self", "memory"):
            saved = self.get_incremental_state(incremental_state, name)
            order = new_order
            if saved is None:
                continue
            if name == "memory":
                if saved["key"].size(0) * self.beam_size == new_order.size(0):
                    continue  # as in fairseq: hypotheses then only change places within their sentence
                order = new_order[:: self.beam_size] // self.beam_size
            reordered = {key: None if part is None else part.index_select(0, order) for key, part in saved.items()}
            self.set_incremental_state(incremental_state, name, reordered)
        return incremental_state

    def set_beam_size(self, beam_size: int) -> None:
        """Lets the ``beam_size`` hypotheses of a sentence share the keys and values of the encoder's output."""
        self.beam_size = beam_size

    def make_generation_fast_(self, need_attn: bool = False, **kwargs: Any) -> None:
        self.need_attn = need_attn
