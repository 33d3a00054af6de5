"""Values that fairseq's recipes share, each under fairseq's own name, and fairseq's groups of options."""

from __future__ import annotations

from typing import Any

from fairseq_ext.training.sources import OURS, Setting, SourcedValues, by

__all__ = ["OURS", "SECTIONS", "Setting", "SourcedValues", "both", "by"]


def both(**values: Any) -> dict[str, Any]:
    """The same ``values`` for the encoder and the decoder."""
    return {f"{side}_{option}": value for side in ("encoder", "decoder") for option, value in values.items()}


SECTIONS: dict[str, tuple[str, ...]] = {
    "common": ("seed", "cpu", "fp16", "log_format", "log_interval"),
    "task": ("task", "tokens_per_sample", "sample_break_mode", "eval_captions"),
    "criterion": ("criterion", "label_smoothing", "log_end"),
    "distributed_training": ("ddp_backend",),
    "dataset": ("max_tokens", "batch_size", "skip_invalid_size_inputs_valid_test"),
    "optimization": ("max_epoch", "max_update", "update_freq", "lr", "stop_min_lr", "clip_norm"),
    "optimizer": ("optimizer", "adam_betas", "adam_eps", "weight_decay"),
    "lr_scheduler": (
        *("lr_scheduler", "warmup_updates", "warmup_init_lr", "min_lr", "t_mult", "lr_period_updates", "lr_shrink"),
    ),
    "checkpoint": (
        *("save_interval_updates", "keep_interval_updates", "keep_last_epochs", "no_epoch_checkpoints"),
        *("best_checkpoint_metric", "maximize_best_checkpoint_metric"),
    ),
}
"""fairseq's groups of options, in the order in which recipes are written, with those options that recipes set."""
