"""Checks of masks."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["check_mask"]


def check_mask(name: str, mask: Tensor, added: bool = False) -> None:
    """Refuse a mask of zeros and ones: added to scores it would hide nothing, and nothing says which of the two hides.

    Args:
        name: of the argument.
        mask: the argument.
        added: whether floating-point masks are taken, to be added to scores.
    """
    if mask.dtype == torch.bool or (added and mask.is_floating_point()):
        return
    allowed = "boolean, or floating-point and added to the scores" if added else "boolean"
    raise ValueError(f"{name} must be {allowed}, got {mask.dtype}; a mask of 0 and 1 is made boolean by .bool()")
