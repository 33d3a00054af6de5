"""The fused forms of fairseq's Transformer layers, for generation."""

from __future__ import annotations

import torch
from fairseq.modules.transformer_layer import TransformerDecoderLayerBase, TransformerEncoderLayerBase
from torch import Tensor, nn

from fairseq_ext.models.attention import IncrementalState, averaged
from fairseq_ext.models.decoding_cache import DecodingCache
from fairseq_ext.models.fused_layer import FusedDecoding, FusedLayer, stack_rows

__all__ = ["FusedDecoderLayer", "FusedEncoderLayer"]


class _WithFeedForward(FusedLayer):
    """Base of encoder and decoder layers: one matrix for queries, keys and values, and the last sub-layer."""

    option = "--inference-dtype"

    def __init__(self, layer: nn.Module, *args: DecodingCache | None) -> None:
        super().__init__(layer, *args)
        attention = layer.self_attn
        self.in_proj = stack_rows(attention.q_proj, attention.k_proj, attention.v_proj)
        self.out_proj, self.fc1, self.fc2 = (stack_rows(part) for part in (attention.out_proj, layer.fc1, layer.fc2))
        self.final_norm = layer.final_layer_norm

    def feed_forward(self, x: Tensor) -> Tensor:
        """The last sub-layer, with its residual connection and norm."""
        h = self.final_norm(x) if self.normalize_before else x
        x = x + self.fc2(self.activation_fn(self.fc1(h)))
        return x if self.normalize_before else self.final_norm(x)


class FusedEncoderLayer(_WithFeedForward):
    """fairseq's encoder layer with one input matrix in its self-attention and without dropout.

    Args:
        layer: the trained layer, which stays as it is; its norms are shared with it.
    """

    def __init__(self, layer: TransformerEncoderLayerBase) -> None:
        super().__init__(layer)
        self.eval()

    def forward(self, x: Tensor, encoder_padding_mask: Tensor | None, attn_mask: Tensor | None = None) -> Tensor:
        """Shapes as in :class:`~fairseq.modules.transformer_layer.TransformerEncoderLayerBase`."""
        if attn_mask is not None:  # finite, as in fairseq
            forbidden = -1e8 if x.dtype == torch.float32 else -1e4
            attn_mask = attn_mask.to(x.dtype).masked_fill(attn_mask.bool(), forbidden)
        h = self.norm(x) if self.normalize_before else x
        x = x + self.out_proj(self.self_attention.whole(self.in_proj(h), encoder_padding_mask, attn_mask))
        return self.feed_forward(x if self.normalize_before else self.norm(x))


class FusedDecoderLayer(_WithFeedForward, FusedDecoding):
    """fairseq's decoder layer, which at each step of generation only computes what depends on the step.

    One product makes queries, keys and values. The keys and values of the encoder's output are computed once per
    sentence; those of earlier words stay where they are (:class:`~fairseq_ext.models.decoding_cache.DecodingCache`).
    With ``--cross-view``, ``encoder_attn`` is the original module.

    Args:
        layer: the trained layer, which stays as it is; its norms and views are shared with it.
        cache: shared by the layers of one decoder.
    """

    def __init__(self, layer: TransformerDecoderLayerBase, cache: DecodingCache | None = None) -> None:
        super().__init__(layer, cache)
        self.cross_norm = layer.encoder_attn_layer_norm
        if self.cross_attention is not None:
            self.query_proj, self.context_proj = map(
                stack_rows, (layer.encoder_attn.q_proj, layer.encoder_attn.out_proj)
            )
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
        """Shapes as in fairseq's ``TransformerDecoderLayerBase``; incremental: one position a call."""
        qkv = self.in_proj(self.norm(x) if self.normalize_before else x)
        if incremental_state is None:
            context = self.self_attention.whole(qkv, self_attn_padding_mask, self_attn_mask)
        else:
            context, _ = self.step(qkv[0], incremental_state, self_attn_padding_mask)
        x = x + self.out_proj(context)
        x = x if self.normalize_before else self.norm(x)
        weights = None
        if encoder_out is not None and self.cross_norm is not None:
            h = self.cross_norm(x) if self.normalize_before else x
            memory = encoder_out, encoder_padding_mask, incremental_state
            need_weights = need_attn or need_head_weights or self.need_attn
            if self.encoder_attn is not None:
                context, weights = self.read_views(h, *memory, need_weights)
            else:
                context, weights = self.read(self.query_proj(h), *memory, need_weights)
                context = self.context_proj(context)
            x = x + context
            x = x if self.normalize_before else self.cross_norm(x)
        return self.feed_forward(x), averaged(weights, need_head_weights), None
