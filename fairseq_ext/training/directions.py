"""Whether more or less of a metric is better: it decides which epoch is picked and which of two runs is better."""

from __future__ import annotations

__all__ = ["lower_is_better"]

LOWER = ("loss", "nll", "ece", "error")
HIGHER = ("accuracy", "many", "medium", "few", "head", "middle", "tail", "f1", "auc", "rsum", "r1", "r5", "r10")
"""Last parts of names, such as ``test_nll``, ``hamming_loss`` or ``valid_macro_f1``."""


def lower_is_better(metric: str) -> bool | None:
    """Whether less of a metric is better; None where neither is, as for a threshold or a number of epochs.

    Args:
        metric: name of the metric in the results, with or without the split before it.
    """
    last = metric.rpartition("_")[2]
    return last in LOWER if last in (*LOWER, *HIGHER) else None
