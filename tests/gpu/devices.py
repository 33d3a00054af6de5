"""The device of a GPU test, and how its numbers are compared with the CPU's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

# Of the largest number of a tensor. Half precision rounds what is in between, too, so that errors are some roundings.
TOLERANCE = {torch.float32: 2e-5, torch.float16: 1e-2, torch.bfloat16: 6e-2}


@dataclass(frozen=True)
class Device:
    """Where a GPU test computes.

    Args:
        dry_run: on the CPU, so that the test itself is tested where there is no GPU.
    """

    dry_run: bool = False

    @property
    def name(self) -> str:
        return "cpu" if self.dry_run else "cuda"

    @property
    def flags(self) -> list[str]:
        """What a fairseq command needs to compute there."""
        return ["--cpu"] if self.dry_run else []

    def put(self, values: Any, dtype: torch.dtype | None = None) -> Any:
        """Every tensor there; the floating-point ones in ``dtype``."""

        def one(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            return value.to(self.name, dtype if value.is_floating_point() else None)

        return tree_map(one, values)


def distance(got: Any, expected: Any) -> float:
    """Length of the difference of all tensors together, in parts of the length of ``expected``."""
    one, other = (
        torch.cat([x.detach().double().cpu().flatten() for x in tree_leaves(side)]) for side in (got, expected)
    )
    return ((one - other).norm() / other.norm()).item()


def assert_near(got: Any, expected: Any, dtype: torch.dtype) -> None:
    """Equal within the roundings of ``dtype``, relative to the largest number of each tensor."""
    got, expected = tree_leaves(got), tree_leaves(expected)
    assert len(got) == len(expected)
    for number, (one, other) in enumerate(zip(got, expected, strict=True)):
        assert isinstance(one, Tensor) == isinstance(other, Tensor)
        if not isinstance(one, Tensor):
            continue
        assert one.shape == other.shape
        one, other = one.detach().double().cpu(), other.detach().double().cpu()
        largest = other.abs().max().item() if other.numel() else 0.0
        atol = TOLERANCE[dtype] * max(largest, 1e-3)
        torch.testing.assert_close(one, other, rtol=0, atol=atol, msg=lambda text, n=number: f"tensor {n}: {text}")
