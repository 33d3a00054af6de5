"""The layers of MUSE: attention, convolution and feed-forward network side by side (arXiv 1911.09483)."""

from __future__ import annotations

from typing import Any

from fairseq.modules import FairseqDropout, MultiheadAttention
from torch import Tensor

from fairseq_ext.models.attention import IncrementalState, NotExportable, additive
from fairseq_ext.models.layers import DecoderLayer, EncoderLayer, common_arguments, selection
from fairseq_ext.models.muse_attention import MuseSelfAttention
from fairseq_ext.modules.cross_view import CrossViewFusion
from fairseq_ext.modules.muse import MultiScaleConv, parse_kernels

__all__ = ["MuseDecoderLayer", "MuseEncoderLayer"]


def _muse_attention(cfg: Any, side: str, index: int, **kwargs: Any) -> MuseSelfAttention:
    part = getattr(cfg, side)
    conv = MultiScaleConv(
        part.embed_dim,
        part.attention_heads,
        parse_kernels(cfg.muse_kernels, part.layers)[index - 1],
        causal=side == "decoder",
        gate=not cfg.muse_no_gate,
        weight_dropout=cfg.muse_weight_dropout,
    )
    return MuseSelfAttention(
        conv=conv,
        mask_padding=not cfg.muse_no_padding_mask,
        self_attention=True,
        **common_arguments(cfg, side),
        **selection(cfg, f"{side}-self"),
        **kwargs,
    )


class MuseEncoderLayer(NotExportable, EncoderLayer):
    r"""Self-attention (with the convolution of ``--block muse``) and feed-forward network side by side.

    There is one residual connection and one norm :math:`N`: with :math:`h = N(x)` (pre-norm) or :math:`h = x`
    (post-norm), :math:`y = x + \mathrm{ParAttn}(h) + \mathrm{FFN}(h)`, followed by :math:`N` if post-norm (arXiv
    1911.09483).
    """

    option = "--block muse, muse-simple"

    def __init__(self, cfg: Any, index: int) -> None:
        super().__init__(cfg, index)
        self.final_layer_norm = None  # an unused norm would break DistributedDataParallel
        self.input_dropout_module = FairseqDropout(cfg.muse_input_dropout, module_name=type(self).__name__)

    def build_self_attention(self, embed_dim: int, cfg: Any) -> MultiheadAttention:
        if cfg.block == "muse":
            return _muse_attention(cfg, "encoder", self.index)
        return super().build_self_attention(embed_dim, cfg)

    def forward(self, x: Tensor, encoder_padding_mask: Tensor | None, attn_mask: Tensor | None = None) -> Tensor:
        """``x`` (S, B, C), ``encoder_padding_mask`` (B, S), ``attn_mask`` (S, S) true where attention is forbidden."""
        attn_mask = None if attn_mask is None else additive(attn_mask, x)
        h = self.self_attn_layer_norm(x) if self.normalize_before else x
        u = self.input_dropout_module(h)
        attention, _ = self.self_attn(u, u, u, encoder_padding_mask, need_weights=False, attn_mask=attn_mask)
        ffn = self.fc2(self.activation_dropout_module(self.activation_fn(self.fc1(h))))
        x = x + self.dropout_module(attention) + self.dropout_module(ffn)
        return x if self.normalize_before else self.self_attn_layer_norm(x)


class MuseDecoderLayer(NotExportable, DecoderLayer):
    """Causal self-attention (with convolution), cross-attention and feed-forward network side by side.

    All three read the layer's input. There is one residual connection and one norm, as in :class:`MuseEncoderLayer`.
    """

    option = "--block muse, muse-simple"

    def __init__(
        self, cfg: Any, index: int, no_encoder_attn: bool = False, fusion: CrossViewFusion | None = None
    ) -> None:
        super().__init__(cfg, index, no_encoder_attn, fusion)
        self.encoder_attn_layer_norm = self.final_layer_norm = None
        self.input_dropout_module = FairseqDropout(cfg.muse_input_dropout, module_name=type(self).__name__)

    def build_self_attention(
        self, embed_dim: int, cfg: Any, add_bias_kv: bool = False, add_zero_attn: bool = False
    ) -> MultiheadAttention:
        extras = {"add_bias_kv": add_bias_kv, "add_zero_attn": add_zero_attn}
        if cfg.block == "muse":
            return _muse_attention(cfg, "decoder", self.index, **extras)
        return super().build_self_attention(embed_dim, cfg, **extras)

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
        """Shapes as in :class:`~fairseq.modules.transformer_layer.TransformerDecoderLayerBase`."""
        h = self.self_attn_layer_norm(x) if self.normalize_before else x
        u = self.input_dropout_module(h)
        attention, _ = self.self_attn(
            u, u, u, self_attn_padding_mask, incremental_state, need_weights=False, attn_mask=self_attn_mask
        )
        x = x + self.dropout_module(attention)
        weights = None
        if self.encoder_attn is not None and encoder_out is not None:
            context, weights = self.encoder_attn(
                h,
                encoder_out,
                encoder_out,
                key_padding_mask=encoder_padding_mask,
                incremental_state=incremental_state,
                static_kv=True,
                need_weights=need_attn or (not self.training and self.need_attn),
                need_head_weights=need_head_weights,
            )
            x = x + self.dropout_module(context)
        x = x + self.dropout_module(self.feed_forward(h))
        return (x if self.normalize_before else self.self_attn_layer_norm(x)), weights, None
