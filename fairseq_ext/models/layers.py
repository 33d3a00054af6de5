"""Encoder and decoder layers: fairseq's with other attentions and norms, and sequential views."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fairseq.modules import MultiheadAttention
from fairseq.modules.transformer_layer import TransformerDecoderLayerBase, TransformerEncoderLayerBase
from torch import Tensor, nn

from fairseq_ext.models.adaptive_span import AdaptiveSpanSelfAttention
from fairseq_ext.models.attention import IncrementalState, NotExportable, SelectiveAttention, averaged
from fairseq_ext.models.cross_view_attention import CrossViewAttention
from fairseq_ext.models.ext_options import selecting_attentions
from fairseq_ext.models.norms import build_norm, rebuild_norms_
from fairseq_ext.modules.cross_view import CrossViewFusion
from fairseq_ext.modules.muse_init import init_attention_projection_, init_ffn_

__all__ = [
    "DecoderLayer",
    "EncoderLayer",
    "SequentialViewsDecoderLayer",
    "changes_layers",
    "common_arguments",
    "selection",
]


def selection(cfg: Any, attention: str) -> dict[str, Any]:
    """The :class:`SelectiveAttention` arguments for ``encoder-self``, ``decoder-self`` or ``cross``; none if dense."""
    if attention not in selecting_attentions(cfg):
        return {}
    if cfg.attention_normalizer != "softmax":
        return {"normalizer": cfg.attention_normalizer}
    if not (cfg.attention_topk or cfg.attention_topk_ratio):
        return {}
    return {
        "topk": cfg.attention_topk,
        "topk_ratio": cfg.attention_topk_ratio,
        "topk_min": cfg.attention_topk_min,
        "select": cfg.attention_topk_select,
        "causal": cfg.attention_topk_select == "window" and attention == "decoder-self",
    }


def changes_layers(cfg: Any, side: str, cross_attention: bool = True) -> bool:
    """Whether an option asks for other layers than fairseq's in ``encoder`` or ``decoder``."""
    attentions = [f"{side}-self", *(["cross"] if side == "decoder" and cross_attention else [])]
    return (
        cfg.block != "transformer"
        or cfg.init != "fairseq"
        or cfg.norm != "layernorm"
        or (side == "decoder" and cfg.attention_span > 0)
        or any(selection(cfg, attention) for attention in attentions)
        or (side == "decoder" and cfg.cross_view != "none")
    )


def common_arguments(cfg: Any, side: str) -> dict[str, Any]:
    part = getattr(cfg, side)
    return {
        "embed_dim": part.embed_dim,
        "num_heads": part.attention_heads,
        "dropout": cfg.attention_dropout,
        "q_noise": cfg.quant_noise.pq,
        "qn_block_size": cfg.quant_noise.pq_block_size,
    }


def _span_attention(cfg: Any) -> AdaptiveSpanSelfAttention:
    return AdaptiveSpanSelfAttention(
        max_span=cfg.attention_span,
        ramp=cfg.attention_span_ramp,
        init=cfg.attention_span_init,
        loss_coeff=cfg.attention_span_loss,
        k=cfg.attention_topk,
        ratio=cfg.attention_topk_ratio,
        minimum=cfg.attention_topk_min,
        **common_arguments(cfg, "decoder"),
    )


def _apply_init_(layer: nn.Module, law: str, index: int) -> None:
    if law == "fairseq":
        return
    for attention in layer.modules():
        if isinstance(attention, MultiheadAttention | AdaptiveSpanSelfAttention):
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
                init_attention_projection_(projection, law, "in")
            init_attention_projection_(attention.out_proj, law, "out")
    for linear in (layer.fc1, layer.fc2):
        init_ffn_(linear, law, index - 1)


class EncoderLayer(TransformerEncoderLayerBase):
    """fairseq's encoder layer, with a :class:`SelectiveAttention` where one is asked for.

    Args:
        cfg: nested config carrying :class:`~fairseq_ext.models.config.ExtOptions`.
        index: number of the layer, 1 at the bottom.
    """

    def __init__(self, cfg: Any, index: int) -> None:
        self.index = index  # read by build_self_attention, which the parent's constructor calls
        super().__init__(cfg)
        rebuild_norms_(self, cfg, "self_attn_layer_norm", "final_layer_norm")
        _apply_init_(self, cfg.init, index)

    def build_self_attention(self, embed_dim: int, cfg: Any) -> MultiheadAttention:
        if chosen := selection(cfg, "encoder-self"):
            return SelectiveAttention(self_attention=True, **common_arguments(cfg, "encoder"), **chosen)
        return super().build_self_attention(embed_dim, cfg)


class DecoderLayer(TransformerDecoderLayerBase):
    """fairseq's decoder layer, with :class:`SelectiveAttention` or :class:`CrossViewAttention` for views.

    Args:
        cfg: nested config carrying :class:`~fairseq_ext.models.config.ExtOptions`.
        index: number of the layer, 1 at the bottom.
        no_encoder_attn: build no cross-attention (language models).
        fusion: how this layer reads the encoder's layers; ``None`` for the last layer alone.
    """

    def __init__(
        self, cfg: Any, index: int, no_encoder_attn: bool = False, fusion: CrossViewFusion | None = None
    ) -> None:
        self.index = index
        super().__init__(cfg, no_encoder_attn=no_encoder_attn)
        rebuild_norms_(self, cfg, "self_attn_layer_norm", "encoder_attn_layer_norm", "final_layer_norm")
        if fusion is not None:
            self.encoder_attn = self.build_encoder_attention(self.embed_dim, cfg, fusion)
        _apply_init_(self, cfg.init, index)

    def build_self_attention(
        self, embed_dim: int, cfg: Any, add_bias_kv: bool = False, add_zero_attn: bool = False
    ) -> MultiheadAttention:
        extras = {"add_bias_kv": add_bias_kv, "add_zero_attn": add_zero_attn}
        if cfg.attention_span:
            return _span_attention(cfg)
        if chosen := selection(cfg, "decoder-self"):
            return SelectiveAttention(
                self_attention=not cfg.cross_self_attention, **common_arguments(cfg, "decoder"), **chosen, **extras
            )
        return super().build_self_attention(embed_dim, cfg, **extras)

    def build_encoder_attention(
        self, embed_dim: int, cfg: Any, fusion: CrossViewFusion | None = None
    ) -> MultiheadAttention:
        chosen = selection(cfg, "cross")
        if fusion is None and not chosen:
            return super().build_encoder_attention(embed_dim, cfg)
        arguments = {
            "kdim": cfg.encoder.embed_dim,
            "vdim": cfg.encoder.embed_dim,
            "encoder_decoder_attention": True,
            **common_arguments(cfg, "decoder"),
            **chosen,
        }
        return SelectiveAttention(**arguments) if fusion is None else CrossViewAttention(fusion=fusion, **arguments)

    def feed_forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation_dropout_module(self.activation_fn(self.fc1(x))))


class SequentialViewsDecoderLayer(NotExportable, DecoderLayer):
    """A decoder layer that reads its views in successive residual sub-layers, each with a norm of its own.

    It has a forward pass of its own because this fusion alone does not end in a single context. The second norm is
    ``encoder_attn_aux_layer_norm``; a layer with a single view has none.
    """

    option = "--cross-view"

    def __init__(self, cfg: Any, index: int, no_encoder_attn: bool, fusion: CrossViewFusion) -> None:
        super().__init__(cfg, index, no_encoder_attn, fusion)
        if len(fusion.views) > 1:
            self.encoder_attn_aux_layer_norm = build_norm(cfg, self.embed_dim)

    def forward(
        self,
        x: Tensor,
        encoder_out: Tensor,
        encoder_padding_mask: Tensor | None = None,
        incremental_state: IncrementalState | None = None,
        self_attn_mask: Tensor | None = None,
        self_attn_padding_mask: Tensor | None = None,
        need_attn: bool = False,
        need_head_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None, None]:
        """Shapes as in :class:`~fairseq.modules.transformer_layer.TransformerDecoderLayerBase`."""
        need_weights = need_attn or need_head_weights or (not self.training and self.need_attn)

        def self_attention(h: Tensor) -> Tensor:
            return self.self_attn(
                h, h, h, self_attn_padding_mask, incremental_state, need_weights=False, attn_mask=self_attn_mask
            )[0]

        maps = []

        def read(h: Tensor, view: Tensor, slot: int) -> Tensor:
            context, weights = self.encoder_attn.attend_view(
                h, view, encoder_padding_mask, slot, incremental_state, need_weights
            )
            maps.append(weights)
            return context

        x = self.sublayer(x, self.self_attn_layer_norm, self_attention)
        views = self.encoder_attn.fusion.select(encoder_out)
        x = self.sublayer(x, self.encoder_attn_layer_norm, lambda h: read(h, views[0], 0))
        if len(views) > 1:
            x = self.sublayer(x, self.encoder_attn_aux_layer_norm, lambda h: read(h, views[1], 1))
        x = self.sublayer(x, self.final_layer_norm, self.feed_forward)
        return x, averaged(maps[0], need_head_weights), None

    def sublayer(self, x: Tensor, norm: nn.Module, function: Callable[[Tensor], Tensor]) -> Tensor:
        h = norm(x) if self.normalize_before else x
        x = self.residual_connection(self.dropout_module(function(h)), x)
        return x if self.normalize_before else norm(x)
