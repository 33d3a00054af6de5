"""Guided alignment: every option trains with fairseq's criterion, or is refused by name."""

from __future__ import annotations

import argparse
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fairseq.criterions.label_smoothed_cross_entropy_with_alignment import (
    LabelSmoothedCrossEntropyCriterionWithAlignment,
)
from torch import nn

from fairseq_ext.models import TransformerExtModel
from fairseq_ext.models.ext_options import ExtOptions
from fairseq_ext.modules.cross_view import FUSIONS
from fairseq_ext.training.errors import OptionError
from fairseq_ext.training.options import flag
from tests.models.test_every_option import PRE_NORM, ROWS
from tests.models.tiny import EOS, PAD, task, translation_config

SOURCE = torch.tensor([[5, 6, 7, 8, EOS], [PAD, 9, 10, 11, EOS]])
TARGET = torch.tensor([[6, 7, 8, 9, EOS], [10, 11, 4, EOS, PAD]])
PREVIOUS = torch.tensor([[EOS, 6, 7, 8, 9], [EOS, 10, 11, 4, EOS]])
# source and target positions in the batch laid flat, and 1 / links of the target word
LINKS = torch.tensor([[0, 0], [1, 1], [3, 2], [1, 5], [3, 6]])
SAMPLE = {
    "net_input": {"src_tokens": SOURCE, "src_lengths": SOURCE.ne(PAD).sum(-1), "prev_output_tokens": PREVIOUS},
    "target": TARGET,
    "ntokens": 9,
    "alignments": LINKS,
    "align_weights": torch.ones(len(LINKS)),
}
SELF_ATTENTION = "encoder-self,decoder-self"


def build(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    aligning = SimpleNamespace(**vars(task()), cfg=argparse.Namespace(load_alignments=True))
    return TransformerExtModel.build_model(translation_config(layers=2, **options), aligning)


def assert_aligns(model: nn.Module) -> None:
    criterion = LabelSmoothedCrossEntropyCriterionWithAlignment(task(), False, 0.1, alignment_lambda=1.0)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss, _, log = criterion(model.train(), SAMPLE)
        loss.backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
        losses.append(log["alignment_loss"])
    assert losses[-1] < 0.95 * losses[0], losses


def cases() -> dict[str, dict[str, Any]]:
    """Every option at a value that is not its default, and every choice of those that read the encoder."""
    values = {name: {**row.beside, name: row.value} for name, row in ROWS.items() if row.translation}
    values["muse_kernels"] = {"block": "muse", "muse_kernels": "3/5,7"}
    for name in ("block", "norm", "cross_view", "attention_normalizer"):
        metadata = ExtOptions.__dataclass_fields__[name].metadata
        values |= {f"{name}-{choice}": {name: choice} for choice in metadata["choices"]}
    values |= {f"{fusion}": {"cross_view": "gca", "cross_view_fusion": fusion} for fusion in FUSIONS}
    combined = {"block": "muse", "norm": "adanorm", "cross_view": "gca", "attention_topk": 2, **PRE_NORM}
    return {**values, "all": {**combined, "attention_topk_in": SELF_ATTENTION}}


def drops_keys(options: dict[str, Any]) -> str | None:
    """The option that drops keys of cross-attention."""
    for name, off in {"attention_topk": 0, "attention_topk_ratio": 0, "attention_normalizer": "softmax"}.items():
        if options.get(name, off) != off and "cross" in options.get("attention_topk_in", ExtOptions.attention_topk_in):
            return name
    return None


@pytest.mark.parametrize("case", cases())
def test_trains_or_is_refused_by_name(case: str) -> None:
    options = cases()[case]
    dropping = drops_keys(options)
    if dropping is None:
        assert_aligns(build(**options))
        return
    message = rf"^--load-alignments: excludes {flag(dropping)} \S+ in .*--attention-topk-in {SELF_ATTENTION} "
    with pytest.raises(OptionError, match=message):
        build(**options)
    # the way out that the message tells
    assert_aligns(build(**{**options, "attention_topk_in": SELF_ATTENTION}))


def test_both_outcomes_occur() -> None:
    refused = [case for case, options in cases().items() if drops_keys(options)]
    assert {"attention_topk", "attention_topk_ratio", "attention_normalizer-sparsemax"} < set(refused)
    assert len(refused) < len(cases()) / 2


def test_without_cross_attention_there_is_nothing_to_align() -> None:
    with pytest.raises(OptionError, match=r"^--load-alignments: .* --no-cross-attention$"):
        build(no_cross_attention=True)


def test_without_alignments_nothing_is_refused() -> None:
    for options in ({"attention_topk": 2}, {"attention_normalizer": "entmax15"}, {"no_cross_attention": True}):
        TransformerExtModel.build_model(translation_config(**options), task())
