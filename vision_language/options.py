"""The options that trainings of Hugging Face models share."""

from __future__ import annotations

from dataclasses import dataclass

from fairseq_ext.training.flags import PRECISIONS, Precision
from fairseq_ext.training.options import option

__all__ = ["ComputeOptions"]


@dataclass(frozen=True, kw_only=True)
class ComputeOptions(Precision):
    """How the forward pass is computed."""

    mixed_precision: str = option("no", "number format of the forward pass (released: fp16)", PRECISIONS)
    attn_implementation: str = option(
        "auto",
        "self-attention in training; auto: sdpa where the model has it; eager is faster in bf16 on a CPU",
        ("auto", "sdpa", "eager"),
    )
