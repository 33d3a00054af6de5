"""``transformer_ext``: fairseq's Transformer with the suite's options; with all of them off it is fairseq's."""

from __future__ import annotations

from typing import Any

import torch
from fairseq.distributed import fsdp_wrap
from fairseq.models import register_model
from fairseq.models.transformer import TransformerDecoderBase, TransformerEncoderBase, TransformerModelBase
from fairseq.modules.checkpoint_activations import checkpoint_wrapper
from torch import Tensor, nn

from fairseq_ext.models.attention import NotExportable
from fairseq_ext.models.check_options import check_alignments, check_options
from fairseq_ext.models.config import (
    TransformerExtConfig,
    add_options,
    legacy_arguments,
    nested_config,
)
from fairseq_ext.models.ext_model import ExtModel
from fairseq_ext.models.layers import DecoderLayer, EncoderLayer, SequentialViewsDecoderLayer, changes_layers
from fairseq_ext.models.muse_layers import MuseDecoderLayer, MuseEncoderLayer
from fairseq_ext.models.norms import build_norm, rebuild_norms_
from fairseq_ext.models.stock_options import (
    check_stock_options,
    check_task,
    check_translation_options,
)
from fairseq_ext.modules.cross_view import CrossViewFusion, view_schedule

__all__ = ["CrossViewEncoder", "TransformerExtDecoder", "TransformerExtEncoder", "TransformerExtModel"]

TASKS = (
    "translation",
    "translation_multi_simple_epoch",
    "translation_from_pretrained_bart",
    "translation_from_pretrained_xlm",
    "online_backtranslation",
    "simul_text_to_text",
    "denoising",
    "multilingual_denoising",
    "span_masked_lm",
)

# The layers of each --block.
ENCODER_LAYERS = {"transformer": EncoderLayer, "muse": MuseEncoderLayer, "muse-simple": MuseEncoderLayer}
DECODER_LAYERS = {"transformer": DecoderLayer, "muse": MuseDecoderLayer, "muse-simple": MuseDecoderLayer}


def _wrap_layer(layer: nn.Module, cfg: Any) -> nn.Module:
    """fairseq's wrapping of a layer for activation checkpointing and FSDP."""
    if cfg.checkpoint_activations:
        layer = checkpoint_wrapper(layer, offload_to_cpu=cfg.offload_activations)
    return fsdp_wrap(layer, min_num_params=0 if cfg.checkpoint_activations else cfg.min_params_to_wrap)


class TransformerExtEncoder(TransformerEncoderBase):
    """fairseq's encoder around this suite's layers."""

    def __init__(self, cfg: Any, dictionary: Any, embed_tokens: nn.Embedding) -> None:
        self._built = 0  # layers so far: fairseq's constructor calls build_encoder_layer without their number
        super().__init__(cfg, dictionary, embed_tokens)
        rebuild_norms_(self, cfg, "layer_norm", final=True)

    def build_encoder_layer(self, cfg: Any) -> nn.Module:
        self._built += 1
        if not changes_layers(cfg, "encoder"):
            return super().build_encoder_layer(cfg)
        return _wrap_layer(ENCODER_LAYERS[cfg.block](cfg, self._built), cfg)


class CrossViewEncoder(NotExportable, TransformerExtEncoder):
    """An encoder whose output carries every layer, for ``--cross-view``.

    ``encoder_out`` is (S, B, Ne * C), layer 1 first and the usual output last, after the view norm. It is a single
    tensor, which fairseq's beam search reorders like any other.
    """

    option = "--cross-view"

    def __init__(self, cfg: Any, dictionary: Any, embed_tokens: nn.Embedding) -> None:
        super().__init__(cfg, dictionary, embed_tokens)
        if self.layer_norm is not None and cfg.cross_view_norm == "separate":
            views = range(cfg.encoder.layers - 1)
            self.view_layer_norm = nn.ModuleList(build_norm(cfg, cfg.encoder.embed_dim, final=True) for _ in views)

    def forward(
        self,
        src_tokens: Tensor,
        src_lengths: Tensor | None = None,
        return_all_hiddens: bool = False,
        token_embeddings: Tensor | None = None,
    ) -> dict[str, list[Tensor]]:
        """Arguments and result as in fairseq's ``TransformerEncoderBase.forward``, but for ``encoder_out``."""
        # generation does not ask for the hidden states of the layers, which are the views
        out = super().forward(src_tokens, src_lengths, True, token_embeddings)
        lower = [self.normalize_view(state, index) for index, state in enumerate(out["encoder_states"][1:-1])]
        out["encoder_out"] = [torch.cat([*lower, out["encoder_out"][0]], dim=-1)]
        if not return_all_hiddens:
            out["encoder_states"] = []
        return out

    def normalize_view(self, state: Tensor, index: int) -> Tensor:
        if self.layer_norm is None or self.cfg.cross_view_norm == "none":
            return state
        return self.view_layer_norm[index](state) if self.cfg.cross_view_norm == "separate" else self.layer_norm(state)


class TransformerExtDecoder(TransformerDecoderBase):
    """fairseq's decoder around this suite's layers."""

    def __init__(self, cfg: Any, dictionary: Any, embed_tokens: nn.Embedding, no_encoder_attn: bool = False) -> None:
        self._built = 0
        self._ama_proj: list[nn.Linear] = []
        super().__init__(cfg, dictionary, embed_tokens, no_encoder_attn=no_encoder_attn)
        rebuild_norms_(self, cfg, "layer_norm", final=True)

    def build_decoder_layer(self, cfg: Any, no_encoder_attn: bool = False) -> nn.Module:
        self._built += 1
        fusion = None if cfg.cross_view == "none" else self.build_fusion(cfg, self._built)
        sequential = fusion is not None and cfg.cross_view_fusion == "sequential"
        kind = SequentialViewsDecoderLayer if sequential else DECODER_LAYERS[cfg.block]
        return _wrap_layer(kind(cfg, self._built, no_encoder_attn, fusion), cfg)

    def build_fusion(self, cfg: Any, index: int) -> CrossViewFusion:
        views = view_schedule(
            cfg.cross_view, cfg.encoder.layers, cfg.decoder.layers, use_global=not cfg.cross_view_no_global
        )
        if cfg.cross_view == "ama" and not self._ama_proj:  # one projection, shared by all layers
            projection = nn.Linear(cfg.decoder.embed_dim, cfg.decoder.embed_dim, bias=False)
            nn.init.xavier_uniform_(projection.weight)
            self._ama_proj.append(projection)
        shared = self._ama_proj[0] if self._ama_proj else None
        return CrossViewFusion(
            cfg.decoder.embed_dim, views[index - 1], cfg.cross_view, cfg.cross_view_fusion, ama_proj=shared
        )


@register_model("transformer_ext", dataclass=TransformerExtConfig)
class TransformerExtModel(ExtModel, TransformerModelBase):
    """Encoder-decoder Transformer whose attention, norms, layer topology and views are options.

    With every option at its default, parameters, state-dict keys and outputs are those of fairseq's ``transformer``,
    so that either loads the other's weights.
    """

    @classmethod
    def add_args(cls, parser: Any) -> None:
        add_options(parser, TransformerExtConfig)

    @classmethod
    def build_model(cls, cfg: Any, task: Any) -> TransformerExtModel:
        check_task(task, "transformer_ext", TASKS)
        nested = nested_config(cfg)
        check_options(
            nested,
            encoder=nested.encoder,
            decoder=nested.decoder,
            cross_attention=not nested.no_cross_attention,
        )
        check_alignments(nested, task)
        check_stock_options(nested, encoder=nested.encoder, decoder=nested.decoder)
        check_translation_options(nested, task.source_dictionary, task.target_dictionary)
        model = super().build_model(nested, task)
        model.configure(nested, legacy_arguments(cfg, TransformerExtConfig))
        return model

    @classmethod
    def build_encoder(cls, cfg: Any, src_dict: Any, embed_tokens: nn.Embedding) -> TransformerEncoderBase:
        if cfg.cross_view != "none":
            return CrossViewEncoder(cfg, src_dict, embed_tokens)
        if changes_layers(cfg, "encoder"):
            return TransformerExtEncoder(cfg, src_dict, embed_tokens)
        return super().build_encoder(cfg, src_dict, embed_tokens)

    @classmethod
    def build_decoder(cls, cfg: Any, tgt_dict: Any, embed_tokens: nn.Embedding) -> TransformerDecoderBase:
        if changes_layers(cfg, "decoder", cross_attention=not cfg.no_cross_attention):
            return TransformerExtDecoder(cfg, tgt_dict, embed_tokens, no_encoder_attn=cfg.no_cross_attention)
        return super().build_decoder(cfg, tgt_dict, embed_tokens)
