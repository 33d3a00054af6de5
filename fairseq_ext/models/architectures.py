"""Named presets: nothing but defaults of ``transformer_ext`` and ``transformer_lm_ext``.

A preset sets what a recipe prescribes for the *model*; the optimisation settings stand beside it in ``conf/`` and in
``examples/``. An option given on the command line wins over its preset. Sizes follow fairseq's architectures:

==================  =====  =====  =====  =======  ==================================
size                width  FFN    heads  layers   fairseq's architecture
==================  =====  =====  =====  =======  ==================================
iwslt_de_en         512    1024   4      6 + 6    transformer_iwslt_de_en
wmt_en_de           512    2048   8      6 + 6    transformer_wmt_en_de
wmt_en_de_big       1024   4096   16     6 + 6    transformer_vaswani_wmt_en_de_big
wmt_en_fr_big       1024   4096   16     6 + 6    transformer_vaswani_wmt_en_fr_big
==================  =====  =====  =====  =======  ==================================
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fairseq.models import register_model_architecture

import fairseq_ext.models.language_model
import fairseq_ext.models.transformer  # noqa: F401  (a preset needs its model registered)
from fairseq_ext.models.ext_options import ExtOptions
from fairseq_ext.training.options import idle_fields


def _size(width: int, ffn: int, heads: int, layers: int = 6) -> dict[str, Any]:
    return {
        f"{side}_{name}": value
        for side in ("encoder", "decoder")
        for name, value in {
            "embed_dim": width,
            "ffn_embed_dim": ffn,
            "attention_heads": heads,
            "layers": layers,
        }.items()
    }


IWSLT = _size(512, 1024, 4)
BASE = _size(512, 2048, 8)
BIG = {**_size(1024, 4096, 16), "dropout": 0.3}
BIG_EN_FR = {**BIG, "dropout": 0.1}
PRE_NORM = {"encoder_normalize_before": True, "decoder_normalize_before": True}

# lancopku/MUSE, README and training logs: 12 + 12 post-norm layers, kernels 3 and 15, gate, conv weight dropout 0.1
MUSE = {"block": "muse", "muse_kernels": "3,15", "muse_weight_dropout": 0.1, "init": "km"}
MUSE_SIMPLE = {"block": "muse-simple", "init": "km"}
MUSE_IWSLT = {**_size(384, 768, 4, layers=12), "dropout": 0.4}
MUSE_BIG = {**_size(768, 3072, 16, layers=12), "share_all_embeddings": True}
MUSE_EN_DE = {**MUSE_BIG, "dropout": 0.3, "attention_dropout": 0.1, "muse_input_dropout": 0.1}
MUSE_EN_FR = {**MUSE_BIG, "dropout": 0.1, "attention_dropout": 0.1, "muse_input_dropout": 0.1}

# lancopku/AdaNorm, baseline-adanorm-km.sh: pre-norm on both sides, shared embeddings
ADANORM_DROPOUTS = {"dropout": 0.3, "attention_dropout": 0.1, "activation_dropout": 0.1}
ADANORM_IWSLT = {**IWSLT, **PRE_NORM, **ADANORM_DROPOUTS, "share_all_embeddings": True}

ENWIK8 = {
    "decoder_embed_dim": 512,
    "decoder_ffn_embed_dim": 2048,
    "decoder_attention_heads": 8,
    "decoder_layers": 12,
    "decoder_normalize_before": True,
    "share_decoder_input_output_embed": True,
    "dropout": 0.1,
}

# fairseq's transformer_lm_wiki103 (Baevski & Auli, arXiv 1809.10853)
WIKI103 = {
    "decoder_embed_dim": 1024,
    "decoder_input_dim": 1024,
    "decoder_output_dim": 1024,
    "decoder_ffn_embed_dim": 4096,
    "decoder_attention_heads": 8,
    "decoder_layers": 16,
    "decoder_normalize_before": True,
    "no_decoder_final_norm": True,
    "dropout": 0.3,
    "attention_dropout": 0.1,
    "activation_dropout": 0.1,
    "adaptive_input": True,
    "adaptive_input_cutoff": "20000,60000",
    "adaptive_softmax_cutoff": "20000,60000",
    "adaptive_softmax_dropout": 0.2,
    "tie_adaptive_weights": True,
    "tie_adaptive_proj": True,
}

_TRANSLATION: dict[str, tuple[str, dict[str, Any]]] = {
    "transformer_ext_iwslt_de_en": ("Transformer, fairseq's IWSLT14 De-En size.", IWSLT),
    "transformer_ext_wmt_en_de": ("Transformer base, fairseq's WMT En-De size.", BASE),
    "transformer_ext_wmt_en_de_big": ("Transformer big, fairseq's (Vaswani) WMT En-De settings.", BIG),
    "transformer_ext_wmt_en_fr_big": ("Transformer big, fairseq's (Vaswani) WMT En-Fr settings.", BIG_EN_FR),
    "explicit_sparse_transformer_iwslt_de_en": (
        "Top-k attention, IWSLT14 De-En: k = 8 everywhere, dropout 0.4 (authors' fairseq script).",
        {**IWSLT, "attention_topk": 8, "dropout": 0.4},
    ),
    "explicit_sparse_transformer_iwslt_en_vi": (
        "Top-k attention, IWSLT15 En-Vi: k = 6 in self-attention only, pre-norm, dropouts 0.1 (authors' T2T script).",
        {
            **BASE,
            **PRE_NORM,
            "attention_topk": 6,
            "attention_topk_in": "encoder-self,decoder-self",
            "dropout": 0.1,
            "attention_dropout": 0.1,
            "activation_dropout": 0.1,
        },
    ),
    "explicit_sparse_transformer_wmt_en_de": (
        "Top-k attention, WMT14 En-De base size: k = 8. Our choice: the authors released no such script.",
        {**BASE, "attention_topk": 8},
    ),
    "explicit_sparse_transformer_wmt_en_fr": (
        "Top-k attention, WMT14 En-Fr big size: k = 8. Our choice: the authors released no such script.",
        {**BIG_EN_FR, "attention_topk": 8},
    ),
    "muse_iwslt_de_en": (
        "MUSE, IWSLT14 De-En: 12 + 12 layers of width 384, dropout 0.4 (authors' README and log).",
        {**MUSE_IWSLT, **MUSE},
    ),
    "muse_simple_iwslt_de_en": (
        "MUSE-simple, IWSLT14 De-En: as MUSE without the convolution (authors' README).",
        {**MUSE_IWSLT, **MUSE_SIMPLE},
    ),
    "muse_iwslt_en_vi": (
        "MUSE, IWSLT15 En-Vi: dropout 0.3 (paper); width and depth of De-En are our choice.",
        {**MUSE_IWSLT, **MUSE, "dropout": 0.3},
    ),
    "muse_simple_iwslt_en_vi": (
        "MUSE-simple, IWSLT15 En-Vi: dropout 0.3 (paper); width and depth of De-En are our choice.",
        {**MUSE_IWSLT, **MUSE_SIMPLE, "dropout": 0.3},
    ),
    "muse_wmt_en_de": (
        "MUSE, WMT16 En-De: 12 + 12 layers of width 768, dropout 0.3 (authors' README).",
        {**MUSE_EN_DE, **MUSE},
    ),
    "muse_simple_wmt_en_de": (
        "MUSE-simple, WMT16 En-De: dropout 0.3, no attention or input dropout (authors' README).",
        {**MUSE_BIG, **MUSE_SIMPLE, "dropout": 0.3},
    ),
    "muse_wmt_en_fr": (
        "MUSE, WMT14 En-Fr: 12 + 12 layers of width 768, dropout 0.1 (authors' README and log).",
        {**MUSE_EN_FR, **MUSE},
    ),
    "muse_simple_wmt_en_fr": (
        "MUSE-simple, WMT14 En-Fr: MUSE's dropouts (our choice: the authors released no such command).",
        {**MUSE_EN_FR, **MUSE_SIMPLE},
    ),
    "adanorm_transformer_iwslt_de_en": (
        "AdaNorm, IWSLT14 De-En: pre-norm, C = 1, all norms (paper); initial weights are fairseq's (our choice).",
        {**ADANORM_IWSLT, "norm": "adanorm"},
    ),
    "adanorm_released_transformer_iwslt_de_en": (
        "AdaNorm, IWSLT14 De-En, as the released code builds it: only the two norms after the stacks are AdaNorm.",
        {**ADANORM_IWSLT, "norm": "adanorm", "norm_scope": "final"},
    ),
    "layernorm_simple_transformer_iwslt_de_en": (
        "LayerNorm-simple, IWSLT14 De-En: pre-norm, AdaNorm's settings (authors' script).",
        {**ADANORM_IWSLT, "norm": "layernorm-simple"},
    ),
    "adanorm_transformer_iwslt_en_vi": (
        "AdaNorm, IWSLT15 En-Vi: base size, pre-norm. Our choice: the authors released no such script.",
        {**BASE, **PRE_NORM, "norm": "adanorm"},
    ),
    "layernorm_simple_transformer_iwslt_en_vi": (
        "LayerNorm-simple, IWSLT15 En-Vi: base size, pre-norm. Our choice: the authors released no such script.",
        {**BASE, **PRE_NORM, "norm": "layernorm-simple"},
    ),
    "adanorm_transformer_wmt_en_de_big": (
        "AdaNorm, WMT14 En-De big, pre-norm. Our choice: the authors released no such script.",
        {**BIG, **PRE_NORM, "norm": "adanorm", "share_all_embeddings": True},
    ),
    "layernorm_simple_transformer_wmt_en_de_big": (
        "LayerNorm-simple, WMT14 En-De big, pre-norm. Our choice: the authors released no such script.",
        {**BIG, **PRE_NORM, "norm": "layernorm-simple", "share_all_embeddings": True},
    ),
    "gca_transformer_iwslt_de_en": (
        "Granularity consistent attention, IWSLT14 De-En size. Our choice: no code or settings are public.",
        {**IWSLT, "cross_view": "gca", "dropout": 0.3},
    ),
    "gca_transformer_wmt_en_de": (
        "Granularity consistent attention, WMT14 En-De base size. Our choice: no code or settings are public.",
        {**BASE, "cross_view": "gca"},
    ),
    "gca_transformer_wmt_en_de_big": (
        "Granularity consistent attention, WMT14 En-De big size. Our choice: no code or settings are public.",
        {**BIG, "cross_view": "gca"},
    ),
    "gca_transformer_wmt_en_fr_big": (
        "Granularity consistent attention, WMT14 En-Fr big size. Our choice: no code or settings are public.",
        {**BIG_EN_FR, "cross_view": "gca"},
    ),
}

_LANGUAGE_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "transformer_lm_ext_wiki103": ("Transformer language model, fairseq's WikiText-103 settings.", WIKI103),
    "explicit_sparse_transformer_lm_enwik8": (
        "Top-k attention, enwik8: k = 64 as the paper with Transformer-XL; 12 plain layers of width 512 (our choice).",
        {**ENWIK8, "attention_topk": 64},
    ),
    "adanorm_transformer_lm_enwik8": (
        "AdaNorm, enwik8: 12 plain layers of width 512. Our choice: the authors released no such script.",
        {**ENWIK8, "norm": "adanorm"},
    ),
}


def _register(model: str, name: str, summary: str, defaults: dict[str, Any]) -> None:
    def preset(args: Any) -> None:
        if model == "transformer_lm_ext" and hasattr(args, "decoder_embed_dim"):
            # fairseq's bare model reads and writes vectors of width 512; its named ones follow the width, as here
            for option in ("decoder_input_dim", "decoder_output_dim"):
                setattr(args, option, getattr(args, option, args.decoder_embed_dim))
        left_open = {option: value for option, value in defaults.items() if not hasattr(args, option)}
        for option, value in left_open.items():
            setattr(args, option, value)
        # what another choice of the user has made idle (muse_input_dropout, with --block transformer) is not set
        for option in idle_fields(args, ExtOptions):
            if option in left_open:
                setattr(args, option, getattr(ExtOptions, option))

    preset.__name__ = name
    preset.__doc__ = summary
    preset.defaults = defaults  # type: ignore[attr-defined]
    register_model_architecture(model, name)(preset)
    PRESETS[name] = preset


PRESETS: dict[str, Callable[[Any], None]] = {}
for _name, (_summary, _defaults) in _TRANSLATION.items():
    _register("transformer_ext", _name, _summary, _defaults)
for _name, (_summary, _defaults) in _LANGUAGE_MODELS.items():
    _register("transformer_lm_ext", _name, _summary, _defaults)
