"""Published values with their sources, written down from papers and authors' releases, not from this code.

Four tables: what presets must build, what recipes must train and evaluate with, what the trainers must default to, and
what the recipes of images are.
A value is here because somebody published it; what is our choice is not here.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Published(NamedTuple):
    """Values, and where they were published."""

    source: str
    values: dict[str, Any]


def stated(documents: list[Published]) -> dict[str, tuple[Any, str]]:
    """Each option with its value and its document; the last one that has it counts, as in a recipe."""
    return {option: (value, source) for source, values in documents for option, value in values.items()}


class Ours(NamedTuple):
    """A published value from which this suite departs, and what it takes instead."""

    published: Any
    default: Any


def both(**values: Any) -> dict[str, Any]:
    """The same values for encoder and decoder."""
    return {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in values.items()}


# --- models: fields of transformer_ext under --arch NAME --------------------------------------------------------------

# Each document as far as it was at hand: a paper that was rewritten counts under the version that has the value.
_VASWANI = "Vaswani et al., arXiv 1706.03762, table 3, as fairseq's architectures have it"
_EST_SCRIPT = "lancopku/Explicit-Sparse-Transformer, fairseq_deen_est.sh"  # div -8, es+ds+dc
_T2T_SCRIPT = "lancopku/Explicit-Sparse-Transformer, t2t_envi_est.sh"  # d -6; its cross-attention is always dense
_SPAN_SCRIPT = "lancopku/Explicit-Sparse-Transformer, enwik8 with adaptive span"
_EST_LATER = "Extremely Sparse Transformer (later version of arXiv 1912.11637)"
_MUSE = "lancopku/MUSE, README and training logs"
_MUSE_CODE = "lancopku/MUSE, released code"
_MUSE_JOURNAL = "Unified Transformer (journal version of arXiv 1911.09483)"
_ADANORM_SCRIPT = "lancopku/AdaNorm, baseline-adanorm-km.sh"
_ADANORM_CODE = "lancopku/AdaNorm, what its code builds"
_ADANORM = "AdaNorm paper (arXiv 1911.07013)"
_ENCOURAGING_DE_EN_SCRIPT = "lancopku/well-classified-examples-are-underestimated, IWSLT14 De-En script"
_ENCOURAGING_FR_EN_SCRIPT = "lancopku/well-classified-examples-are-underestimated, IWSLT17 Fr-En script"
_ENCOURAGING_SCRIPTS = "lancopku/well-classified-examples-are-underestimated, translation scripts"
_GCA = "GCA paper (arXiv 2005.08081)"
_BAEVSKI = "fairseq, examples/language_model/README.adaptive_inputs.md"

_IWSLT = both(embed_dim=512, ffn_embed_dim=1024, attention_heads=4, layers=6)
_BASE = both(embed_dim=512, ffn_embed_dim=2048, attention_heads=8, layers=6)
_BIG = both(embed_dim=1024, ffn_embed_dim=4096, attention_heads=16, layers=6)
_POST, _PRE = both(normalize_before=False), both(normalize_before=True)
_KM = Published(_MUSE_CODE, {"init": "km"})
_KERNELS = Published(_MUSE_CODE, {"init": "km", "muse_weight_dropout": 0.1})
_MUSE_BLOCK = {"block": "muse", "muse_kernels": "3,15", "muse_no_gate": False}
_SIMPLE_BLOCK = {"block": "muse-simple"}
_MUSE_IWSLT = {
    **both(embed_dim=384, ffn_embed_dim=768, attention_heads=4, layers=12), **_POST,
    "dropout": 0.4, "attention_dropout": 0.0, "muse_input_dropout": 0.0, "share_all_embeddings": False,
}  # fmt: skip
_MUSE_BIG = {
    **both(embed_dim=768, ffn_embed_dim=3072, attention_heads=16, layers=12), **_POST, "share_all_embeddings": True
}  # fmt: skip
_ADANORM_IWSLT = {
    **_IWSLT, **_PRE, "share_all_embeddings": True, "dropout": 0.3, "attention_dropout": 0.1, "activation_dropout": 0.1,
    "init": "adanorm",  # --init_method km, where the feed-forward network stays xavier
}  # fmt: skip

_EVERY_NORM = {"norm_scope": "all", "adanorm_scale": 1.0, "adanorm_k": 0.1}

PRESETS = {
    "transformer_ext_iwslt_de_en": [Published(_VASWANI, {**_IWSLT, **_POST})],
    "transformer_ext_wmt_en_de": [Published(_VASWANI, {**_BASE, **_POST, "dropout": 0.1})],
    "transformer_ext_wmt_en_de_big": [Published(_VASWANI, {**_BIG, **_POST, "dropout": 0.3})],
    "transformer_ext_wmt_en_fr_big": [Published(_VASWANI, {**_BIG, **_POST, "dropout": 0.1})],
    "explicit_sparse_transformer_iwslt_de_en": [
        Published(
            _EST_SCRIPT,
            {
                **_IWSLT, **_POST, "attention_topk": 8, "attention_topk_in": "encoder-self,decoder-self,cross",
                "attention_normalizer": "softmax", "dropout": 0.4, "attention_dropout": 0.0, "activation_dropout": 0.0,
                "share_all_embeddings": False,
            },
        )
    ],
    "explicit_sparse_transformer_iwslt_en_vi": [
        Published(
            _T2T_SCRIPT,
            {
                **_BASE, **_PRE, "attention_topk": 6, "attention_topk_in": "encoder-self,decoder-self", "dropout": 0.1,
                "attention_dropout": 0.1, "activation_dropout": 0.1,
            },
        )
    ],
    "explicit_sparse_transformer_lm_enwik8": [Published(_EST_LATER, {"attention_topk": 64})],
    "explicit_sparse_span_transformer_lm_enwik8": [
        Published(
            _SPAN_SCRIPT,
            {
                "decoder_embed_dim": 512, "decoder_ffn_embed_dim": 2048, "decoder_attention_heads": 8,
                "decoder_layers": 12, "dropout": 0.3, "attention_dropout": 0.3, "attention_topk": 32,
                "attention_span_loss": 5e-7, "attention_span_ramp": 32, "attention_span_init": 0.0,
            },
        )
    ],
    "muse_iwslt_de_en": [Published(_MUSE, {**_MUSE_IWSLT, **_MUSE_BLOCK}), _KERNELS],
    "muse_simple_iwslt_de_en": [Published(_MUSE, {**_MUSE_IWSLT, **_SIMPLE_BLOCK}), _KM],
    "muse_iwslt_en_vi": [Published(_MUSE_JOURNAL, {"block": "muse", **_POST, "dropout": 0.3}), _KERNELS],
    "muse_simple_iwslt_en_vi": [Published(_MUSE_JOURNAL, {**_SIMPLE_BLOCK, **_POST, "dropout": 0.3}), _KM],
    "muse_wmt_en_de": [
        Published(
            _MUSE, {**_MUSE_BIG, **_MUSE_BLOCK, "dropout": 0.3, "attention_dropout": 0.1, "muse_input_dropout": 0.1}
        ),
        _KERNELS,
    ],
    "muse_simple_wmt_en_de": [
        Published(
            _MUSE, {**_MUSE_BIG, **_SIMPLE_BLOCK, "dropout": 0.3, "attention_dropout": 0.0, "muse_input_dropout": 0.0}
        ),
        _KM,
    ],
    "muse_wmt_en_fr": [
        Published(
            _MUSE, {**_MUSE_BIG, **_MUSE_BLOCK, "dropout": 0.1, "attention_dropout": 0.1, "muse_input_dropout": 0.1}
        ),
        _KERNELS,
    ],
    "muse_simple_wmt_en_fr": [Published(_MUSE_JOURNAL, _SIMPLE_BLOCK), _KM],
    "adanorm_transformer_iwslt_de_en": [
        Published(_ADANORM_SCRIPT, _ADANORM_IWSLT), Published(_ADANORM, {"norm": "adanorm", **_EVERY_NORM})
    ],
    # the released factory passes its arguments to the two last norms only
    "adanorm_released_transformer_iwslt_de_en": [
        Published(_ADANORM_SCRIPT, _ADANORM_IWSLT),
        Published(
            _ADANORM_CODE,
            {
                "norm": "adanorm", "norm_scope": "final", "norm_convention": "released", "adanorm_scale": 1.0,
                "adanorm_k": 0.1,
            },
        ),
    ],
    "layernorm_simple_transformer_iwslt_de_en": [
        Published(_ADANORM_SCRIPT, _ADANORM_IWSLT),
        Published(_ADANORM, {"norm": "layernorm-simple", "norm_scope": "all"}),
    ],
    # of these sets only the method is published here: the settings could not be checked
    "adanorm_transformer_iwslt_en_vi": [Published(_ADANORM, {"norm": "adanorm", **_EVERY_NORM})],
    "layernorm_simple_transformer_iwslt_en_vi": [
        Published(_ADANORM, {"norm": "layernorm-simple", "norm_scope": "all"})
    ],
    "adanorm_transformer_wmt_en_de_big": [Published(_ADANORM, {"norm": "adanorm", **_EVERY_NORM})],
    "layernorm_simple_transformer_wmt_en_de_big": [Published(_ADANORM, {"norm": "layernorm-simple"})],
    "adanorm_transformer_lm_enwik8": [Published(_ADANORM, {"norm": "adanorm", **_EVERY_NORM})],
}  # fmt: skip
for _size in ("iwslt_de_en", "wmt_en_de", "wmt_en_de_big", "wmt_en_fr_big"):  # the figure's
    PRESETS[f"gca_transformer_{_size}"] = [Published(_GCA, {"cross_view": "gca", "cross_view_no_global": False})]

# --- recipes: what fairseq-train and fairseq-generate get -------------------------------------------------------------

_SMOOTHED = {"criterion": "label_smoothed_cross_entropy", "label_smoothing": 0.1}
_ADAM = {"optimizer": "adam", "adam_betas": "(0.9, 0.98)"}
_INVERSE = {**_SMOOTHED, **_ADAM, "lr_scheduler": "inverse_sqrt"}
_COSINE = {
    **_SMOOTHED, **_ADAM, "lr_scheduler": "cosine", "min_lr": 1e-7, "warmup_updates": 10000, "weight_decay": 0.0,
    "clip_norm": 0.0, "fp16": True,
}  # fmt: skip
# epoch checkpoints that are averaged, beam, length penalty
_IWSLT_TEST = {"average": 10, "beam": 5, "lenpen": 1.0}
_MUSE_DE_EN = {
    **_INVERSE, **_IWSLT_TEST, "lr": 1e-3, "warmup_updates": 4000, "warmup_init_lr": 1e-7, "max_update": 20000,
    "max_tokens": 4000, "update_freq": 4, "weight_decay": 1e-4, "clip_norm": 25.0, "fp16": True,
}  # fmt: skip
# a table of the paper alone, no command: neither optimizer nor loss nor precision
_MUSE_EN_VI = {
    **_IWSLT_TEST, "lr_scheduler": "inverse_sqrt", "lr": 1e-3, "warmup_updates": 4000, "max_update": 10000,
    "max_tokens": 4000, "update_freq": 4,
}  # fmt: skip
_ADANORM_DE_EN = {
    **_INVERSE, "lr": 0.0015, "warmup_updates": 8000, "warmup_init_lr": 1e-7, "max_update": 90000, "max_tokens": 4096,
    "update_freq": 2, "weight_decay": 1e-4, "clip_norm": 0.0, "stop_min_lr": 1e-9, "save_interval_updates": 10000,
    "keep_interval_updates": 5, "no_epoch_checkpoints": True, "seed": 1, "checkpoint": "checkpoint_best.pt", "beam": 5,
    "lenpen": 1.0,
}  # fmt: skip
# the first update's rate and the length penalty are not said; the average is one of two checkpoints that are tested
_ENCOURAGING_COMMON = {**_INVERSE, "warmup_updates": 4000, "max_tokens": 4096, "fp16": True, "average": 10, "beam": 5}
_ENCOURAGING_DE_EN = {
    **_ENCOURAGING_COMMON, "lr": 1e-3, "dropout": 0.4, "weight_decay": 1e-4, "update_freq": 4, "max_update": 20000,
}  # fmt: skip
_ENCOURAGING_FR_EN = {
    **_ENCOURAGING_COMMON, **both(layers=2), "share_all_embeddings": True, "lr": 5e-4, "dropout": 0.3,
    "weight_decay": 1e-3, "max_update": 100000, "remove_bpe": "sentencepiece",
}  # fmt: skip
_BONUS = Published(
    _ENCOURAGING_SCRIPTS, {"criterion": "label_smoothed_encouraging_loss", "label_smoothing": 0.1, "log_end": 0.5}
)
_SPAN = {"optimizer": "adagrad", "lr": 0.07, "warmup_updates": 32000, "clip_norm": 0.03, "max_update": 600000}

# On WMT for the authors' 4 GPUs.
RECIPES = {
    "transformer_ext_iwslt_de_en": [Published(_ENCOURAGING_DE_EN_SCRIPT, _ENCOURAGING_DE_EN)],
    "encouraging_transformer_iwslt_de_en": [Published(_ENCOURAGING_DE_EN_SCRIPT, _ENCOURAGING_DE_EN), _BONUS],
    "transformer_ext_iwslt_fr_en": [Published(_ENCOURAGING_FR_EN_SCRIPT, _ENCOURAGING_FR_EN)],
    "encouraging_transformer_iwslt_fr_en": [Published(_ENCOURAGING_FR_EN_SCRIPT, _ENCOURAGING_FR_EN), _BONUS],
    "explicit_sparse_transformer_iwslt_de_en": [
        Published(
            _EST_SCRIPT,
            {
                **_INVERSE, "lr": 1e-3, "warmup_updates": 4000, "warmup_init_lr": 1e-7, "max_tokens": 4000,
                "update_freq": 4, "weight_decay": 1e-4, "stop_min_lr": 1e-9, "max_epoch": 90, "keep_last_epochs": 50,
                "fp16": True, "beam": 5, "lenpen": 1.0,
            },
        )
    ],
    # its alpha of 0.6 is not fairseq's length penalty
    "explicit_sparse_transformer_iwslt_en_vi": [
        Published(
            _T2T_SCRIPT,
            {
                **_SMOOTHED, "optimizer": "adam", "adam_betas": "(0.9, 0.997)", "adam_eps": 1e-9,
                "lr_scheduler": "inverse_sqrt", "warmup_updates": 8000, "max_update": 35000, "max_tokens": 4096,
                "beam": 4,
            },
        )
    ],
    "explicit_sparse_span_transformer_lm_enwik8": [Published(_SPAN_SCRIPT, _SPAN)],
    "explicit_sparse_span_8_transformer_lm_enwik8": [Published(_SPAN_SCRIPT, {**_SPAN, "attention_topk": 8})],
    "muse_iwslt_de_en": [Published(_MUSE, _MUSE_DE_EN)],
    "muse_simple_iwslt_de_en": [Published(_MUSE, _MUSE_DE_EN)],
    "muse_iwslt_en_vi": [Published(_MUSE_JOURNAL, _MUSE_EN_VI)],
    "muse_simple_iwslt_en_vi": [Published(_MUSE_JOURNAL, _MUSE_EN_VI)],
    "adanorm_transformer_iwslt_de_en": [Published(_ADANORM_SCRIPT, _ADANORM_DE_EN)],
    "adanorm_released_transformer_iwslt_de_en": [Published(_ADANORM_SCRIPT, _ADANORM_DE_EN)],
    "layernorm_simple_transformer_iwslt_de_en": [Published(_ADANORM_SCRIPT, _ADANORM_DE_EN)],
    "muse_wmt_en_de": [
        Published(
            _MUSE,
            {
                **_COSINE, "lr": 1e-3, "lr_period_updates": 20000, "max_update": 30000, "max_tokens": 3584,
                "update_freq": 32, "beam": 4, "lenpen": 0.6,
            },
        )
    ],
    "muse_simple_wmt_en_de": [
        Published(
            _MUSE,
            {
                **_INVERSE, "lr": 1e-3, "warmup_updates": 4000, "max_tokens": 3584, "update_freq": 40, "max_epoch": 75,
                "fp16": True,
            },
        )
    ],
    # a single checkpoint; the rates of the log start at 1e-7
    "muse_wmt_en_fr": [
        Published(
            _MUSE,
            {
                **_COSINE, "lr": 7e-4, "warmup_init_lr": 1e-7, "lr_period_updates": 70000, "max_update": 80000,
                "max_tokens": 5120, "update_freq": 32, "beam": 5, "lenpen": 0.8,
            },
        )
    ],
    "transformer_lm_ext_wiki103": [
        Published(
            _BAEVSKI,
            {
                "criterion": "adaptive_loss", "optimizer": "nag", "clip_norm": 0.1, "lr": 1.0, "lr_scheduler": "cosine",
                "warmup_updates": 16000, "warmup_init_lr": 1e-7, "min_lr": 1e-4, "stop_min_lr": 1e-9, "t_mult": 2,
                "lr_period_updates": 270000, "lr_shrink": 0.75, "max_update": 286000, "sample_break_mode": "none",
                "tokens_per_sample": 3072, "max_tokens": 3072, "update_freq": 3, "ddp_backend": "legacy_ddp", "seed": 1,
                "skip_invalid_size_inputs_valid_test": True,
            },
        )
    ],
}  # fmt: skip
for _name in ("multi30k_de_en", "tatoeba_de_en", "iwslt_en_vi", "wmt_en_de_big", "wmt_en_fr_big"):
    RECIPES[f"encouraging_transformer_{_name}"] = [_BONUS]

# --- programs: what `python -m PROGRAM COMMAND --help` must say, of `fairseq-train` beside what is chosen -------------

_ENCOURAGING = "lancopku/well-classified-examples-are-underestimated, README and scripts; arXiv 2110.06537"
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
            "backbone": Ours("sgc", "gcn"), "num-layers": 2, "hidden-size": 32, "dropout": 0.5, "topk": Ours(-1, 0),
            "loss": "ce", "gamma": 2, "beta": 0.9999, "renode": Ours("off", "on"), "lr": 0.0075, "lr-decay": 0.95,
            "lr-decay-epoch": 20, "min-lr": 1e-4, "weight-decay": 0, "epochs": 200, "least-epochs": 40, "patience": 20,
            "splits": Ours(5, 0), "inits": 3, "ties": "index",
        },
    ),
    ("graph.renode", "train-large"): Published(
        _PPRGO,
        {
            "train-each": 50, "alpha": 0.15, "eps": 1e-4, "topk": 0, "normalization": "sym", "w-min": 0.75,
            "w-max": 1.25, "num-layers": 2, "hidden-size": 32, "dropout": 0.1, "loss": "ce", "lr": 5e-3,
            "weight-decay": 1e-4, "batch-size": 4200, "epochs": 800, "inference-steps": 2, "reduction": "sum",
            "totoro": Ours("push-softmax", "exact"), "ties": "index", "patience": Ours(0, 100), "splits": 1, "inits": 1,
            "gamma": 2, "beta": 0.9999,  # of the losses of the transductive code
        },
    ),
    ("graph.label_graph", "train"): Published(
        _RMSC,
        {
            "max-reviews": 40, "max-words": 20, "min-count": 1, "embedding-dim": 100, "graph-noise": 0,
            "temperature": 0, "ratio1": 1, "ratio2": 0, "hidden-size": 128, "attention-size": 100, "dropout": 0,
            "epochs": 100, "start-eval": 20, "batch-size": 128, "lr": 1e-3, "threshold": 0.2, "seed": 1,
        },
    ),
    ("graph.graph_classification", "train"): Published(
        _ENCOURAGING,
        {
            "log-end": 0.5, "defer-start": Ours(25, -2), "hidden-size": 128, "num-layers": 3, "ratio": 0.5,
            "dropout": 0.5, "lr": 5e-4, "weight-decay": 1e-4, "batch-size": 128, "patience": 50,
            "runs": Ours(50, 10), "repeats": Ours(5, 1),
        },
    ),
    ("vision_language.iais", "train"): Published(
        _IAIS,
        {
            "dropout": 0.1, "max-text-length": 60, "max-regions": 100, "iais-schedule": "exp",
            "pseudo-norm": "softmax", "negative-size": 399, "hard-negatives": 31, "margin": 0.2,
            "batch-size": 8, "num-steps": 5000, "warmup-steps": 500, "lr": 5e-5, "weight-decay": 0.01, "clip-norm": 2,
            "validate-every": 500, "anchors-per-forward": Ours(1, 2), "eval-batch-size": Ours(400, 64),
            "mixed-precision": Ours("fp16", "no"), "seed": Ours(42, 1), "num-layers": Ours(12, 0),
            "hidden-size": Ours(768, 128), "num-heads": Ours(12, 4),
            "intermediate-size": Ours(3072, 512), "vocab-size": Ours(28996, 5000),
        },
    ),
    ("vision_language.muka", "train-teacher"): Published(
        _MUKI,
        {
            "max-length": 128, "epochs": 3, "batch-size": 64, "lr": 2e-5, "warmup": 0.1, "seed": 1,
            "eval-batch-size": 64, "valid-fraction": 0.05, "validate-every": Ours(200, 0),
            "mixed-precision": Ours("fp16", "no"),
        },
    ),
    ("vision_language.muka", "amalgamate"): Published(
        _MUKI,
        {
            "passes": 16, "score": "entropy", "temperature": 1, "score-temperature": 0.2, "epochs": 3, "batch-size": 16,
            "lr": 2e-5, "warmup": 0.1, "amalgam-lr": 1e-3, "max-length": 128, "eval-batch-size": 64, "seed": 1,
            "valid-fraction": 0.05, "select": Ours("accuracy", "loss"), "validate-every": Ours(200, 0),
            "teacher-dropout": Ours(0.1, 0), "mixed-precision": Ours("fp16", "no"),
        },
    ),
}  # fmt: skip

# --- images: what train gets from python -m vision_language.image_classification recipe NAME -------------------------

_EL = "arXiv 2110.06537, its released code and slides"
_CE_ROW, _LE_1, _LE_75 = {"loss": "cross-entropy"}, {"loss": "encouraging", "log_end": 1}, {"log_end": 0.75}
_BOTH_LE_1 = {"ce": _CE_ROW, "el": _LE_1}
_BOTH_LE_75 = {"ce": _CE_ROW, "el": {"loss": "encouraging", **_LE_75}}
_L_SOFTMAX = {
    "network": "large-margin-cnn", "optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 0, "batch_size": 256,
    "epochs": 100, "lr_schedule": "steps", "lr_steps": (51, 65), "lr_factor": 0.1, "seed": 0, "runs": 5,
}  # fmt: skip
_THREE = {
    "network": "three-convolutions", "normalize": False, "shuffle": False, "optimizer": "adam", "lr": 1e-3,
    "batch_size": 128, "epochs": 5,
}  # fmt: skip
_CIFAR = {
    "image_size": 224, "augment": "resized-crop", "optimizer": "sgd", "momentum": 0.9, "nesterov": True,
    "weight_decay": 1e-4, "epochs": 90, "lr_schedule": "steps", "lr_steps": (30, 60, 80), "lr_factor": 0.1, "runs": 5,
}  # fmt: skip
_CRT = {
    "augment": "resized-crop", "optimizer": "sgd", "lr": 0.2, "momentum": 0.9, "weight_decay": 1e-4, "batch_size": 512,
    "lr_schedule": "cosine-released",
}  # fmt: skip
_LONG_TAILED = {
    "network": "resnet32", "augment": "pad-crop", "long_tail": "exponential", "imbalance_factor": 100,
    "optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 2e-4, "batch_size": 128, "epochs": 200,
    "warmup_epochs": 5, "lr_schedule": "steps", "lr_steps": (161, 181), "lr_factor": 0.01,
}  # fmt: skip
_FROM_161 = {"reweight_from": 161, "beta": 0.9999}
_TASKS: list[tuple[str, dict[str, Any], dict[str, dict[str, Any]]]] = [
    ("mnist", _L_SOFTMAX, _BOTH_LE_1),
    ("mnist-smoothed", {**_L_SOFTMAX, "label_smoothing": 0.1}, _BOTH_LE_1),
    ("mnist-margin2", {**_L_SOFTMAX, "margin": 2}, _BOTH_LE_1),
    ("mnist-mse", _L_SOFTMAX, {
        "softmax": {"loss": "mse", "activation": "softmax"},
        "softmax-mirror": {"loss": "mirror-mse", "activation": "softmax", "mirror_power": 2},
        "sigmoid": {"loss": "mse", "activation": "sigmoid"},
        "sigmoid-mirror": {"loss": "mirror-mse", "activation": "sigmoid", "mirror_power": 2},
    }),
    ("attacked-mnist", _THREE, _BOTH_LE_1),
    ("attacked-mnist-fgsm", {**_THREE, "attack": "fgsm", "epsilon": 0.3}, _BOTH_LE_1),
    ("attacked-mnist-pgd", {
        **_THREE, "attack": "pgd", "epsilon": 0.3, "attack_step_size": 0.1, "attack_steps": 7
    }, _BOTH_LE_1),
    ("attacked-mnist-pgd-l2", {
        **_THREE, "attack": "pgd-l2", "epsilon": 3, "attack_step_size": 0.2, "attack_steps": 7
    }, _BOTH_LE_1),
    ("cifar-resnet50", {**_CIFAR, "network": "resnet50", "lr": 0.025, "batch_size": 64}, _BOTH_LE_75),
    ("cifar-efficientnet-b0", {**_CIFAR, "network": "efficientnet-b0", "lr": 0.0125, "batch_size": 32}, _BOTH_LE_75),
    ("imagenet-resnet50", {
        "network": "resnet50", "image_size": 224, "augment": "resized-crop", "optimizer": "sgd", "lr": 0.1,
        "momentum": 0.9, "weight_decay": 1e-4, "batch_size": 256, "epochs": 90, "lr_schedule": "steps",
        "lr_steps": (31, 61), "lr_factor": 0.1, "seed": 1, "runs": 5,
    }, _BOTH_LE_75),
    # and rmsproptf, warm-up, moving averages, RandAugment and random erasing, which are not done here
    ("imagenet-efficientnet-b0", {
        "network": "efficientnet-b0", "image_size": 224, "augment": "resized-crop", "lr": 0.048, "weight_decay": 1e-5,
        "batch_size": 768, "epochs": 450, "mixed_precision": "fp16", "label_smoothing": 0.1, "lr_schedule": "steps",
        "lr_steps": tuple(e for e in range(2, 451) if 5 * (e - 1) // 12 > 5 * (e - 2) // 12), "lr_factor": 0.97,
    }, _BOTH_LE_75),
    ("inaturalist", {**_CRT, "network": "resnet50", "image_size": 224, "epochs": 200}, {
        **_BOTH_LE_1,
        "el-half": {"loss": "encouraging", "log_end": 0.5},
        "aggressive": {**_LE_1, "bonus_start": 0.5},
        "drw": {**_CE_ROW, "reweight": "loss", "reweight_from": 181, "beta": 0.9999},
        "drw-el": {**_LE_1, "bonus_from": 181, "reweight": "both", "reweight_from": 181, "beta": 0.9999},
        "focal": {"loss": "focal", "gamma": 1},
        "halted-focal": {"loss": "halted-focal", "gamma": 1},
    }),
    ("inaturalist", _CRT, {"crt": {**_CE_ROW, "freeze": True, "epochs": 30}}),
    ("cifar-tail", _LONG_TAILED, {
        "ce": _CE_ROW,
        "drw": {**_CE_ROW, "reweight": "loss", **_FROM_161},
        "ldam-drw": {**_CE_ROW, "adjust_logits": "ldam", "cosine_scale": 30, "reweight": "loss", **_FROM_161},
        "drw-el": _FROM_161,  # the bonus is not published
    }),
]  # fmt: skip
IMAGE_RECIPES = {
    f"{task}-{row}": Published(_EL, {**shared, **own}) for task, shared, rows in _TASKS for row, own in rows.items()
}
