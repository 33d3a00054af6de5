"""COCO captions, cross-entropy training: our choice throughout, near to what captioning releases have in common."""

from __future__ import annotations

from fairseq_ext.recipes.recipe import Data, Recipe
from fairseq_ext.recipes.translation import ADAM, SMOOTHED
from fairseq_ext.training.sources import OURS, by

__all__ = ["CAPTIONING"]

COCO = Data(
    "coco",
    folder="data-bin/coco",
    prepare="fairseq-ext captions prepare dataset_coco.json {data} --features FEATURES",
    score="fairseq-ext captions score {data} --generated {save}/generate.txt --out {save}/scores.json",
)

TRAINING = by(
    OURS,
    task="captioning",
    eval_captions=True,
    seed=1,
    log_format="json",
    log_interval=100,
    fp16=True,
    **ADAM,
    **SMOOTHED,
    warmup_init_lr=1e-7,
    lr_scheduler="inverse_sqrt",
    warmup_updates=10000,
    lr=5e-4,
    clip_norm=0.1,
    batch_size=50,
    update_freq=1,
    max_epoch=15,
    keep_last_epochs=1,
    best_checkpoint_metric="cider",
    maximize_best_checkpoint_metric=True,
)
EVALUATION = by(OURS, checkpoint="checkpoint_best.pt", beam=3, max_len_b=20, batch_size=50)

CAPTIONING = [
    Recipe("captioning_transformer_ext_coco", "transformer", COCO, TRAINING, EVALUATION),
    Recipe("explicit_sparse_transformer_coco", "explicit-sparse", COCO, TRAINING, EVALUATION),
    Recipe(
        "encouraging_captioning_coco",
        "encouraging",
        COCO,
        TRAINING | by(OURS, criterion="label_smoothed_encouraging_loss", log_end=0.5),
        EVALUATION,
        arch="captioning_transformer_ext_coco",
        summary="Encouraging loss, COCO captions: base size. Our choice: the authors released nothing on captions.",
    ),
]
