"""One pass over batches of graphs: with steps of the optimiser, or for the metrics."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch_geometric.data import Data

from fairseq_ext.training.loop import finite
from fairseq_ext.training.modes import evaluating
from graph.graph_classification.model import logits_of
from graph.graph_classification.splits import classes_of
from graph.metrics import classification_metrics

__all__ = ["evaluate", "train_epoch"]


def train_epoch(
    model: nn.Module, batches: Iterable[Data], criterion: nn.Module, optimizer: torch.optim.Optimizer
) -> float:
    """Train by one step per batch; returns the mean loss of the steps."""
    model.train()
    device = next(model.parameters()).device
    losses = []
    for data in batches:
        data = data.to(device)
        optimizer.zero_grad()
        loss = criterion(logits_of(model, data), classes_of(data))
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses).mean().item()


@torch.no_grad()
def evaluate(model: nn.Module, batches: Iterable[Data]) -> dict[str, float | None]:
    """The :func:`~graph.metrics.classification_metrics` of all graphs of ``batches``.

    Raises:
        OptionError: logits that are not finite.
    """
    with evaluating(model):
        logits, labels = zip(*((logits_of(model, data), classes_of(data)) for data in batches), strict=True)
    return classification_metrics(finite(torch.cat(logits)), torch.cat(labels))
