"""Training with cross-entropy or encouraging loss: one run, and all runs of an experiment."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch_geometric import seed_everything
from torch_geometric.data import Dataset
from torch_geometric.loader import DataLoader

from fairseq_ext.training.board import log_test
from fairseq_ext.training.checkpoint import BestWeights, RandomState
from fairseq_ext.training.errors import DataError
from fairseq_ext.training.loop import Training
from fairseq_ext.training.runs import Experiment, torch_device
from fairseq_ext.training.settings import Settings
from graph.graph_classification.data import dataset_digest, load_dataset
from graph.graph_classification.epoch import evaluate, train_epoch
from graph.graph_classification.loss import bonus_epochs, make_loss
from graph.graph_classification.model import SAGPoolClassifier
from graph.graph_classification.options import Options
from graph.graph_classification.splits import Protocol, Split, class_labels

__all__ = ["PROTOCOL", "run", "spread_of_repeats", "train"]

PROTOCOL = ("folds", "runs", "repeats", "seed")
"""Options that the splits depend on."""


def train(
    dataset: Dataset,
    split: Split,
    options: Options,
    *,
    folder: str | Path | None = None,
    graphs: str = "",
    device: str | torch.device = "cpu",
) -> tuple[SAGPoolClassifier, dict[str, Any]]:
    """Train on one split, and test the weights of the epoch with the best validation accuracy, the first of several.

    Args:
        dataset: graphs with features ``x`` and one class ``y`` each, a whole number of any type.
        split: the graphs of each part by number or as a mask, and the seed of the run.
        options: everything else.
        folder: gets ``checkpoint.pt`` and TensorBoard's file. A training that was killed is resumed from there, and
            ends as an uninterrupted one, to the bit on a CPU. Default: nothing is kept.
        graphs: the :func:`~graph.graph_classification.data.dataset_digest` of ``dataset``. Default: it is computed.
        device: where to train. Default: the CPU.

    Returns:
        The model of the best epoch, and a record: ``test_accuracy``, ``test_balanced_accuracy`` and ``test_roc_auc``
        (see :func:`~graph.metrics.classification_metrics`); ``valid_accuracy``; ``best_epoch``, counted from 1; the
        number of ``epochs``, and of ``bonus_epochs`` among them; and the ``history`` of all epochs.

    Raises:
        CheckpointError: the checkpoint is damaged, or cannot be written; this is found before the first step.
        DataError: a graph without exactly one class ``y``, graphs without features, or a split that does not fit them.
        OptionError: loss or logits are not finite, or the checkpoint is of another split, data set or options.
    """
    if not dataset.num_features:
        raise DataError("dataset: the graphs have no features x; CappedDegree gives them some")
    num_classes, split = int(class_labels(dataset).max()) + 1, split.checked(len(dataset))
    settings = None
    if folder is not None:
        inputs = {"graphs": graphs or dataset_digest(dataset), "split": split.digest}
        settings = Settings.of(options, inputs=inputs)

    seed_everything(split.seed)
    model = SAGPoolClassifier(
        dataset.num_features, num_classes, options.hidden_size, options.num_layers, options.ratio, options.dropout
    ).to(device)
    optimizer = torch.optim.Adam(model.parameters(), options.lr, weight_decay=options.weight_decay)
    criterion, best = make_loss(options), BestWeights(model)
    batches = DataLoader(dataset[split.train], options.batch_size, shuffle=True)
    valid, test = (
        [data.to(device) for data in DataLoader(dataset[part], options.batch_size)]
        for part in (split.valid, split.test)
    )

    training = Training(
        options.epochs,
        unit="epoch",
        select="accuracy",
        patience=options.patience,
        folder=folder,
        settings=settings,
        parts={"model": model, "optimizer": optimizer, "best": best, "random": RandomState()},
        name=split.name,
    )
    for epoch in training:
        criterion.set_epoch(epoch)
        training.log(loss=train_epoch(model, batches, criterion, optimizer))
        if training.improved(evaluate(model, valid)):
            best.keep()

    best.restore()
    metrics = {f"test_{name}": value for name, value in evaluate(model, test).items()}
    log_test(metrics, training.best_step)
    return model, {**metrics, "bonus_epochs": bonus_epochs(options, training.step), **training.record()}


def run(options: Options, protocol: Protocol) -> Experiment:
    """Train on every split of ``protocol`` that its folder does not hold yet."""
    device = torch_device(protocol.device)
    dataset = load_dataset(options.root, options.dataset, options.use_node_attr)
    splits, graphs = protocol.splits(dataset.y), dataset_digest(dataset)
    folder = Path(protocol.out or f"runs/graph_classification/{options.dataset}-{options.loss}")
    numbers = {name: getattr(protocol, name) for name in PROTOCOL}
    settings = Settings.of(options, inputs={"graphs": graphs}, **numbers)

    def one(split: Split) -> dict[str, Any]:
        _, record = train(dataset, split, options, folder=folder / split.name, graphs=graphs, device=device)
        return record

    experiment = Experiment(folder, settings, ("torch-geometric", "scikit-learn"), device=device)
    return experiment.complete({split.name: partial(one, split) for split in splits})


def spread_of_repeats(runs: Mapping[str, Mapping[str, Any]]) -> float:
    """Standard deviation of the repeats' mean test accuracies.

    We take the published ``±`` to mean this; the paper does not define it.

    Args:
        runs: results of the runs by name, such as ``repeat0-run3`` or ``repeat0-fold3``.
    """
    repeats: dict[str, list[float]] = {}
    for name, run in runs.items():
        repeats.setdefault(name.split("-")[0], []).append(run["test_accuracy"])
    return statistics.pstdev(statistics.fmean(accuracies) for accuracies in repeats.values())
