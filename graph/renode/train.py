"""Full-batch training for node classification, with and without ReNode, over several splits and initialisations."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric import seed_everything
from torch_geometric.data import Data

from fairseq_ext.training.board import log_test
from fairseq_ext.training.checkpoint import BestWeights
from fairseq_ext.training.errors import OptionError
from fairseq_ext.training.loop import Training, finite
from fairseq_ext.training.modes import evaluating
from fairseq_ext.training.runs import Experiment, torch_device
from fairseq_ext.training.settings import Settings
from graph.inputs import as_labels, as_weights
from graph.metrics import classification_metrics
from graph.remembered import Remembered
from graph.renode.data import graph_digest
from graph.renode.losses import Loss
from graph.renode.metrics import f1, f1_scores
from graph.renode.options import TrainOptions, TrainRuns
from graph.renode.ppnp import dense_pagerank
from graph.renode.recipe import Recipe
from graph.renode.score import scored
from graph.renode.splits import Split, count_splits
from graph.renode.totoro import dataset_totoro

__all__ = ["fit", "predict", "run"]


def fit(
    model: nn.Module,
    data: Data,
    split: Split,
    loss: Loss,
    weight: Tensor | None = None,
    recipe: Recipe | None = None,
) -> dict[str, Any]:
    """Train on the whole graph and leave ``model`` at the epoch of the best weighted F1 on the validation nodes.

    Args:
        model: called with ``(data.x, data.edge_index)``.
        data: the whole graph, with features and classes.
        split: the nodes of each part.
        loss: called with the logits and labels of the labelled nodes, and with ``weight``.
        weight: weight of each node of ``split.train``, in the same order. Default: None, all weigh the same.
        recipe: how to train. Default: as released.

    Returns:
        ``valid_f1``, ``best_epoch``, ``epochs``, ``seconds_per_epoch`` and ``history``.

    Raises:
        OptionError: the model does not give a row of logits for each node, or loss or logits are not finite.
        DataError: a weight is 0: its node was not labelled when the weights were made.
    """
    recipe = recipe or Recipe()
    y = as_labels(data.y, name="data.y").to(data.x.device)
    if weight is not None:
        weight = as_weights(weight, len(split.train)).to(y.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, recipe.lr_factor)
    best, advice = BestWeights(model), f"lower --lr {recipe.lr}"
    training = Training(
        recipe.epochs,
        unit="epoch",
        select="f1",
        # As released, a training ends once it has passed both limits.
        patience=recipe.patience + 1,
        least=recipe.least_epochs + 1,
        advice=advice,
    )
    for _ in training:
        logits = model.train()(data.x, data.edge_index)
        if logits.shape[:1] != y.shape:
            raise OptionError(
                f"--backbone: gives {tuple(logits.shape)}, not a row of logits for each of {len(y)} nodes"
            )
        value = loss(logits[split.train], y[split.train], weight)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        scheduler.step()
        training.log(loss=value)
        logits = finite(predict(model, data)[split.valid], advice)
        if training.improved({"f1": f1(y[split.valid].cpu(), logits.argmax(1).cpu())}):
            best.keep()
    best.restore()
    return training.record()


@torch.no_grad()
def predict(model: nn.Module, data: Data) -> Tensor:
    """The logits of all nodes."""
    with evaluating(model):
        return model(data.x, data.edge_index)


def run(options: TrainOptions, runs: TrainRuns | None = None) -> Experiment:
    """Train on every split with every initialisation that the folder of ``runs`` does not hold yet.

    Returns:
        For each run F1 and :func:`~graph.metrics.classification_metrics` of the test nodes, the figures that
        :func:`fit` returns and, with ReNode, the Totoro score of the split.

    Raises:
        InputError: options or data cannot be used; this is found before anything is written.
    """
    runs, transform = runs or TrainRuns(), options.make_transform()
    data = options.load(normalize_features=options.normalize_features)
    options = options.with_kind(options.dataset, data)
    classes = int(data.y.max()) + 1
    device = torch_device(runs.device)
    on_device = copy.copy(data).to(device)
    runs = replace(runs, splits=count_splits(data, options.split_kind, runs.splits))
    splits = [options.make_split(data, seed) for seed in range(runs.splits)]
    counts = [torch.bincount(data.y[split.train], minlength=classes) for split in splits]
    if all(len(count.unique()) == 1 for count in counts):
        options.refuse_weights_of_classes()

    matrix = Remembered(dense_pagerank)  # ppnp's: one for all runs

    @Remembered  # one for all runs of a split
    def weights(split: int) -> tuple[Tensor | None, dict[str, float]]:
        if options.renode == "off":
            return None, {}
        contested = scored(data, splits[split].train, transform)
        return contested.renode_weight[splits[split].train], {"totoro": dataset_totoro(contested.totoro)}

    def train_run(split: int, init: int) -> dict[str, Any]:
        weight, conflict = weights(split)
        seed_everything(init)
        model = options.make_model(data.num_features, classes, options.alpha, matrix).to(device)
        record = fit(model, on_device, splits[split], options.make_loss(counts[split]), weight, options)
        test = splits[split].test
        logits, y = finite(predict(model, on_device)[test], f"lower --lr {options.lr}"), on_device.y[test]
        metrics = f1_scores(y.cpu(), logits.argmax(1).cpu()) | classification_metrics(logits, y)
        log_test(metrics, record["best_epoch"])
        return {**metrics, **conflict, **record}

    # Model and loss are made once here, so that wrong options are refused before anything is written.
    options.make_model(data.num_features, classes, options.alpha)
    options.make_loss(counts[0])
    settings = Settings.of(options, inputs={"graph": graph_digest(data)})
    experiment = Experiment(runs.out, settings, ("torch-geometric", "scikit-learn"), device=device)
    return experiment.complete({name: partial(train_run, **seeds) for name, seeds in runs.seeds.items()})
