"""The sweeps of ``tests/test_blocks.py`` over what the graph trainers offer: half precision, extreme and no inputs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from graph import label_graph, renode
from tests.blocks import MAPPED, Block
from tests.test_blocks import HALF, assert_computed_in_float32, assert_empty, assert_no_nan

OTHERS = {
    "HierarchicalAttentionNetwork": "a network of words",
    "PageRank": "of graphs, in float64",
    "ReNode": "of graphs, in float64",
    "class_influence": "of graphs, in float64",
    "dataset_totoro": "a sum of scores, in float64",
    "multilabel_metrics": "numbers of scores, in float64",
    "neighbor_conflict": "of whole numbers",
    "personalized_pagerank": "of graphs, in float64",
    "push_pagerank": "of graphs, in float64",
    "renode_loss": "of graphs",
    "totoro": "of graphs, in float64",
    "totoro_from_rows": "of rows of graphs, in float64",
    "tune_threshold": "numbers of scores, in float64",
}


def graph_of(position: str) -> label_graph.LabelGraph:
    graph = label_graph.LabelGraph(5, position)
    with torch.no_grad():
        graph.weight.add_(0.1 * torch.randn(5, 5)).clamp_(0, 1)
    return graph


def blocks() -> list[Block]:
    torch.manual_seed(0)
    gold = torch.tensor([[0, 1, 1, 0, 1]]).repeat(4, 1)
    graph = torch.eye(5) + (8 * torch.randn(5, 5)).round() / 64  # exact in every dtype
    logits = torch.randn(4, 5)

    def targets(graph: Tensor, **options: float) -> Tensor:
        return label_graph.soft_targets(gold, graph, stop_gradient=False, **options)

    def loss(logits: Tensor, **options: float | str) -> Tensor:
        return label_graph.label_graph_loss(logits, gold[: len(logits)], graph.to(logits.dtype), **options)

    def terms(logits: Tensor, graph: Tensor) -> tuple[Tensor, ...]:
        return label_graph.label_graph_loss_terms(logits, gold, graph, stop_gradient=False)

    no_examples = {"empty": "the graph has no examples"}
    return [
        Block("AttentionPooling", label_graph.AttentionPooling(5, 3), (torch.randn(4, 6, 5),), largest=MAPPED),
        *(
            Block("LabelGraph", graph_of(position), (logits,), largest=MAPPED)
            for position in label_graph.label_graph.POSITIONS
        ),
        *(
            Block("soft_targets", targets, (graph,), options, largest=MAPPED, unsupported=no_examples)
            for options in ({}, {"temperature": 0.1}, {"clip": True})
        ),
        *(
            Block("label_graph_loss", loss, (logits,), options, largest=MAPPED)
            for options in ({"ratio2": 0.1}, {"temperature": 2.0, "loss": "encouraging"}, {"loss": "halted-focal"})
        ),
        Block("label_graph_loss_terms", terms, (logits, graph), largest=MAPPED, unsupported=no_examples),
        Block("renode_weights", renode.renode_weights, (torch.rand(6),), unsupported={"empty": "is refused"}),
    ]


BLOCKS = blocks()


def test_every_public_name_has_a_row() -> None:
    assert {block.name for block in BLOCKS} | set(OTHERS) == {*label_graph.__all__, *renode.__all__}


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_half_precision_knows_no_nan(block: Block, dtype: torch.dtype) -> None:
    assert_no_nan(block, dtype)


# They multiply with weights; of scores of half precision the ranks count.
IN_ITS_OWN_DTYPE = "AttentionPooling", "LabelGraph-5, position='scores'", "renode_weights"


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("block", [x for x in BLOCKS if not str(x).startswith(IN_ITS_OWN_DTYPE)], ids=str)
def test_half_precision_is_computed_in_float32(block: Block, dtype: torch.dtype) -> None:
    assert_computed_in_float32(block, dtype)


@pytest.mark.parametrize("block", [block for block in BLOCKS if "empty" not in block.unsupported], ids=str)
def test_no_examples_give_no_outputs(block: Block) -> None:
    assert_empty(block)
