"""Claim: the label graph and soft training cost nothing beside the network that they stand on."""

from __future__ import annotations

from collections.abc import Callable

import torch

from benchmarks.timing import Row, generator, time_row
from graph.label_graph import HierarchicalAttentionNetwork, LabelGraph, label_graph_loss

LABELS, REVIEWS, WORDS, VOCABULARY = 22, 40, 20, 20_000  # the music data's
SAMPLES = 16
WORDS_PER_REVIEW = 12


def albums(quick: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and labels of a batch with the music data's sizes; reviews of about 12 words."""
    samples, reviews = (2, 4) if quick else (SAMPLES, REVIEWS)
    random = generator(1)
    ids = torch.randint(1, VOCABULARY, (samples, reviews, WORDS), generator=random)
    lengths = torch.randint(2 * WORDS_PER_REVIEW - WORDS, WORDS + 1, (samples, reviews, 1), generator=random)
    gold = (torch.rand(samples, LABELS, generator=random) < 0.1).float()
    return ids.masked_fill(torch.arange(WORDS) >= lengths, 0), gold


def train_step(quick: bool, graph: LabelGraph | None, ratio1: float) -> Callable[[], None]:
    """Forward, loss, backward, Adam."""
    torch.manual_seed(0)
    ids, gold = albums(quick)
    vectors = torch.randn(VOCABULARY, 100)  # constants, as the paper's
    network = HierarchicalAttentionNetwork(VOCABULARY, LABELS, vectors=vectors, label_graph=graph)
    optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=1e-5)
    weight = torch.eye(LABELS) if graph is None else graph.weight

    def step() -> None:
        label_graph_loss(network(ids), gold, weight, ratio1=ratio1).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def run(quick: bool) -> list[Row]:
    cases = (
        ("label graph / none", LabelGraph(LABELS), 0.0),
        ("label graph and soft training / none", LabelGraph(LABELS), 1.0),
        ("label graph on probabilities / none", LabelGraph(LABELS, "probabilities"), 0.0),
    )
    size = "2 samples of 4" if quick else f"{SAMPLES} samples of {REVIEWS}"
    return [
        time_row(
            f"train step, {name}, {size} reviews",
            train_step(quick, graph, ratio1),
            train_step(quick, None, 0.0),
            pairs=1 if quick else 9,
            target=1.05,
        )
        for name, graph, ratio1 in cases
    ]
