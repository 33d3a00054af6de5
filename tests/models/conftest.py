"""What several tests of models need."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fairseq.modules import multihead_attention
from torch import Tensor, nn


class FakeAttention(nn.Module):
    """Stands for an xFormers attention, to be built with the right settings by both models."""

    requires_head_dimension = supports_attention_mask = supports_key_padding_mask = False
    requires_separate_masks = True

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.factor = config["num_heads"] + config["dropout"]

    def forward(self, q: Tensor, k: Tensor, v: Tensor, **masks: Tensor) -> Tensor:
        return q * self.factor


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    """What some options take and this machine may not have: xFormers, and a GPU for scalar quantization."""
    monkeypatch.setattr(Tensor, "cuda", lambda tensor: tensor)
    monkeypatch.setattr(multihead_attention, "_xformers_available", True)
    monkeypatch.setattr(multihead_attention, "build_attention", FakeAttention, raising=False)


@pytest.fixture
def exact_softmax(monkeypatch: pytest.MonkeyPatch) -> None:
    """fairseq's softmax is float32 whatever its input; here float64 stays float64, so that rounding is all there is."""

    def softmax(x: Tensor, dim: int, onnx_trace: bool = False) -> Tensor:
        return torch.softmax(x, dim)

    monkeypatch.setattr("fairseq.utils.softmax", softmax)
