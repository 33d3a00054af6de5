"""Model presets, ``--arch NAME``: they only set defaults of ``transformer_ext`` and its forms for other tasks.

Sizes follow fairseq's architectures:

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

from typing import Any, NamedTuple

from fairseq_ext.recipes.sources import (
    ADANORM_CODE,
    ADANORM_PAPER,
    ADANORM_SCRIPT,
    EST_LATER_VERSION,
    EST_SCRIPT,
    GCA_PAPER,
    MUSE_CODE,
    MUSE_JOURNAL_VERSION,
    MUSE_README,
    SPAN_SCRIPT,
    T2T_SCRIPT,
)
from fairseq_ext.training.sources import OURS, SourcedValues, by

__all__ = ["PRESETS", "Preset", "both"]


class Preset(NamedTuple):
    """A named set of model options; ``model`` is the architecture whose defaults they replace."""

    summary: str
    settings: SourcedValues
    model: str = "transformer_ext"


def both(**values: Any) -> dict[str, Any]:
    """The same ``values`` for the encoder and the decoder."""
    return {f"{side}_{option}": value for side in ("encoder", "decoder") for option, value in values.items()}


IWSLT = by("fairseq, transformer_iwslt_de_en", **both(embed_dim=512, ffn_embed_dim=1024, attention_heads=4, layers=6))
BASE = by("fairseq, transformer_wmt_en_de", **both(embed_dim=512, ffn_embed_dim=2048, attention_heads=8, layers=6))
BIG = by(
    "fairseq, transformer_vaswani_wmt_en_de_big",
    **both(embed_dim=1024, ffn_embed_dim=4096, attention_heads=16, layers=6),
    dropout=0.3,
)
BIG_EN_FR = BIG | by("fairseq, transformer_vaswani_wmt_en_fr_big", dropout=0.1)
PRE_NORM = both(normalize_before=True)

# post-norm; dropout of the kernels and initial weights are defaults of the released code
_KERNELS, _KM = by(MUSE_CODE, muse_weight_dropout=0.1), by(MUSE_CODE, init="km")
MUSE = by(MUSE_README, block="muse", muse_kernels="3,15") | _KERNELS | _KM
MUSE_SIMPLE = by(MUSE_README, block="muse-simple") | _KM
MUSE_IWSLT = both(embed_dim=384, ffn_embed_dim=768, attention_heads=4, layers=12)
MUSE_DE_EN = by(MUSE_README, **MUSE_IWSLT, dropout=0.4)
MUSE_EN_VI = by(OURS, **MUSE_IWSLT) | by(MUSE_JOURNAL_VERSION, dropout=0.3)
MUSE_BIG = {
    **both(embed_dim=768, ffn_embed_dim=3072, attention_heads=16, layers=12),
    "share_all_embeddings": True,
}
MUSE_EN_FR = {**MUSE_BIG, "dropout": 0.1, "attention_dropout": 0.1, "muse_input_dropout": 0.1}

ADANORM_IWSLT = (
    IWSLT
    | by(ADANORM_SCRIPT, **PRE_NORM, dropout=0.3, attention_dropout=0.1, activation_dropout=0.1)
    | by(ADANORM_SCRIPT, share_all_embeddings=True, init="adanorm")
)
# the authors released no script for these sets
ADANORM_EN_VI = BASE | by(OURS, **PRE_NORM, dropout=0.3)
ADANORM_WMT = BIG | by(OURS, **PRE_NORM, share_all_embeddings=True)
ADANORM = by(ADANORM_PAPER, norm="adanorm")
LAYERNORM_SIMPLE = by(ADANORM_PAPER, norm="layernorm-simple")

GCA = by(GCA_PAPER, cross_view="gca")
TOPK_8 = by(OURS, attention_topk=8)

ENWIK8 = by(
    OURS,
    decoder_embed_dim=512,
    decoder_ffn_embed_dim=2048,
    decoder_attention_heads=8,
    decoder_layers=12,
    decoder_normalize_before=True,
    share_decoder_input_output_embed=True,
    dropout=0.1,
)
# The authors' spans of 8192 reach back over earlier blocks of 512; here each sample is a text of its own.
ENWIK8_SPAN = (
    ENWIK8
    | by(SPAN_SCRIPT, decoder_embed_dim=512, decoder_ffn_embed_dim=2048, decoder_attention_heads=8, decoder_layers=12)
    | by(SPAN_SCRIPT, dropout=0.3, attention_dropout=0.3, attention_span_loss=5e-7)
    | by(OURS, attention_span=2048, no_token_positional_embeddings=True)
)
WIKI103 = by(
    "fairseq, transformer_lm_wiki103 (Baevski & Auli, arXiv 1809.10853)",
    decoder_embed_dim=1024,
    decoder_input_dim=1024,
    decoder_output_dim=1024,
    decoder_ffn_embed_dim=4096,
    decoder_attention_heads=8,
    decoder_layers=16,
    decoder_normalize_before=True,
    no_decoder_final_norm=True,
    dropout=0.3,
    attention_dropout=0.1,
    activation_dropout=0.1,
    adaptive_input=True,
    adaptive_input_cutoff="20000,60000",
    adaptive_softmax_cutoff="20000,60000",
    adaptive_softmax_dropout=0.2,
    tie_adaptive_weights=True,
    tie_adaptive_proj=True,
)

PRESETS: dict[str, Preset] = {
    "transformer_ext_iwslt_de_en": Preset("Transformer, fairseq's IWSLT14 De-En size.", IWSLT),
    "transformer_ext_wmt_en_de": Preset("Transformer base, fairseq's WMT En-De size.", BASE),
    "transformer_ext_wmt_en_de_big": Preset("Transformer big, fairseq's (Vaswani) WMT En-De settings.", BIG),
    "transformer_ext_wmt_en_fr_big": Preset("Transformer big, fairseq's (Vaswani) WMT En-Fr settings.", BIG_EN_FR),
    "explicit_sparse_transformer_iwslt_de_en": Preset(
        "Top-k attention, IWSLT14 De-En: k = 8 everywhere, dropout 0.4 (authors' fairseq script).",
        IWSLT | by(EST_SCRIPT, attention_topk=8, dropout=0.4),
    ),
    "explicit_sparse_transformer_iwslt_en_vi": Preset(
        "Top-k attention, IWSLT15 En-Vi: k = 6 in self-attention only, pre-norm, dropouts 0.1 (authors' T2T script).",
        BASE
        | by(T2T_SCRIPT, **PRE_NORM, attention_topk=6, attention_topk_in="encoder-self,decoder-self")
        | by(T2T_SCRIPT, dropout=0.1, attention_dropout=0.1, activation_dropout=0.1),
    ),
    "explicit_sparse_transformer_wmt_en_de": Preset(
        "Top-k attention, WMT14 En-De base size: k = 8. Our choice: the authors released no such script.",
        BASE | TOPK_8,
    ),
    "explicit_sparse_transformer_wmt_en_fr": Preset(
        "Top-k attention, WMT14 En-Fr big size: k = 8. Our choice: the authors released no such script.",
        BIG_EN_FR | TOPK_8,
    ),
    "muse_iwslt_de_en": Preset(
        "MUSE, IWSLT14 De-En: 12 + 12 layers of width 384, dropout 0.4 (authors' README and log).",
        MUSE_DE_EN | MUSE,
    ),
    "muse_simple_iwslt_de_en": Preset(
        "MUSE-simple, IWSLT14 De-En: as MUSE without the convolution (authors' README).",
        MUSE_DE_EN | MUSE_SIMPLE,
    ),
    "muse_iwslt_en_vi": Preset(
        "MUSE, IWSLT15 En-Vi: dropout 0.3 (journal version); width, depth and kernels of De-En are our choice.",
        MUSE_EN_VI | by(MUSE_JOURNAL_VERSION, block="muse") | by(OURS, muse_kernels="3,15") | _KERNELS | _KM,
    ),
    "muse_simple_iwslt_en_vi": Preset(
        "MUSE-simple, IWSLT15 En-Vi: dropout 0.3 (journal version); width and depth of De-En are our choice.",
        MUSE_EN_VI | by(MUSE_JOURNAL_VERSION, block="muse-simple") | _KM,
    ),
    "muse_wmt_en_de": Preset(
        "MUSE, WMT16 En-De: 12 + 12 layers of width 768, dropout 0.3 (authors' README).",
        by(MUSE_README, **MUSE_BIG, dropout=0.3, attention_dropout=0.1, muse_input_dropout=0.1) | MUSE,
    ),
    "muse_simple_wmt_en_de": Preset(
        "MUSE-simple, WMT16 En-De: dropout 0.3, no attention or input dropout (authors' README).",
        by(MUSE_README, **MUSE_BIG, dropout=0.3) | MUSE_SIMPLE,
    ),
    "muse_wmt_en_fr": Preset(
        "MUSE, WMT14 En-Fr: 12 + 12 layers of width 768, dropout 0.1 (authors' README and log).",
        by(MUSE_README, **MUSE_EN_FR) | MUSE,
    ),
    "muse_simple_wmt_en_fr": Preset(
        "MUSE-simple, WMT14 En-Fr: MUSE's dropouts (our choice: the authors released no such command).",
        by(OURS, **MUSE_EN_FR) | by(MUSE_JOURNAL_VERSION, block="muse-simple") | _KM,
    ),
    "adanorm_transformer_iwslt_de_en": Preset(
        "AdaNorm, IWSLT14 De-En: pre-norm, C = 1 (authors' README and script), all norms (paper).",
        ADANORM_IWSLT | ADANORM,
    ),
    "adanorm_released_transformer_iwslt_de_en": Preset(
        "AdaNorm, IWSLT14 De-En, as the released code builds it: only the two norms after the stacks are AdaNorm.",
        ADANORM_IWSLT | by(ADANORM_CODE, norm="adanorm", norm_scope="final"),
    ),
    "layernorm_simple_transformer_iwslt_de_en": Preset(
        "LayerNorm-simple, IWSLT14 De-En: pre-norm, AdaNorm's settings (authors' script).",
        ADANORM_IWSLT | LAYERNORM_SIMPLE,
    ),
    "adanorm_transformer_iwslt_en_vi": Preset(
        "AdaNorm, IWSLT15 En-Vi: base size, pre-norm. Our choice: the authors released no such script.",
        ADANORM_EN_VI | ADANORM,
    ),
    "layernorm_simple_transformer_iwslt_en_vi": Preset(
        "LayerNorm-simple, IWSLT15 En-Vi: base size, pre-norm. Our choice: the authors released no such script.",
        ADANORM_EN_VI | LAYERNORM_SIMPLE,
    ),
    "adanorm_transformer_wmt_en_de_big": Preset(
        "AdaNorm, WMT14 En-De big, pre-norm. Our choice: the authors released no such script.",
        ADANORM_WMT | ADANORM,
    ),
    "layernorm_simple_transformer_wmt_en_de_big": Preset(
        "LayerNorm-simple, WMT14 En-De big, pre-norm. Our choice: the authors released no such script.",
        ADANORM_WMT | LAYERNORM_SIMPLE,
    ),
    "gca_transformer_iwslt_de_en": Preset(
        "Granularity consistent attention, IWSLT14 De-En size. Our choice: no code or settings are public.",
        IWSLT | GCA | by(OURS, dropout=0.4),
    ),
    "gca_transformer_wmt_en_de": Preset(
        "Granularity consistent attention, WMT14 En-De base size. Our choice: no code or settings are public.",
        BASE | GCA,
    ),
    "gca_transformer_wmt_en_de_big": Preset(
        "Granularity consistent attention, WMT14 En-De big size. Our choice: no code or settings are public.",
        BIG | GCA,
    ),
    "gca_transformer_wmt_en_fr_big": Preset(
        "Granularity consistent attention, WMT14 En-Fr big size. Our choice: no code or settings are public.",
        BIG_EN_FR | GCA,
    ),
    "transformer_lm_ext_wiki103": Preset(
        "Transformer language model, fairseq's WikiText-103 settings.",
        WIKI103,
        model="transformer_lm_ext",
    ),
    "explicit_sparse_transformer_lm_enwik8": Preset(
        "Top-k attention, enwik8: k = 64 (later version, Transformer-XL); 12 plain layers of width 512 (our choice).",
        ENWIK8 | by(f"{EST_LATER_VERSION}, with Transformer-XL", attention_topk=64),
        model="transformer_lm_ext",
    ),
    "explicit_sparse_span_transformer_lm_enwik8": Preset(
        "Top-k attention, adaptive spans, enwik8: k = 32 (authors' run); spans of 2048 without a memory (our choice).",
        ENWIK8_SPAN | by(SPAN_SCRIPT, attention_topk=32),
        model="transformer_lm_ext",
    ),
    "adanorm_transformer_lm_enwik8": Preset(
        "AdaNorm, enwik8: 12 plain layers of width 512. Our choice: the authors released no such script.",
        ENWIK8 | ADANORM,
        model="transformer_lm_ext",
    ),
    "captioning_transformer_ext_coco": Preset(
        "Captioning Transformer, COCO: base size, regions or a grid. Our choice: the size is usual for this task.",
        BASE | by(OURS, dropout=0.1),
        model="captioning_transformer_ext",
    ),
    "explicit_sparse_transformer_coco": Preset(
        "Top-k attention, COCO captions: base size, k = 8. Our choice: the authors released nothing on captions.",
        BASE | by(OURS, dropout=0.1) | TOPK_8,
        model="captioning_transformer_ext",
    ),
}
