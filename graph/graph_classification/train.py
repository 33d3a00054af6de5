"""Training with cross-entropy or encouraging loss: one run, and all runs of an experiment."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric import seed_everything
from torch_geometric.data import Data, Dataset
from torch_geometric.loader import DataLoader
from tqdm import tqdm

from fairseq_ext.losses import EncouragingLoss
from fairseq_ext.training.checkpoint import Checkpoint, RandomState
from fairseq_ext.training.errors import DataError, OptionError
from fairseq_ext.training.options import OptionSet, option
from fairseq_ext.training.runs import Experiment
from fairseq_ext.training.settings import Settings
from graph.metrics import classification_metrics

from .data import dataset_digest
from .model import SAGPoolClassifier
from .splits import Split, class_labels

__all__ = ["DEFER_START", "LOSSES", "Options", "make_loss", "predict", "train_all", "train_run"]

LOSSES = ("encouraging", "cross-entropy")
# The published last epochs, counted from 0, without the bonus.
DEFER_START = {"PROTEINS": 25, "NCI1": 130}


@dataclass(frozen=True, kw_only=True)
class Options(OptionSet):
    """What a run depends on beside its split; each field is an option of the command line.

    Raises:
        OptionError: a value out of its range; the message names the option.
    """

    loss: str = option("encouraging", "training loss", LOSSES)
    log_end: float = option(0.5, "probability at which the bonus turns linear (paper: 0.5)", least=0, most=1)
    defer_start: int = option(
        25, "last epoch without bonus, counted from 0; -1: none; 130 for NCI1 by default (paper: the same)", least=-1
    )
    hidden_channels: int = option(128, "width of the GCN layers (paper: 128)", least=2)
    num_layers: int = option(3, "GCN layers, each with its pooling (paper: 3)", least=1)
    ratio: float = option(0.5, "share of the nodes that a pooling keeps (paper: 0.5)", above=0, most=1)
    dropout: float = option(0.5, "dropout in the MLP (paper: 0.5)", least=0, below=1)
    learning_rate: float = option(5e-4, "of Adam (paper: 0.0005)", above=0)
    weight_decay: float = option(1e-4, "of Adam (paper: 0.0001)", least=0)
    batch_size: int = option(128, "graphs in a step (paper: 128)", least=1)
    patience: int = option(50, "stop after this many epochs without a better validation accuracy (paper: 50)", least=1)
    max_epochs: int = option(1000, "stop here at the latest", least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loss != "encouraging":
            self.refuse_idle(f"with --loss {self.loss}", "log_end", "defer_start")
        elif self.max_epochs < self.defer_start + 2:
            raise OptionError(
                f"--loss encouraging: has no effect with --max-epochs {self.max_epochs}, as the bonus starts after "
                f"epoch {self.defer_start}, counted from 0 (--defer-start)"
            )


def make_loss(options: Options) -> EncouragingLoss:
    """The loss; ``set_epoch`` takes epochs counted from 1.

    Cross-entropy is encouraging loss with a bonus of weight 0, so that two runs of one seed are equal to the bit until
    the bonus starts.
    """
    bonus_weight = 1.0 if options.loss == "encouraging" else 0.0
    return EncouragingLoss(log_end=options.log_end, defer_start=options.defer_start + 1, bonus_weight=bonus_weight)


def logits_of(model: nn.Module, data: Data) -> Tensor:
    """Logits of a batch of graphs, whose features may be whole numbers."""
    x = data.x.to(next(model.parameters()).dtype)
    return model(x, data.edge_index, data.batch, data.num_graphs)


def classes_of(data: Data) -> Tensor:
    """The class of each graph of a batch, whatever the shape and type of ``y``."""
    return data.y.view(-1).long()


@torch.no_grad()
def predict(model: nn.Module, batches: Iterable[Data]) -> tuple[Tensor, Tensor]:
    """Logits and class of all graphs of ``batches``, on the CPU."""
    model.eval()
    found = [(logits_of(model, data), classes_of(data)) for data in batches]
    logits, labels = (torch.cat(part).cpu() for part in zip(*found, strict=True))
    return logits, labels


def train_epoch(
    model: nn.Module, batches: Iterable[Data], criterion: nn.Module, optimizer: torch.optim.Optimizer
) -> float:
    """One pass over ``batches``; returns the mean loss of its steps."""
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


def train_run(
    dataset: Dataset,
    split: Split,
    options: Options,
    *,
    device: str | torch.device = "cpu",
    checkpoint: str | Path | None = None,
    on_epoch: Callable[[int, float], None] | None = None,
) -> tuple[SAGPoolClassifier, dict[str, float | None]]:
    """Train on one split, and test the weights of the first epoch with the best validation accuracy.

    Args:
        dataset: graphs with features ``x`` and one class ``y`` each, a whole number of any type.
        split: the graphs of each part by number or as a mask, and the seed of the run.
        options: everything else.
        device: where to train.
        checkpoint: a file that every epoch replaces. Where it is there already, training goes on from it and ends, to
            the bit, where it would have ended without a break.
        on_epoch: called with the epoch, counted from 0, and its validation accuracy.

    Returns:
        The model of the best epoch, and ``test_accuracy``, ``test_balanced_accuracy`` and ``test_roc_auc`` (of
        :func:`~graph.metrics.classification_metrics`), ``valid_accuracy``, ``best_epoch`` (counted from 0), ``epochs``
        and, of these, ``bonus_epochs``.

    Raises:
        CheckpointError: a checkpoint that is damaged or cannot be written; the latter before the first step.
        DataError: a graph without one class ``y``, graphs without features, or a split that does not fit them.
        OptionError: a loss that is not finite; a checkpoint of another split, data set or options.
    """
    device, labels = torch.device(device), class_labels(dataset)
    if not dataset.num_features:
        raise DataError("dataset: the graphs have no features x; CappedDegree gives them some")
    split = split.checked(len(dataset))
    seed_everything(split.seed)
    model = SAGPoolClassifier(
        dataset.num_features,
        int(labels.max()) + 1,
        options.hidden_channels,
        options.num_layers,
        options.ratio,
        options.dropout,
    ).to(device)
    optimizer = torch.optim.Adam(model.parameters(), options.learning_rate, weight_decay=options.weight_decay)
    criterion = make_loss(options)
    train = DataLoader(dataset[split.train], options.batch_size, shuffle=True)
    valid, test = (
        [data.to(device) for data in DataLoader(dataset[part], options.batch_size)]
        for part in (split.valid, split.test)
    )

    parts = [part.tolist() for part in (split.train, split.valid, split.test)]
    inputs = {"graphs": dataset_digest(dataset)}
    run = Settings.of(options, inputs=inputs, split=[split.name, split.seed, *parts])
    progress: dict[str, Any] = {"epoch": -1, "best_epoch": -1, "best_accuracy": -1.0, "best_weights": {}}
    kept = None
    if checkpoint is not None:
        kept = Checkpoint(checkpoint, run, progress, model=model, optimizer=optimizer, random=RandomState())
        if not kept.restore():
            kept.prove()

    for epoch in range(progress["epoch"] + 1, options.max_epochs):
        if progress["epoch"] - progress["best_epoch"] >= options.patience:
            break
        progress["epoch"] = epoch
        criterion.set_epoch(epoch + 1)
        loss = train_epoch(model, train, criterion, optimizer)
        if not math.isfinite(loss):
            raise OptionError(f"--learning-rate: {options.learning_rate}: the loss is {loss} in epoch {epoch}")
        logits, labels = predict(model, valid)
        found = (logits.argmax(-1) == labels).double().mean().item()
        if found > progress["best_accuracy"]:
            weights = copy.deepcopy(model.state_dict())
            progress |= {"best_epoch": epoch, "best_accuracy": found, "best_weights": weights}
        if kept:
            kept.save()
        if on_epoch:
            on_epoch(epoch, found)

    model.load_state_dict(progress["best_weights"])
    epochs = progress["epoch"] + 1
    bonus_epochs = max(epochs - 1 - options.defer_start, 0) if options.loss == "encouraging" else 0
    return model, {
        **{f"test_{name}": value for name, value in classification_metrics(*predict(model, test)).items()},
        "valid_accuracy": progress["best_accuracy"],
        "best_epoch": progress["best_epoch"],
        "epochs": epochs,
        "bonus_epochs": bonus_epochs,
    }


def train_all(
    dataset: Dataset,
    splits: Iterable[Split],
    options: Options,
    experiment: Experiment,
    device: str | torch.device = "cpu",
) -> None:
    """Train on every split that ``experiment`` does not hold yet, with a progress bar on a terminal."""
    bar = tqdm([split for split in splits if split.name not in experiment.runs], unit="run", disable=None)

    def show(epoch: int, valid_accuracy: float) -> None:
        bar.set_postfix(epoch=epoch, valid=f"{valid_accuracy:.3f}")

    for split in bar:
        checkpoint = experiment.file.with_name(f"run{split.name.replace('/', '-')}.pt")
        _, result = train_run(dataset, split, options, device=device, checkpoint=checkpoint, on_epoch=show)
        experiment.add(split.name, result)
        checkpoint.unlink(missing_ok=True)
