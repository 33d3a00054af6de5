"""Published values with their sources, written down from papers and authors' releases, not from this code.

Three tables: what presets must build, what recipes must train and evaluate with, and what the trainers must default to.
A value is here because somebody published it; what is our choice is not here.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Published(NamedTuple):
    """Values, and where they were published."""

    source: str
    values: dict[str, Any]


class Ours(NamedTuple):
    """A published value from which this suite departs, and what it takes instead."""

    published: Any
    default: Any


def both(**values: Any) -> dict[str, Any]:
    """The same values for encoder and decoder."""
    return {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in values.items()}


# --- models: fields of transformer_ext under --arch NAME --------------------------------------------------------------

_VASWANI = "Vaswani et al., arXiv 1706.03762, table 3, as fairseq's architectures have it"
_EST = "lancopku/Explicit-Sparse-Transformer"
_MUSE = "lancopku/MUSE, README and training logs; arXiv 1911.09483"
_ADANORM = "lancopku/AdaNorm, README (C = 1) and baseline-adanorm-km.sh; arXiv 1911.07013 (k = 1/10, every norm)"

_IWSLT = both(embed_dim=512, ffn_embed_dim=1024, attention_heads=4, layers=6)
_BASE = both(embed_dim=512, ffn_embed_dim=2048, attention_heads=8, layers=6)
_BIG = both(embed_dim=1024, ffn_embed_dim=4096, attention_heads=16, layers=6)
_POST, _PRE = both(normalize_before=False), both(normalize_before=True)
_MUSE_BLOCK = {"block": "muse", "muse_kernels": "3,15", "muse_no_gate": False, "muse_weight_dropout": 0.1, "init": "km"}
_SIMPLE_BLOCK = {"block": "muse-simple", "init": "km"}
_MUSE_IWSLT = {
    **both(embed_dim=384, ffn_embed_dim=768, attention_heads=4, layers=12), **_POST,
    "dropout": 0.4, "attention_dropout": 0.0, "muse_input_dropout": 0.0, "share_all_embeddings": False,
}  # fmt: skip
_MUSE_BIG = {
    **both(embed_dim=768, ffn_embed_dim=3072, attention_heads=16, layers=12), **_POST, "share_all_embeddings": True
}  # fmt: skip
_ADANORM_IWSLT = {
    **_IWSLT, **_PRE, "share_all_embeddings": True, "dropout": 0.3, "attention_dropout": 0.1, "activation_dropout": 0.1,
}  # fmt: skip

PRESETS = {
    "transformer_ext_iwslt_de_en": Published(_VASWANI, {**_IWSLT, **_POST}),
    "transformer_ext_wmt_en_de": Published(_VASWANI, {**_BASE, **_POST, "dropout": 0.1}),
    "transformer_ext_wmt_en_de_big": Published(_VASWANI, {**_BIG, **_POST, "dropout": 0.3}),
    "transformer_ext_wmt_en_fr_big": Published(_VASWANI, {**_BIG, **_POST, "dropout": 0.1}),
    "explicit_sparse_transformer_iwslt_de_en": Published(
        f"{_EST}, fairseq_deen_est.sh (div -8, es+ds+dc)",
        {
            **_IWSLT, **_POST, "attention_topk": 8, "attention_topk_in": "encoder-self,decoder-self,cross",
            "attention_normalizer": "softmax", "dropout": 0.4, "attention_dropout": 0.0, "activation_dropout": 0.0,
            "share_all_embeddings": False,
        },
    ),
    "explicit_sparse_transformer_iwslt_en_vi": Published(
        f"{_EST}, t2t_envi_est.sh (d -6; tensor2tensor's cross-attention stays dense)",
        {
            **_BASE, **_PRE, "attention_topk": 6, "attention_topk_in": "encoder-self,decoder-self", "dropout": 0.1,
            "attention_dropout": 0.1, "activation_dropout": 0.1,
        },
    ),
    "explicit_sparse_transformer_lm_enwik8": Published(
        "arXiv 1912.11637, enwik8 with Transformer-XL: k = 64",
        {"attention_topk": 64},
    ),
    "muse_iwslt_de_en": Published(_MUSE, {**_MUSE_IWSLT, **_MUSE_BLOCK}),
    "muse_simple_iwslt_de_en": Published(_MUSE, {**_MUSE_IWSLT, **_SIMPLE_BLOCK}),
    "muse_iwslt_en_vi": Published(_MUSE, {**_MUSE_BLOCK, **_POST, "dropout": 0.3}),
    "muse_simple_iwslt_en_vi": Published(_MUSE, {**_SIMPLE_BLOCK, **_POST, "dropout": 0.3}),
    "muse_wmt_en_de": Published(
        _MUSE, {**_MUSE_BIG, **_MUSE_BLOCK, "dropout": 0.3, "attention_dropout": 0.1, "muse_input_dropout": 0.1}
    ),
    "muse_simple_wmt_en_de": Published(
        _MUSE, {**_MUSE_BIG, **_SIMPLE_BLOCK, "dropout": 0.3, "attention_dropout": 0.0, "muse_input_dropout": 0.0}
    ),
    "muse_wmt_en_fr": Published(
        _MUSE, {**_MUSE_BIG, **_MUSE_BLOCK, "dropout": 0.1, "attention_dropout": 0.1, "muse_input_dropout": 0.1}
    ),
    "muse_simple_wmt_en_fr": Published(_MUSE, {**_MUSE_BIG, **_SIMPLE_BLOCK}),
    "adanorm_transformer_iwslt_de_en": Published(
        _ADANORM, {**_ADANORM_IWSLT, "norm": "adanorm", "norm_scope": "all", "adanorm_scale": 1.0, "adanorm_k": 0.1}
    ),
    "adanorm_released_transformer_iwslt_de_en": Published(
        f"{_ADANORM}; the released factory passes its arguments to the two last norms only",
        {
            **_ADANORM_IWSLT, "norm": "adanorm", "norm_scope": "final", "norm_convention": "released",
            "adanorm_scale": 1.0, "adanorm_k": 0.1,
        },
    ),
    "layernorm_simple_transformer_iwslt_de_en": Published(
        _ADANORM, {**_ADANORM_IWSLT, "norm": "layernorm-simple", "norm_scope": "all"}
    ),
    # of these sets only the method is published here: the settings could not be checked
    "adanorm_transformer_iwslt_en_vi": Published(
        _ADANORM, {"norm": "adanorm", "norm_scope": "all", "adanorm_k": 0.1}
    ),
    "layernorm_simple_transformer_iwslt_en_vi": Published(_ADANORM, {"norm": "layernorm-simple", "norm_scope": "all"}),
    "adanorm_transformer_wmt_en_de_big": Published(_ADANORM, {"norm": "adanorm", "adanorm_k": 0.1}),
    "layernorm_simple_transformer_wmt_en_de_big": Published(_ADANORM, {"norm": "layernorm-simple"}),
    "adanorm_transformer_lm_enwik8": Published(_ADANORM, {"norm": "adanorm", "adanorm_k": 0.1}),
}  # fmt: skip
for _size in ("iwslt_de_en", "wmt_en_de", "wmt_en_de_big", "wmt_en_fr_big"):
    PRESETS[f"gca_transformer_{_size}"] = Published(
        "arXiv 2005.08081: the figure's granularity consistent attention",
        {"cross_view": "gca", "cross_view_no_global": False},
    )

# --- recipes: what fairseq-train and fairseq-generate get -------------------------------------------------------------

_SMOOTHED = {"criterion": "label_smoothed_cross_entropy", "label_smoothing": 0.1}
_ADAM = {"optimizer": "adam", "adam_betas": "(0.9, 0.98)", "warmup_init_lr": 1e-7}
_INVERSE = {**_SMOOTHED, **_ADAM, "lr_scheduler": "inverse_sqrt"}
_COSINE = {
    **_SMOOTHED, **_ADAM, "lr_scheduler": "cosine", "min_lr": 1e-7, "warmup_updates": 10000, "weight_decay": 0.0,
    "clip_norm": 0.0, "fp16": True,
}  # fmt: skip
# epoch checkpoints that are averaged, beam, length penalty
_IWSLT_TEST = {"average": 10, "beam": 5, "lenpen": 1.0}
_MUSE_DE_EN = {
    **_INVERSE, **_IWSLT_TEST, "lr": 1e-3, "warmup_updates": 4000, "max_update": 20000, "max_tokens": 4000,
    "update_freq": 4, "weight_decay": 1e-4, "clip_norm": 25.0, "fp16": True,
}  # fmt: skip
_MUSE_EN_VI = {
    **_INVERSE, **_IWSLT_TEST, "lr": 1e-3, "warmup_updates": 4000, "max_update": 10000, "max_tokens": 4000,
    "update_freq": 4, "fp16": True,
}  # fmt: skip
_ADANORM_DE_EN = {
    **_INVERSE, "lr": 0.0015, "warmup_updates": 8000, "max_update": 90000, "max_tokens": 4096, "update_freq": 2,
    "weight_decay": 1e-4, "clip_norm": 0.0, "stop_min_lr": 1e-9, "save_interval_updates": 10000,
    "keep_interval_updates": 5, "no_epoch_checkpoints": True, "seed": 1, "checkpoint": "checkpoint_best.pt", "beam": 5,
    "lenpen": 1.0,
}  # fmt: skip
_ENCOURAGING_DE_EN = {
    **_INVERSE, **_IWSLT_TEST, "lr": 1e-3, "warmup_updates": 4000, "max_update": 20000, "max_tokens": 4096,
    "update_freq": 4, "weight_decay": 1e-4, "fp16": True, "dropout": 0.4,
}  # fmt: skip
_BONUS = {"criterion": "label_smoothed_encouraging_loss", "label_smoothing": 0.1, "log_end": 0.5}
_EST_SCRIPT = f"{_EST}, fairseq_deen_est.sh"
_T2T_SCRIPT = f"{_EST}, t2t_envi_est.sh"
_ENCOURAGING = "lancopku/well-classified-examples-are-underestimated, README and scripts; arXiv 2110.06537"

# On WMT for the authors' 4 GPUs.
RECIPES = {
    "transformer_ext_iwslt_de_en": Published(_ENCOURAGING, _ENCOURAGING_DE_EN),
    "encouraging_transformer_iwslt_de_en": Published(_ENCOURAGING, {**_ENCOURAGING_DE_EN, **_BONUS}),
    "explicit_sparse_transformer_iwslt_de_en": Published(
        _EST_SCRIPT,
        {
            **_INVERSE, "lr": 1e-3, "warmup_updates": 4000, "max_tokens": 4000, "update_freq": 4, "weight_decay": 1e-4,
            "stop_min_lr": 1e-9, "max_epoch": 90, "keep_last_epochs": 50, "fp16": True, "beam": 5, "lenpen": 1.0,
        },
    ),
    "explicit_sparse_transformer_iwslt_en_vi": Published(
        f"{_T2T_SCRIPT} (beam 4, alpha 0.6)",
        {
            **_SMOOTHED, "optimizer": "adam", "adam_betas": "(0.9, 0.997)", "adam_eps": 1e-9,
            "lr_scheduler": "inverse_sqrt", "warmup_updates": 8000, "max_update": 35000, "max_tokens": 4096, "beam": 4,
        },
    ),
    "muse_iwslt_de_en": Published(_MUSE, _MUSE_DE_EN),
    "muse_simple_iwslt_de_en": Published(_MUSE, _MUSE_DE_EN),
    "muse_iwslt_en_vi": Published(_MUSE, _MUSE_EN_VI),
    "muse_simple_iwslt_en_vi": Published(_MUSE, _MUSE_EN_VI),
    "adanorm_transformer_iwslt_de_en": Published(_ADANORM, _ADANORM_DE_EN),
    "adanorm_released_transformer_iwslt_de_en": Published(_ADANORM, _ADANORM_DE_EN),
    "layernorm_simple_transformer_iwslt_de_en": Published(_ADANORM, _ADANORM_DE_EN),
    "muse_wmt_en_de": Published(
        _MUSE,
        {
            **_COSINE, "lr": 1e-3, "lr_period_updates": 20000, "max_update": 30000, "max_tokens": 3584,
            "update_freq": 32, "beam": 4, "lenpen": 0.6,
        },
    ),
    "muse_simple_wmt_en_de": Published(
        _MUSE,
        {
            **_INVERSE, "lr": 1e-3, "warmup_updates": 4000, "max_tokens": 3584, "update_freq": 40, "max_epoch": 75,
            "fp16": True, "beam": 4, "lenpen": 0.6,
        },
    ),
    "muse_wmt_en_fr": Published(
        f"{_MUSE} (a single checkpoint)",
        {
            **_COSINE, "lr": 7e-4, "lr_period_updates": 70000, "max_update": 80000, "max_tokens": 5120,
            "update_freq": 32, "beam": 5, "lenpen": 0.8,
        },
    ),
    "transformer_lm_ext_wiki103": Published(
        "fairseq, examples/language_model/README.adaptive_inputs.md",
        {
            "criterion": "adaptive_loss", "optimizer": "nag", "clip_norm": 0.1, "lr": 1.0, "lr_scheduler": "cosine",
            "warmup_updates": 16000, "warmup_init_lr": 1e-7, "min_lr": 1e-4, "stop_min_lr": 1e-9, "t_mult": 2,
            "lr_period_updates": 270000, "lr_shrink": 0.75, "max_update": 286000, "sample_break_mode": "none",
            "tokens_per_sample": 3072, "max_tokens": 3072, "update_freq": 3, "ddp_backend": "legacy_ddp", "seed": 1,
            "skip_invalid_size_inputs_valid_test": True,
        },
    ),
}  # fmt: skip
for _name in ("multi30k_de_en", "tatoeba_de_en", "iwslt_en_vi", "wmt_en_de_big", "wmt_en_fr_big"):
    RECIPES[f"encouraging_transformer_{_name}"] = Published(_ENCOURAGING, _BONUS)

# --- programs: what `python -m PROGRAM COMMAND --help` must say, of `fairseq-train` beside what is chosen -------------

_RENODE = "victorchen96/ReNode, transductive configuration; arXiv 2110.04099"
_PPRGO = "victorchen96/ReNode, large_scale configuration (PPRGo)"
_RMSC = "lancopku/RMSC, preprocess.py and its flags; arXiv 1808.07604"
_IAIS = "lancopku/IAIS, config/*.json (8 GPUs); arXiv 2105.13868"
_MUKI = "lancopku/MUKI, scripts and defaults; arXiv 2112.07327, 2210.05230"

_FAIRSEQ = "arXiv 1911.09483, 1912.11637, 1911.07013, 2005.08081, 1905.07799, 2110.06537, and their authors' releases"

HELP = {
    ("fairseq-train", "--arch transformer_ext --criterion label_smoothed_encouraging_loss"): Published(
        _FAIRSEQ,
        {
            "muse-kernels": "3,15", "muse-input-dropout": 0, "muse-weight-dropout": 0.1, "attention-topk": Ours(8, 0),
            "attention-topk-ratio": 0, "attention-topk-min": 0, "attention-topk-select": "scores",
            "attention-normalizer": "softmax", "attention-topk-in": "encoder-self,decoder-self,cross",
            "attention-span": Ours(8192, 0), "attention-span-ramp": 32, "attention-span-init": 0,
            "attention-span-loss": Ours(5e-7, 0), "norm": "layernorm", "norm-scope": "all", "adanorm-scale": 1,
            "adanorm-k": 0.1, "cross-view": Ours("gca", "none"), "init": Ours("km", "fairseq"),
            "label-smoothing": Ours(0.1, 0), "log-end": 0.5, "bonus-weight": 1, "bonus-clamp": 1e-5,
            "smoothing-form": "uniform", "ignore-prefix-size": 0,
        },
    ),
    ("fairseq-train", "--arch muse_iwslt_de_en"): Published(
        _MUSE, {"encoder-embed-dim": 384, "decoder-layers": 12, "dropout": 0.4, "init": "km", "block": "muse"}
    ),
    ("graph.renode", "train"): Published(
        _RENODE,
        {
            "train-each": 20, "valid-each": 30, "imbalance": "none", "labeling-ratio": Ours(0.01, 0.05),
            "imbalance-ratio": Ours(1, 5), "head-classes": "0 1 2", "w-min": 0.5, "w-max": 1.5, "alpha": 0.15,
            "backbone": Ours("sgc", "gcn"), "num-layers": 2, "hidden-size": 32, "dropout": 0.5, "loss": "ce",
            "gamma": 2, "beta": 0.9999, "renode": Ours("off", "on"), "lr": 0.0075, "lr-decay": 0.95,
            "lr-decay-epoch": 20, "min-lr": 1e-4, "weight-decay": 0, "epochs": 200, "least-epochs": 40, "patience": 20,
            "splits": Ours(5, 0), "inits": 3,
        },
    ),
    ("graph.renode", "train-large"): Published(
        _PPRGO,
        {
            "train-each": Ours(20, 50), "alpha": 0.15, "eps": 1e-4, "topk": 0, "normalization": "sym", "w-min": 0.75,
            "w-max": 1.25, "num-layers": 2, "hidden-size": 32, "dropout": 0.1, "loss": "ce", "lr": 5e-3,
            "weight-decay": 1e-4, "batch-size": 4200, "epochs": 800, "inference-steps": 2, "reduction": "sum",
            "totoro": Ours("push-softmax", "exact"),
        },
    ),
    ("graph.label_graph", "train"): Published(
        _RMSC,
        {
            "max-reviews": 40, "max-words": 20, "min-count": 1, "embedding-dim": 100, "graph-noise": 0,
            "temperature": 0, "ratio1": 1, "ratio2": 0, "hidden-size": 128, "attention-size": 100, "dropout": 0,
            "word-dropout": 0, "epochs": 100, "start-eval": 20, "batch-size": 128, "lr": 1e-3, "threshold": 0.2,
            "seed": 1,
        },
    ),
    ("graph.graph_classification", "train"): Published(
        _ENCOURAGING,
        {
            "log-end": 0.5, "hidden-size": 128, "num-layers": 3, "ratio": 0.5, "dropout": 0.5,
            "lr": 5e-4, "weight-decay": 1e-4, "batch-size": 128, "patience": 50,
            "runs": Ours(50, 10), "repeats": Ours(5, 1),
        },
    ),
    ("vision_language.iais", "train"): Published(
        _IAIS,
        {
            "dropout": 0.1, "max-text-length": 60, "max-regions": 100, "iais-weight": 1, "iais-schedule": "exp",
            "pseudo-norm": "softmax", "negative-size": 399, "hard-negatives": 31, "random-steps": 0, "margin": 0.2,
            "batch-size": 8, "num-steps": 5000, "warmup-steps": 500, "lr": 5e-5, "weight-decay": 0.01, "clip-norm": 2,
            "validate-every": 500, "anchors-per-forward": Ours(1, 2), "eval-batch-size": Ours(400, 64),
            "mixed-precision": Ours("fp16", "no"), "hidden-size": Ours(768, 128), "num-heads": Ours(12, 4),
            "intermediate-size": Ours(3072, 512), "vocab-size": Ours(28996, 5000),
        },
    ),
    ("vision_language.muka", "train-teacher"): Published(
        _MUKI,
        {
            "max-length": 128, "epochs": 3, "batch-size": 64, "lr": 2e-5, "warmup": 0.1, "weight-decay": 0, "seed": 1,
            "clip-norm": 1, "eval-batch-size": 64, "valid-fraction": 0.05, "mixed-precision": Ours("fp16", "no"),
        },
    ),
    ("vision_language.muka", "amalgamate"): Published(
        _MUKI,
        {
            "passes": 16, "score": "entropy", "temperature": 1, "score-temperature": 0.2, "epochs": 3, "batch-size": 16,
            "lr": 2e-5, "warmup": 0.1, "amalgam-lr": 1e-3, "max-length": 128, "eval-batch-size": 64, "seed": 1,
            "valid-fraction": 0.05, "weight-decay": 0, "clip-norm": 1, "select": Ours("accuracy", "loss"),
        },
    ),
}  # fmt: skip
