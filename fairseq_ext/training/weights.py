"""Checks of loaded weights: a model whose weights are not finite would give scores without a word."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fairseq_ext.training.errors import CheckpointError, first_few

__all__ = ["check_finite"]


def check_finite(weights: Mapping[str, Any], origin: str | Path) -> None:
    """Refuse a model, with the statistics of its batch norms, some of whose weights are NaN or infinite.

    Args:
        weights: weights by name, such as a ``state_dict``; values that are no tensors are skipped.
        origin: the file or folder, for the message.

    Raises:
        CheckpointError: names the file and the first such weights.
    """
    damaged = [name for name, value in weights.items() if isinstance(value, Tensor) and not value.isfinite().all()]
    if damaged:
        raise CheckpointError(
            f"{origin}: its weights are not finite in {first_few(damaged)}: the file is damaged, or its training "
            "diverged"
        )
