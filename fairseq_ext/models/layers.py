"""Encoder and decoder layers: fairseq's with other attentions, the MUSE blocks, and sequential views."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from fairseq.modules import FairseqDropout, MultiheadAttention
from fairseq.modules.transformer_layer import TransformerDecoderLayerBase, TransformerEncoderLayerBase
from torch import Tensor, nn

from fairseq_ext.models.attention import (
    CrossViewAttention,
    IncrementalState,
    MuseSelfAttention,
    NotExportable,
    SelectiveAttention,
)
from fairseq_ext.models.ext_options import selecting_attentions
from fairseq_ext.modules.cross_view import CrossViewFusion
from fairseq_ext.modules.muse import (
    MultiScaleConv,
    init_attention_projection_,
    init_ffn_,
    parse_kernels,
)


def selection(cfg: Any, attention: str) -> dict[str, Any]:
    """The :class:`SelectiveAttention` arguments of ``encoder-self``, ``decoder-self`` or ``cross``; none if dense."""
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
        or any(selection(cfg, attention) for attention in attentions)
        or (side == "decoder" and cfg.cross_view != "none")
    )


def _common_arguments(cfg: Any, side: str) -> dict[str, Any]:
    part = getattr(cfg, side)
    return {
        "embed_dim": part.embed_dim,
        "num_heads": part.attention_heads,
        "dropout": cfg.attention_dropout,
        "q_noise": cfg.quant_noise.pq,
        "qn_block_size": cfg.quant_noise.pq_block_size,
    }


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
        **_common_arguments(cfg, side),
        **selection(cfg, f"{side}-self"),
        **kwargs,
    )


def _apply_init_(layer: nn.Module, law: str, index: int) -> None:
    if law == "fairseq":
        return
    for attention in layer.modules():
        if isinstance(attention, MultiheadAttention):
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

    def __init__(self, cfg: Any, index: int, return_fc: bool = False) -> None:
        self.index = index  # read by build_self_attention, which the parent's constructor calls
        super().__init__(cfg, return_fc=return_fc)
        _apply_init_(self, cfg.init, index)

    def build_self_attention(self, embed_dim: int, cfg: Any) -> MultiheadAttention:
        if cfg.block == "muse":
            return _muse_attention(cfg, "encoder", self.index)
        if chosen := selection(cfg, "encoder-self"):
            return SelectiveAttention(self_attention=True, **_common_arguments(cfg, "encoder"), **chosen)
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
        if fusion is not None:
            self.encoder_attn = self.build_encoder_attention(self.embed_dim, cfg, fusion)
        _apply_init_(self, cfg.init, index)

    def build_self_attention(
        self, embed_dim: int, cfg: Any, add_bias_kv: bool = False, add_zero_attn: bool = False
    ) -> MultiheadAttention:
        extras = {"add_bias_kv": add_bias_kv, "add_zero_attn": add_zero_attn}
        if cfg.block == "muse":
            return _muse_attention(cfg, "decoder", self.index, **extras)
        if chosen := selection(cfg, "decoder-self"):
            return SelectiveAttention(
                self_attention=not cfg.cross_self_attention, **_common_arguments(cfg, "decoder"), **chosen, **extras
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
            **_common_arguments(cfg, "decoder"),
            **chosen,
        }
        return SelectiveAttention(**arguments) if fusion is None else CrossViewAttention(fusion=fusion, **arguments)

    def feed_forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation_dropout_module(self.activation_fn(self.fc1(x))))


class SequentialViewsDecoderLayer(NotExportable, DecoderLayer):
    """A decoder layer that reads its views in successive residual sub-layers, each with a norm of its own.

    The one fusion that is not a single context, hence a forward pass of its own. The second norm is
    ``encoder_attn_aux_layer_norm``; a layer with a single view has none.
    """

    option = "--cross-view"

    def __init__(self, cfg: Any, index: int, fusion: CrossViewFusion) -> None:
        super().__init__(cfg, index, fusion=fusion)
        if len(fusion.views) > 1:
            self.encoder_attn_aux_layer_norm = nn.LayerNorm(self.embed_dim)

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
        weights = maps[0]
        return x, weights if weights is None or need_head_weights else weights.mean(dim=0), None

    def sublayer(self, x: Tensor, norm: nn.Module, function: Callable[[Tensor], Tensor]) -> Tensor:
        h = norm(x) if self.normalize_before else x
        x = self.residual_connection(self.dropout_module(function(h)), x)
        return x if self.normalize_before else norm(x)


class MuseEncoderLayer(NotExportable, EncoderLayer):
    r"""Self-attention (with the convolution of ``--block muse``) and feed-forward network side by side.

    One residual connection and one norm :math:`N`: with :math:`h = N(x)` (pre-norm) or :math:`h = x`,
    :math:`y = x + \mathrm{ParAttn}(h) + \mathrm{FFN}(h)`, followed by :math:`N` if post-norm (arXiv 1911.09483).
    """

    option = "--block muse, muse-simple"

    def __init__(self, cfg: Any, index: int) -> None:
        super().__init__(cfg, index)
        self.final_layer_norm = None  # an unused norm would break DistributedDataParallel
        self.input_dropout_module = FairseqDropout(cfg.muse_input_dropout, module_name=type(self).__name__)

    def forward(self, x: Tensor, encoder_padding_mask: Tensor | None, attn_mask: Tensor | None = None) -> Tensor:
        """``x`` (S, B, C), ``encoder_padding_mask`` (B, S), ``attn_mask`` (S, S) true where attention is forbidden."""
        if attn_mask is not None:
            attn_mask = torch.zeros_like(attn_mask, dtype=x.dtype).masked_fill(attn_mask.bool(), float("-inf"))
        h = self.self_attn_layer_norm(x) if self.normalize_before else x
        u = self.input_dropout_module(h)
        attention, _ = self.self_attn(u, u, u, encoder_padding_mask, need_weights=False, attn_mask=attn_mask)
        ffn = self.fc2(self.activation_dropout_module(self.activation_fn(self.fc1(h))))
        x = x + self.dropout_module(attention) + self.dropout_module(ffn)
        return x if self.normalize_before else self.self_attn_layer_norm(x)


class MuseDecoderLayer(NotExportable, DecoderLayer):
    """Causal self-attention (with convolution), cross-attention and feed-forward network side by side.

    All three read the layer's input; one residual connection and one norm, as in :class:`MuseEncoderLayer`.
    """

    option = "--block muse, muse-simple"

    def __init__(
        self, cfg: Any, index: int, no_encoder_attn: bool = False, fusion: CrossViewFusion | None = None
    ) -> None:
        super().__init__(cfg, index, no_encoder_attn, fusion)
        self.encoder_attn_layer_norm = self.final_layer_norm = None
        self.input_dropout_module = FairseqDropout(cfg.muse_input_dropout, module_name=type(self).__name__)

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
