"""The sweeps of ``tests/test_blocks.py`` over what the trainers of ``vision_language`` offer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.blocks import MAPPED, MAPPED_TWICE, SQUARED, WEIGHED, Block
from tests.test_blocks import HALF, assert_computed_in_float32, assert_empty, assert_no_nan
from vision_language import iais, image_classification, muka
from vision_language.image_classification import classifiers
from vision_language.image_classification.scores import OOD_SCORES

OTHERS = {
    "Attack": "foolbox's, on a model",
    "AttentionBlocks": "what attention_blocks returns",
    "IAISHook": "takes the states of a model to attention_blocks",
    "ImageClassifier": "a model; its last layers are here",
    "LabelUnion": "names of classes",
    "RegionRetriever": "a model",
    "active_dropout": "a context",
    "annealing": "a number of the step",
    "detection_metrics": "numbers of scores, in float64",
    "expected_calibration_error": "a number, in float64",
    "false_positive_rate": "numbers of scores, in float64",
    "group_metrics": "whole numbers",
    "load": "a folder",
    "long_tail_counts": "whole numbers",
    "long_tail_subset": "whole numbers",
    "recall_at_k": "whole numbers",
    "union_of_labels": "names of classes",
    "vanishing_gradients": "of a model, in whose dtype it asks what rounds to 1",
}


class Attention(nn.Module):
    """A self-attention of two heads of width 4, over four words, then three regions."""

    num_attention_heads, attention_head_size = 2, 4

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, hidden: Tensor) -> tuple[Tensor, ...]:
        is_word = (torch.arange(7, device=hidden.device) < 4).expand(len(hidden), 7)
        return iais.attention_blocks(hidden, self, is_word, ~is_word, keep_scores=True)


def on_blocks(function: Any) -> Any:
    """``function`` of :class:`AttentionBlocks`, as one of tensors: maps of pairs of all words and regions, scores."""

    def call(ll: Tensor, vv: Tensor, lv: Tensor, vl: Tensor, **options: Any) -> Any:
        words, regions = (torch.full(x.shape[:1], x.size(1), device=x.device) for x in (ll, vv))
        scores = tuple(10 * x[:, None].float().expand(-1, 2, -1, -1) for x in (ll, vv))
        return function(iais.AttentionBlocks(ll, vv, lv, vl, words, regions, scores), **options)

    return call


class Features(nn.Module):
    """An amalgamation of a student's states with those of two teachers."""

    def __init__(self, block: type[nn.Module]) -> None:
        super().__init__()
        self.amalgamate = block(8, [8, 6])

    def forward(self, student: Tensor, first: Tensor, second: Tensor, mask: Tensor) -> Any:
        return self.amalgamate([student], [[first], [second]], mask)


class Dropped(nn.Linear):
    def __init__(self) -> None:
        super().__init__(6, 5)
        self.dropout = nn.Dropout(0.5)

    def forward(self, input_ids: Tensor) -> Tensor:
        return super().forward(self.dropout(input_ids))


def passes(input_ids: Tensor) -> Tensor:
    torch.manual_seed(0)
    model = Dropped().to(input_ids)
    return muka.mc_dropout_probabilities(model, {"input_ids": input_ids}, 3, seed=0)


def from_list(function: Any) -> Any:
    """A loss of a student's logits and those of two teachers."""
    return lambda student, *teachers, **options: function(student, list(teachers), **options)


def blocks() -> list[Block]:
    torch.manual_seed(0)
    draw = torch.randn
    maps = [draw(2, *size).softmax(-1) for size in ((4, 4), (3, 3), (4, 3), (3, 4))]
    ways = ({}, {"kind": "distributed"}, {"kind": "soft"}, {"pseudo_norm": "renorm"}, {"pseudo_norm": "softmax_scores"})
    items = (torch.tensor([[[1, 0, 0, 1], [0, 1, 1, 0]]] * 2), torch.tensor([[[1, 0, 0], [0, 1, 1]]] * 2))
    logits, teachers, classes = draw(4, 5), (draw(4, 3), draw(4, 2)), torch.tensor([0, 3, 4, 1])
    probabilities, scores = draw(3, 4, 5).softmax(-1), torch.rand(4, 2)
    score = torch.no_grad()(muka.teacher_scores)  # of constants, as the passes of Monte-Carlo dropout are
    tempered = {"temperature": 0.05}
    table = [
        Block("attention_blocks", Attention(), (draw(2, 7, 8),), largest=MAPPED),
        *(Block("iais_loss", on_blocks(iais.iais_loss), tuple(maps), way, kind="probabilities") for way in ways),
        *(
            Block("mirrored_maps", on_blocks(iais.mirrored_maps), tuple(maps), way, kind="probabilities")
            for way in ways
        ),
        Block("isd", on_blocks(iais.isd), tuple(maps), kind="probabilities"),
        *(
            Block("isd_annotated", iais.isd_annotated, (*maps[:2], *items), {"aggregation": how}, kind="probabilities")
            for how in ("mean", "sum", "max")
        ),
    ]
    table += [
        *(
            Block("amalgamation_targets", lambda a, b, s, **o: muka.amalgamation_targets([a, b], s, **o),
                  (*teachers, scores), options, largest=WEIGHED)
            for options in ({}, {"hard": True}, tempered)
        ),
        *(Block("ensemble_probabilities", lambda *t, **o: muka.ensemble_probabilities(t, **o), teachers, options,
                largest=WEIGHED) for options in ({}, tempered)),
        *(Block("teacher_scores", score, (probabilities,), {"kind": kind}, batch=1, kind="probabilities")
          for kind in muka.uncertainty.SCORES),
        Block("margin_weights", muka.margin_weights, (scores,), largest=WEIGHED),
        Block("amalgamation_loss", muka.amalgamation_loss, (logits, draw(4, 5).softmax(-1)), tempered, fixed=(1,),
              largest=WEIGHED),
        *(Block(loss, from_list(getattr(muka, loss)), (logits, *teachers), options, fixed=(1, 2), largest=WEIGHED)
          for loss in ("uhc_loss", "vanilla_kd_loss") for options in ({}, tempered)),
        Block("mc_dropout_probabilities", passes, (draw(4, 6),), largest=MAPPED),
        *(
            Block(block, Features(getattr(muka, block)),
                  (draw(4, 3, 8), draw(4, 3, 8), draw(4, 3, 6), torch.tensor([[1, 1, 0]] * 4)), largest=MAPPED_TWICE)
            for block in ("LayerwiseAmalgamation", "CommonFeatureLearning")
        ),
    ]  # fmt: skip
    margin = classifiers.LargeMarginLinear(5, 6, 3)
    table += [
        *(Block(name, getattr(image_classification, name), (logits, classes), largest=SQUARED)
          for name in ("log_odds", "margin")),
        *(Block("ood_scores", image_classification.ood_scores, (logits,), {"score": score}) for score in OOD_SCORES),
        Block("CosineLinear", classifiers.CosineLinear(5, 3), (logits,), largest=SQUARED),
        Block("LargeMarginLinear", margin, (logits, classes), largest=MAPPED),
    ]  # fmt: skip
    return table


BLOCKS = blocks()
IN_THEIR_OWN_DTYPE = (
    *("attention_blocks", "mc_dropout_probabilities", "LayerwiseAmalgamation", "CommonFeatureLearning"),
    *("CosineLinear", "LargeMarginLinear"),
)
"""They multiply with weights."""


def test_every_public_name_has_a_row() -> None:
    public = {*iais.__all__, *image_classification.__all__, *muka.__all__, *classifiers.__all__}
    assert {block.name for block in BLOCKS} | set(OTHERS) == public


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_half_precision_knows_no_nan(block: Block, dtype: torch.dtype) -> None:
    assert_no_nan(block, dtype)


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("block", [block for block in BLOCKS if block.name not in IN_THEIR_OWN_DTYPE], ids=str)
def test_half_precision_is_computed_in_float32(block: Block, dtype: torch.dtype) -> None:
    assert_computed_in_float32(block, dtype)


@pytest.mark.parametrize("block", [block for block in BLOCKS if "empty" not in block.unsupported], ids=str)
def test_no_examples_give_no_outputs(block: Block) -> None:
    assert_empty(block)
