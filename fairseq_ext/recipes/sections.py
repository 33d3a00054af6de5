"""fairseq's groups of options, in the order in which recipes are written."""

from __future__ import annotations

__all__ = ["SECTIONS"]

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
"""Each group with those of its options that recipes set."""
