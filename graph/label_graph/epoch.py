"""One pass over numbered samples: with steps of the optimiser, or for the metrics."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fairseq_ext.training.loop import finite
from graph.label_graph.classifier import Classifier
from graph.label_graph.encoder import States
from graph.label_graph.label_graph import label_graph_loss
from graph.label_graph.metrics import f1_by_label, multilabel_metrics, tune_threshold
from graph.label_graph.text import WordIds

__all__ = ["ADVICE", "score", "train_epoch", "validate"]

ADVICE = "lower --lr or --ratio2, or leave out --no-soft-target-clip"
"""What to do about a training that diverges."""


def train_epoch(
    classifier: Classifier, optimizer: torch.optim.Optimizer, texts: WordIds | States, gold: Tensor
) -> float:
    """Train for one pass over the samples in random order; returns the mean loss."""
    network, options = classifier.network.train(), classifier.options
    device = network.output.weight.device
    graph = network.label_graph.weight if network.label_graph else torch.eye(gold.size(1), device=device)
    total = torch.zeros((), device=device)
    for batch in torch.randperm(len(texts)).split(options.batch_size):
        loss = label_graph_loss(
            network(texts[batch].to(device)),
            gold[batch].to(device),
            graph,
            ratio1=options.ratio1 if options.arm == "soft" else 0.0,
            ratio2=options.ratio2,
            temperature=options.temperature,
            stop_gradient=not options.no_stop_gradient,
            soft_target_clip=not options.no_soft_target_clip,
            loss=options.loss,
            log_end=options.log_end,
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.detach() * len(batch)
    return float(total) / len(texts)


def validate(classifier: Classifier, texts: WordIds | States, gold: Tensor, tune: bool = False) -> dict[str, float]:
    """Metrics at the classifier's threshold; with ``tune`` the threshold is first set to the best for these samples.

    Raises:
        OptionError: probabilities that are not finite.
    """
    probabilities = finite(classifier.probabilities(texts), ADVICE)
    if tune:
        classifier.threshold = tune_threshold(probabilities, gold)
    return multilabel_metrics(probabilities, gold, classifier.threshold)


def score(classifier: Classifier, texts: WordIds | States, gold: Tensor) -> dict[str, Any]:
    """Metrics at the classifier's threshold, and ``f1_by_label``.

    Raises:
        OptionError: probabilities that are not finite.
    """
    probabilities, threshold = finite(classifier.probabilities(texts), ADVICE), classifier.threshold
    of_labels = f1_by_label(probabilities, gold, threshold)
    return {
        **multilabel_metrics(probabilities, gold, threshold),
        "f1_by_label": dict(zip(classifier.labels, of_labels, strict=True)),
    }
