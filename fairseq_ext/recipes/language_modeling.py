"""Language modelling recipes.

The papers trained other models on enwik8, with a memory of earlier blocks: do not compare with their tables.
"""

from __future__ import annotations

from fairseq_ext.recipes.recipe import Data, Recipe
from fairseq_ext.recipes.sources import BAEVSKI, SPAN_SCRIPT
from fairseq_ext.training.sources import OURS, by

__all__ = ["LANGUAGE_MODELING"]

ENWIK8 = Data(
    "enwik8",
    folder="data-bin/enwik8",
    prepare="python -m examples.language_modeling.prepare --input enwik8.zip --split 90000000 5000000 5000000 "
    "--out {data}",
    score="python -m examples.language_modeling.bpc {save}/eval.log --data {data}",
)
WIKITEXT = Data(
    "wikitext103",
    folder="data-bin/wikitext-103",
    prepare="fairseq's prepare-wikitext-103.sh and fairseq-preprocess --only-source, with {data}",
    score="grep 'Loss (base 2)' {save}/eval.log",
)

_TRAINING = by(OURS, task="language_modeling", seed=1, log_format="json", log_interval=100)
_EVALUATION = by(OURS, checkpoint="checkpoint_best.pt", sample_break_mode="none", required_batch_size_multiple=1)

_ENWIK8 = _TRAINING | by(
    OURS,
    sample_break_mode="none",
    max_tokens=8192,
    save_interval_updates=5000,
    keep_interval_updates=1,
    no_epoch_checkpoints=True,
)
ENWIK8_TRAINING = _ENWIK8 | by(
    OURS,
    criterion="cross_entropy",
    optimizer="adam",
    adam_betas="(0.9, 0.98)",
    clip_norm=0.25,
    lr=5e-4,
    lr_scheduler="cosine",
    warmup_updates=4000,
    warmup_init_lr=1e-7,
    max_update=100000,
    tokens_per_sample=512,
    update_freq=2,
    fp16=True,
)
ENWIK8_EVALUATION = _EVALUATION | by(OURS, tokens_per_sample=1024, context_window=512, max_tokens=8192)

# As many symbols per update as the authors' 64 blocks of 512; in single precision, as fairseq's Adagrad needs.
SPAN_TRAINING = (
    _ENWIK8
    | by(OURS, criterion="cross_entropy_with_span", lr_scheduler="fixed", tokens_per_sample=2048, update_freq=4)
    | by(OURS, weight_decay=0.0)
    | by(SPAN_SCRIPT, optimizer="adagrad", lr=0.07, warmup_updates=32000, clip_norm=0.03, max_update=600000)
)
SPAN_EVALUATION = _EVALUATION | by(OURS, tokens_per_sample=2048, context_window=1024, max_tokens=8192)

WIKITEXT_TRAINING = (
    _TRAINING
    | by(OURS, keep_last_epochs=10, fp16=True)
    | by(
        BAEVSKI,
        criterion="adaptive_loss",
        optimizer="nag",
        clip_norm=0.1,
        lr=1.0,
        lr_scheduler="cosine",
        warmup_updates=16000,
        warmup_init_lr=1e-7,
        min_lr=1e-4,
        stop_min_lr=1e-9,
        t_mult=2,
        lr_period_updates=270000,
        lr_shrink=0.75,
        max_update=286000,
        sample_break_mode="none",
        tokens_per_sample=3072,
        max_tokens=3072,
        update_freq=3,
        skip_invalid_size_inputs_valid_test=True,
        ddp_backend="legacy_ddp",
        seed=1,
    )
)
WIKITEXT_EVALUATION = _EVALUATION | by(OURS, tokens_per_sample=3072, context_window=2560, max_tokens=3072)

LANGUAGE_MODELING = [
    Recipe("transformer_lm_ext_wiki103", "transformer", WIKITEXT, WIKITEXT_TRAINING, WIKITEXT_EVALUATION),
    Recipe("explicit_sparse_transformer_lm_enwik8", "explicit-sparse", ENWIK8, ENWIK8_TRAINING, ENWIK8_EVALUATION),
    Recipe(
        "explicit_sparse_span_transformer_lm_enwik8", "explicit-sparse-span", ENWIK8, SPAN_TRAINING, SPAN_EVALUATION
    ),
    Recipe(
        "explicit_sparse_span_8_transformer_lm_enwik8",
        "explicit-sparse-span-8",
        ENWIK8,
        SPAN_TRAINING,
        SPAN_EVALUATION,
        arch="explicit_sparse_span_transformer_lm_enwik8",
        model=by(SPAN_SCRIPT, attention_topk=8),
        summary="Top-k attention, adaptive spans, enwik8: k = 8 (authors' run), else as with k = 32.",
    ),
    Recipe("adanorm_transformer_lm_enwik8", "adanorm", ENWIK8, ENWIK8_TRAINING, ENWIK8_EVALUATION),
]
