"""The common parts of fused layers: stacked matrices, and attention between them."""

from __future__ import annotations

from typing import Any, Self

import torch
import torch.nn.functional as F
from fairseq.modules import MultiheadAttention
from torch import Tensor, nn

from fairseq_ext.models.attention import IncrementalState, NotExportable, SelectiveAttention, additive
from fairseq_ext.models.cross_view_attention import CrossViewAttention
from fairseq_ext.models.decoding_cache import DecodingCache, Memory
from fairseq_ext.modules.sparse_attention import attention_weights

__all__ = ["FusedAttention", "FusedDecoding", "FusedLayer", "frozen_linear", "stack_columns", "stack_rows"]


def stack_rows(*linears: nn.Linear) -> nn.Linear:
    """One layer whose output is the concatenation of the outputs of ``linears``."""
    weight = torch.cat([linear.weight for linear in linears])
    return frozen_linear(weight, torch.cat([linear.bias for linear in linears]))


def stack_columns(*linears: nn.Linear) -> nn.Linear:
    """One layer whose input is the concatenation of the inputs of ``linears`` and whose output is their sum."""
    weight = torch.cat([linear.weight for linear in linears], dim=1)
    return frozen_linear(weight, torch.stack([linear.bias for linear in linears]).sum(dim=0))


def frozen_linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    linear = nn.Linear(weight.size(1), weight.size(0), device="meta")
    # Stored by columns: CPUs multiply the few rows of a beam by such a matrix about a quarter faster.
    linear.weight = nn.Parameter(weight.detach().t().contiguous().t(), requires_grad=False)
    linear.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return linear


class FusedAttention:
    """The part of attention between the projections, with the selection of ``attention``."""

    def __init__(self, attention: MultiheadAttention) -> None:
        self.num_heads = attention.num_heads
        self.scaling = attention.scaling
        self.selection: dict[str, Any] = {}
        if isinstance(attention, SelectiveAttention) and not attention.is_dense:
            self.selection = attention.selection()

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, need_weights: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """``query`` (B, H, T, D), ``key`` and ``value`` (B, H, S, D), additive ``mask``; weights (B, H, T, S)."""
        if not (self.selection or need_weights):
            return F.scaled_dot_product_attention(query, key, value, mask, scale=self.scaling), None
        scores = (query * self.scaling) @ key.transpose(-2, -1)
        scores = scores if mask is None else scores + mask
        weights = attention_weights(scores, **self.selection) if self.selection else scores.softmax(dim=-1)
        return weights @ value, weights

    def whole(self, qkv: Tensor, key_padding_mask: Tensor | None, attn_mask: Tensor | None) -> Tensor:
        """Self-attention of whole sequences, ``qkv`` (T, B, 3 * C), with additive ``attn_mask`` (T, T): (T, B, C)."""
        query, key, value = qkv.unflatten(-1, (3, self.num_heads, -1)).permute(2, 1, 3, 0, 4)
        mask = attn_mask
        if key_padding_mask is not None:
            padding = additive(key_padding_mask, qkv)[:, None, None]
            mask = padding if mask is None else padding + mask
        context, _ = self(query, key, value, mask)
        return context.permute(2, 0, 1, 3).flatten(2)


class FusedLayer(NotExportable, nn.Module):
    """Base of all fused layers: the sizes of a layer, its norm and its self-attention.

    Args:
        layer: one of fairseq's or of the suite's layers, which stays as it is.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        attention = layer.self_attn
        self.embed_dim, self.num_heads = attention.embed_dim, attention.num_heads
        self.ffn_dim = layer.fc1.out_features
        self.normalize_before = layer.normalize_before
        self.activation_fn = layer.activation_fn
        self.norm = layer.self_attn_layer_norm
        self.self_attention = FusedAttention(attention)

    def train(self, mode: bool = True) -> Self:
        if mode:
            raise RuntimeError("a fused layer has no dropout and no gradients: train the model that was fused")
        return super().train(mode)

    def extra_repr(self) -> str:
        return f"{self.embed_dim}, num_heads={self.num_heads}, normalize_before={self.normalize_before}"


class FusedDecoding(FusedLayer):
    """Base of the fused layers of decoders: the caches of generation, and attention to the encoder's output.

    Args:
        layer: as in :class:`FusedLayer`.
        cache: shared by the layers of one decoder.
    """

    def __init__(self, layer: nn.Module, cache: DecodingCache | None = None) -> None:
        super().__init__(layer)
        self.cache = DecodingCache() if cache is None else cache
        self.cache_number = self.cache.register()
        self.need_attn = layer.need_attn
        cross = layer.encoder_attn
        self.encoder_attn = cross if isinstance(cross, CrossViewAttention) else None
        self.cross_attention = self.memory_proj = None
        if cross is not None and self.encoder_attn is None:
            self.cross_attention = FusedAttention(cross)
            self.memory_proj = stack_rows(cross.k_proj, cross.v_proj)

    def step(
        self, qkv: Tensor, incremental_state: IncrementalState, key_padding_mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Self-attention of the newest position, ``qkv`` (B, 3 * C): (1, B, C), and all values so far (B, H, T, D)."""
        rows, heads = qkv.size(0), (self.num_heads, self.embed_dim // self.num_heads)
        qkv = qkv.view(rows, 3, self.embed_dim)
        key_value, padding = self.cache.append(
            incremental_state, self.cache_number, qkv[:, 1:].transpose(0, 1), key_padding_mask
        )
        key, value = key_value.view(-1, 2, rows, *heads).permute(1, 2, 3, 0, 4)
        mask = None if padding is None else additive(padding, key)[:, None, None]
        context, _ = self.self_attention(qkv[:, 0].view(rows, heads[0], 1, heads[1]), key, value, mask)
        return context.reshape(1, rows, self.embed_dim), value

    def read(
        self,
        query: Tensor,
        encoder_out: Tensor | None,
        key_padding_mask: Tensor | None,
        incremental_state: IncrementalState | None,
        need_weights: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """Cross-attention from queries (T, B, C); returns contexts (T, B, C) and weights by head (H, B, T, S).

        The encoder's output may hold one row for each sentence, which the hypotheses of a beam share.
        """
        key, value, mask = self.memory(encoder_out, key_padding_mask, incremental_state)
        length, batch, channels = query.shape
        sentences, heads, _, width = key.shape
        # the hypotheses of a beam read one memory, as if they were successive positions of one sentence
        beam = batch // sentences
        query = query.view(length, sentences, beam, heads, width).permute(1, 3, 2, 0, 4)
        query = query.reshape(sentences, heads, beam * length, width)
        context, weights = self.cross_attention(query, key, value, mask, need_weights)
        context = context.view(sentences, heads, beam, length, width).permute(3, 0, 2, 1, 4)
        if weights is not None:
            weights = weights.unflatten(2, (beam, length)).permute(1, 0, 2, 3, 4).flatten(1, 2)
        return context.reshape(length, batch, channels), weights

    def memory(
        self, encoder_out: Tensor | None, key_padding_mask: Tensor | None, incremental_state: IncrementalState | None
    ) -> Memory:
        """Keys and values of the encoder's output, computed once per sentence."""
        memory = self.cache.memory(incremental_state, self.cache_number)
        if memory is None:
            if encoder_out is None:
                raise ValueError("encoder_out must be given to a layer with cross-attention, got None")
            mask = None
            if key_padding_mask is not None and key_padding_mask.any():
                mask = additive(key_padding_mask, encoder_out)[:, None, None]
            key_value = self.memory_proj(encoder_out).unflatten(-1, (2, self.num_heads, -1)).permute(2, 1, 3, 0, 4)
            memory = (*key_value.contiguous().unbind(), mask)
            self.cache.set_memory(incremental_state, self.cache_number, memory)
        return memory

    def read_views(
        self,
        query: Tensor,
        encoder_out: Tensor,
        key_padding_mask: Tensor | None,
        incremental_state: IncrementalState | None,
        need_weights: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """As :meth:`read`, but with the original attention to several encoder layers and its output projection."""
        return self.encoder_attn(
            query,
            encoder_out,
            encoder_out,
            key_padding_mask=key_padding_mask,
            incremental_state=incremental_state,
            static_kv=True,
            need_weights=need_weights,
            need_head_weights=need_weights,
        )

    def make_generation_fast_(self, need_attn: bool = False, **kwargs: Any) -> None:
        self.need_attn = need_attn
