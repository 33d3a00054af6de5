"""WMT14 English-German and English-French: an update takes batches of many GPUs. Only MUSE's settings are published."""

from __future__ import annotations

from typing import Any

from fairseq_ext.recipes.recipe import Recipe
from fairseq_ext.recipes.sources import MUSE_README
from fairseq_ext.recipes.translation import COSINE, ENCOURAGING, EPOCHS, INVERSE_SQRT, data_set, evaluation
from fairseq_ext.training.sources import OURS, SourcedValues, by

__all__ = ["WMT_RECIPES"]

WMT_EN_DE = data_set("wmt14_en_de", "de", " --tokenized de --split-compounds")
WMT_EN_FR = data_set("wmt14_en_fr", "fr", " --tokenized fr")

MUSE_EN_DE = EPOCHS | by(
    MUSE_README,
    **COSINE,
    fp16=True,
    lr=1e-3,
    lr_period_updates=20000,
    weight_decay=0.0,
    clip_norm=0.0,
    max_tokens=3584,
    update_freq=32,
    max_update=30000,
)
_INVERSE_EN_DE = {**INVERSE_SQRT, "lr": 1e-3, "max_tokens": 3584}
MUSE_SIMPLE_EN_DE = EPOCHS | by(MUSE_README, **_INVERSE_EN_DE, fp16=True, update_freq=40, max_epoch=75)
# MUSE's size and number of updates, so that rows can be compared
OTHERS_EN_DE = EPOCHS | by(OURS, **_INVERSE_EN_DE, update_freq=32, max_update=30000)
EN_DE_TEST = evaluation(OURS, beam=4, lenpen=0.6, average=10)
MUSE_EN_DE_TEST = EN_DE_TEST | by(f"{MUSE_README} (beam 4 and beam 5)", beam=4) | by(MUSE_README, lenpen=0.6)
SHARED = by(OURS, share_all_embeddings=True)


def _others_en_de(name: str, method: str, **changes: Any) -> Recipe:
    return Recipe(name, method, WMT_EN_DE, OTHERS_EN_DE, EN_DE_TEST, model=SHARED, gpus=4, **changes)


_EN_DE = [
    Recipe("muse_wmt_en_de", "muse", WMT_EN_DE, MUSE_EN_DE, MUSE_EN_DE_TEST, gpus=4),
    Recipe("muse_simple_wmt_en_de", "muse-simple", WMT_EN_DE, MUSE_SIMPLE_EN_DE, EN_DE_TEST, gpus=4),
    _others_en_de("transformer_ext_wmt_en_de", "transformer-base"),
    _others_en_de("transformer_ext_wmt_en_de_big", "transformer"),
    _others_en_de("explicit_sparse_transformer_wmt_en_de", "explicit-sparse"),
    _others_en_de("gca_transformer_wmt_en_de", "gca-base"),
    _others_en_de("gca_transformer_wmt_en_de_big", "gca"),
    _others_en_de("adanorm_transformer_wmt_en_de_big", "adanorm"),
    _others_en_de("layernorm_simple_transformer_wmt_en_de_big", "layernorm-simple"),
    Recipe(
        "encouraging_transformer_wmt_en_de_big",
        "encouraging",
        WMT_EN_DE,
        OTHERS_EN_DE | ENCOURAGING,
        EN_DE_TEST,
        arch="transformer_ext_wmt_en_de_big",
        model=SHARED,
        gpus=4,
        summary="Encouraging loss, WMT14 En-De big: log_end 0.5 (authors' scripts), the other settings our choice.",
    ),
]

# 80,000 updates are the warmup and one period: after them the rate restarts and spoils the model.
_PERIOD = {
    **COSINE,
    "lr": 7e-4,
    "lr_period_updates": 70000,
    "weight_decay": 0.0,
    "clip_norm": 0.0,
    "max_tokens": 5120,
    "update_freq": 32,
    "max_update": 80000,
}
MUSE_EN_FR = EPOCHS | by(MUSE_README, **_PERIOD, warmup_init_lr=1e-7, fp16=True)
# MUSE's settings, so that rows can be compared
OTHERS_EN_FR = EPOCHS | by(OURS, **_PERIOD)
EN_FR_TEST = evaluation(OURS, lenpen=0.8, checkpoint="checkpoint_last.pt")
MUSE_EN_FR_TEST = EN_FR_TEST | by(MUSE_README, beam=5, lenpen=0.8)


def _others_en_fr(name: str, method: str, model: SourcedValues, **changes: Any) -> Recipe:
    return Recipe(name, method, WMT_EN_FR, OTHERS_EN_FR, EN_FR_TEST, model=model, gpus=4, **changes)


_EN_FR = [
    Recipe("muse_wmt_en_fr", "muse", WMT_EN_FR, MUSE_EN_FR, MUSE_EN_FR_TEST, gpus=4),
    _others_en_fr("muse_simple_wmt_en_fr", "muse-simple", model={}),
    _others_en_fr("transformer_ext_wmt_en_fr_big", "transformer", model=SHARED),
    _others_en_fr("explicit_sparse_transformer_wmt_en_fr", "explicit-sparse", model=SHARED),
    _others_en_fr("gca_transformer_wmt_en_fr_big", "gca", model=SHARED),
    Recipe(
        "encouraging_transformer_wmt_en_fr_big",
        "encouraging",
        WMT_EN_FR,
        OTHERS_EN_FR | ENCOURAGING,
        EN_FR_TEST,
        arch="transformer_ext_wmt_en_fr_big",
        model=SHARED,
        gpus=4,
        summary="Encouraging loss, WMT14 En-Fr big: log_end 0.5 (authors' scripts), the other settings MUSE's.",
    ),
]

WMT_RECIPES = [*_EN_DE, *_EN_FR]
