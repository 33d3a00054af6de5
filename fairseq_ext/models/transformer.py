"""``transformer_ext``: fairseq's Transformer with the suite's options; with all of them off it is fairseq's."""

from __future__ import annotations

import argparse
import logging
import re
from typing import Any

import torch
from fairseq.distributed import fsdp_wrap
from fairseq.models import BaseFairseqModel, register_model
from fairseq.models.transformer import TransformerDecoderBase, TransformerEncoderBase, TransformerModelBase
from fairseq.modules import FairseqDropout
from fairseq.modules.checkpoint_activations import checkpoint_wrapper
from torch import Tensor, nn

from fairseq_ext.errors import OptionError
from fairseq_ext.models.attention import NotExportable
from fairseq_ext.models.config import (
    TransformerExtConfig,
    add_options,
    legacy_arguments,
    nested_config,
)
from fairseq_ext.models.ext_options import check_alignments, check_options
from fairseq_ext.models.fused import fuse_for_inference
from fairseq_ext.models.layers import (
    DecoderLayer,
    EncoderLayer,
    MuseDecoderLayer,
    MuseEncoderLayer,
    SequentialViewsDecoderLayer,
    changes_layers,
)
from fairseq_ext.models.stock_options import (
    check_stock_options,
    check_task,
    check_translation_options,
    parse_layers,
)
from fairseq_ext.modules.cross_view import CrossViewFusion, view_schedule
from fairseq_ext.modules.normalization import create_norm

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

logger = logging.getLogger(__name__)


def _wrap_layer(layer: nn.Module, cfg: Any) -> nn.Module:
    """fairseq's wrapping of a layer for activation checkpointing and FSDP."""
    if cfg.checkpoint_activations:
        layer = checkpoint_wrapper(layer, offload_to_cpu=cfg.offload_activations)
    return fsdp_wrap(layer, min_num_params=0 if cfg.checkpoint_activations else cfg.min_params_to_wrap)


def replace_norms(model: nn.Module, cfg: Any) -> None:
    """Replaces the LayerNorms of ``model`` by ``--norm``; the norm of the embeddings stays.

    fairseq's layers construct their norms by a module-level name, so they are replaced afterwards: doing it by
    patching that name would reach every other model in the process.
    """
    if cfg.norm == "layernorm":
        return
    for path, module in list(model.named_modules()):
        name = path.rpartition(".")[2]
        final = path in ("encoder.layer_norm", "decoder.layer_norm")
        if not isinstance(module, nn.LayerNorm) or not (name.endswith("_layer_norm") or name == "layer_norm"):
            continue
        if cfg.norm_scope == "final" and not final:
            continue
        parent = model.get_submodule(path.rpartition(".")[0])
        norm = create_norm(
            cfg.norm,
            module.normalized_shape,
            adanorm_scale=cfg.adanorm_scale,
            adanorm_k=cfg.adanorm_k,
            detach=cfg.norm_detach,
            unbiased=cfg.norm_convention == "released",
        )
        setattr(parent, name, norm)


class TransformerExtEncoder(TransformerEncoderBase):
    """fairseq's encoder around this suite's layers."""

    def __init__(self, cfg: Any, dictionary: Any, embed_tokens: nn.Embedding, return_fc: bool = False) -> None:
        self._built = 0
        super().__init__(cfg, dictionary, embed_tokens, return_fc=return_fc)

    def build_encoder_layer(self, cfg: Any) -> nn.Module:
        self._built += 1
        if not changes_layers(cfg, "encoder"):
            return super().build_encoder_layer(cfg)
        if cfg.block == "transformer":
            return _wrap_layer(EncoderLayer(cfg, self._built, return_fc=self.return_fc), cfg)
        return _wrap_layer(MuseEncoderLayer(cfg, self._built), cfg)

    def make_generation_fast_(self, retain_dropout: bool = False, **kwargs: Any) -> None:
        if not (self.cfg.muse_no_fuse or retain_dropout):  # fused layers have no dropout to retain
            fuse_for_inference(self)


class CrossViewEncoder(NotExportable, TransformerExtEncoder):
    """An encoder whose output carries every layer, for ``--cross-view``.

    ``encoder_out`` is (S, B, Ne * C), layer 1 first and the usual output last, after the view norm: a single tensor,
    which fairseq's beam search reorders like any other.
    """

    option = "--cross-view"

    def __init__(self, cfg: Any, dictionary: Any, embed_tokens: nn.Embedding, return_fc: bool = False) -> None:
        super().__init__(cfg, dictionary, embed_tokens, return_fc=return_fc)
        if self.layer_norm is not None and cfg.cross_view_norm == "separate":
            norms = [nn.LayerNorm(cfg.encoder.embed_dim) for _ in range(cfg.encoder.layers - 1)]
            self.view_layer_norm = nn.ModuleList(norms)

    def forward(
        self,
        src_tokens: Tensor,
        src_lengths: Tensor | None = None,
        return_all_hiddens: bool = False,
        token_embeddings: Tensor | None = None,
    ) -> dict[str, list[Tensor]]:
        """Arguments and result as in fairseq's ``TransformerEncoderBase.forward``, but for ``encoder_out``."""
        # generation asks for no hidden states, so views have to be asked for here
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

    def build_decoder_layer(self, cfg: Any, no_encoder_attn: bool = False) -> nn.Module:
        self._built += 1
        fusion = None if cfg.cross_view == "none" else self.build_fusion(cfg, self._built)
        if cfg.block != "transformer":
            layer = MuseDecoderLayer(cfg, self._built, no_encoder_attn, fusion)
        elif fusion is not None and cfg.cross_view_fusion == "sequential":
            layer = SequentialViewsDecoderLayer(cfg, self._built, fusion)
        else:
            layer = DecoderLayer(cfg, self._built, no_encoder_attn, fusion)
        return _wrap_layer(layer, cfg)

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

    def make_generation_fast_(self, retain_dropout: bool = False, **kwargs: Any) -> None:
        if not (self.cfg.muse_no_fuse or retain_dropout):  # fused layers have no dropout to retain
            fuse_for_inference(self)


class ExtModel(BaseFairseqModel):
    """What the suite's models share: options in fairseq's older form, pruning, the names of retained dropouts."""

    def configure(self, cfg: Any, arguments: argparse.Namespace) -> None:
        """Finishes a built model: the norms of ``--norm``, and ``args``, which fairseq's older code reads."""
        replace_norms(self, cfg)
        self.cfg = cfg
        self.args = arguments

    def load_state_dict(
        self,
        state_dict: dict[str, Any],
        strict: bool = True,
        model_cfg: Any = None,
        args: argparse.Namespace | None = None,
    ) -> Any:
        """As in fairseq, but ``--encoder-layers-to-keep`` and ``--decoder-layers-to-keep`` are those of the model.

        fairseq's own way forgets the options once it has pruned, loses the side for which none is given, and prunes
        again what is pruned already: what it trains from then on cannot be loaded.
        """
        pruning = None
        if self.cfg.encoder.layers_to_keep or self.cfg.decoder.layers_to_keep:
            keep = {f"{side}_layers_to_keep": self._layers_to_load(side, state_dict) for side in ("encoder", "decoder")}
            pruning = argparse.Namespace(arch="transformer", **keep)
        return super().load_state_dict(state_dict, strict, model_cfg=pruning)

    def _layers_to_load(self, side: str, state_dict: dict[str, Any]) -> str:
        names = (re.match(rf"{side}\.layers\.(\d+)\.", name) for name in state_dict)
        present = sorted({int(name[1]) for name in names if name})
        option, kept = f"--{side}-layers-to-keep", getattr(self.cfg, side).layers_to_keep
        if kept and present != list(range(getattr(self.cfg, side).layers)):
            missing = sorted(set(parse_layers(option, kept)) - set(present))
            if missing:
                raise OptionError(f"{option} {kept}: the checkpoint has no layer {missing[0]}, it has {present}")
            return kept
        return ",".join(map(str, present))

    def prepare_for_inference_(self, cfg: Any) -> None:
        """As in fairseq."""
        modules = getattr(cfg.generation, "retain_dropout_modules", None)
        if modules and not getattr(cfg.generation, "retain_dropout", False):
            logger.warning("--retain-dropout-modules %s: has no effect without --retain-dropout", modules)
        super().prepare_for_inference_(cfg)

    def make_generation_fast_(self, retain_dropout_modules: Any = None, **kwargs: Any) -> None:
        """As in fairseq, but ``--retain-dropout-modules`` also takes the fairseq class that one of ours extends."""
        if retain_dropout_modules is not None:
            retain_dropout_modules = self._with_subclasses(retain_dropout_modules)
        super().make_generation_fast_(retain_dropout_modules=retain_dropout_modules, **kwargs)

    def _with_subclasses(self, names: Any) -> Any:
        names = names if isinstance(names, str) else list(names)  # a text is searched for a name, as in fairseq
        dropping = {type(module) for module in self.modules() if FairseqDropout in map(type, module.children())}
        known = {
            kind.__name__: {_dropout_name(base) for base in kind.__mro__ if base.__module__.startswith("fairseq")}
            for kind in dropping
        }
        chosen = [name for name, answers_to in known.items() if any(answer in names for answer in answers_to)]
        unknown = [] if isinstance(names, str) else set(names).difference(*known.values())
        if unknown or not chosen:
            found = {module.module_name for module in self.modules() if isinstance(module, FairseqDropout)}
            logger.warning(
                "--retain-dropout-modules %s: no such module, there are %s",
                ", ".join(sorted(unknown)) or names,
                ", ".join(sorted(found)),
            )
        return " ".join([names, *chosen]) if isinstance(names, str) else [*names, *chosen]


def _dropout_name(kind: type) -> str:
    """How fairseq calls the dropouts of a class."""
    names = {"TransformerEncoderBase": "TransformerEncoder", "TransformerDecoderBase": "TransformerDecoder"}
    return names.get(kind.__name__, kind.__name__)


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
