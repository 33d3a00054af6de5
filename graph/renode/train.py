"""Full-batch training for node classification, with and without ReNode, over several splits and initialisations."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from numpy.typing import ArrayLike
from sklearn.metrics import f1_score
from torch import Tensor, nn
from torch_geometric import seed_everything
from torch_geometric.data import Data
from tqdm import tqdm

from fairseq_ext.training.errors import OptionError
from fairseq_ext.training.runs import Experiment, torch_device
from fairseq_ext.training.settings import Settings, digest
from graph.metrics import classification_metrics
from graph.renode.data import load_graph
from graph.renode.inputs import as_labels, as_weights
from graph.renode.model import build_model
from graph.renode.options import Recipe, TrainOptions
from graph.renode.score import renode_transform, scored
from graph.renode.splits import Split, count_splits, make_split
from graph.renode.totoro import dataset_totoro

__all__ = ["Fit", "f1", "fit", "run", "train_once"]


@dataclass
class Fit:
    """The best epoch of a training: what ``model`` holds at the end of :func:`fit`."""

    logits: Tensor
    valid_f1: float
    best_epoch: int
    epochs: int


def f1(truth: ArrayLike, predicted: ArrayLike, average: str = "weighted") -> float:
    """F1 as the mean over the classes, weighted by their sizes or (``macro``) not."""
    return float(f1_score(truth, predicted, average=average, zero_division=0))


def fit(
    model: nn.Module,
    data: Data,
    split: Split,
    loss: Callable[[Tensor, Tensor, Tensor | None], Tensor],
    weight: Tensor | None = None,
    recipe: Recipe | None = None,
) -> Fit:
    """Train on the whole graph and leave ``model`` at the epoch of the best weighted F1 on the validation nodes.

    Args:
        model: called with ``(data.x, data.edge_index)``.
        loss: called with the logits and labels of the labelled nodes, and with ``weight``.
        weight: of each node of ``split.train``, in its order; None weights all alike.

    Raises:
        OptionError: the model does not give a row of logits for each node, or the loss is not finite.
        DataError: a weight that is 0: that of a node which was not labelled when the weights were made.
    """
    recipe = recipe or Recipe()
    y = as_labels(data.y, name="data.y").to(data.x.device)
    truth = y[split.valid].cpu()
    if weight is not None:
        weight = as_weights(weight, len(split.train)).to(y.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, recipe.lr_factor)
    best, best_state = Fit(data.x, -1.0, 0, 0), {}
    for epoch in range(1, recipe.epochs + 1):
        model.train()
        logits = model(data.x, data.edge_index)
        if logits.shape[:1] != y.shape:
            raise OptionError(f"--model: gives {tuple(logits.shape)}, not a row of logits for each of {len(y)} nodes")
        value = loss(logits[split.train], y[split.train], weight)
        if not math.isfinite(value.item()):
            raise OptionError(f"--lr {recipe.lr}: the loss is {value.item()} at epoch {epoch}")
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        scheduler.step()

        model.eval()
        with torch.no_grad():
            logits = model(data.x, data.edge_index)
        score = f1(truth, logits[split.valid].argmax(1).cpu())
        if score > best.valid_f1:
            best = Fit(logits, score, epoch, epoch)
            best_state = {name: value.clone() for name, value in model.state_dict().items()}
        best.epochs = epoch
        if epoch > recipe.least_epochs and epoch - best.best_epoch > recipe.patience:
            break
    model.load_state_dict(best_state)
    return best


def run(
    options: TrainOptions, out: str | Path, splits: int | None = None, inits: int = 3, device: str = "auto"
) -> Experiment:
    """Train on every split with every initialisation that ``out`` does not hold yet.

    Args:
        out: folder of ``results.json``.
        splits: split seeds 0, 1, ... Default: 5, as released, or the public ones where there are fewer.
        inits: seeds 0, 1, ... of initialisation and dropout, for each split. Default: 3, as released.
        device: as ``--device``.

    Returns:
        For each run F1 and :func:`~graph.metrics.classification_metrics` of the test nodes, the best epoch, seconds,
        and with ReNode the Totoro of its split.

    Raises:
        InputError: options or data that cannot be used, before anything is written.
    """
    transform = renode_transform(options)
    data = load_graph(
        options.dataset,
        options.root,
        normalize_features=options.normalize_features,
        to_undirected=options.to_undirected,
    )
    on_device = copy.copy(data).to(torch_device(device))
    drawn = [
        make_split(data, options.split, seed, valid_each=options.valid_each, **options.quotas())
        for seed in range(count_splits(data, options.split, splits))
    ]
    if all(len(set(_class_counts(data, split).tolist())) == 1 for split in drawn):
        options.refuse_idle("with as many labelled nodes of each class", "beta")
    # Made to refuse wrong options before anything is written.
    _model(data, options), options.make_loss(_class_counts(data, drawn[0]))

    tensors = {name: value for name, value in sorted(data.to_dict().items()) if isinstance(value, Tensor)}
    inputs = {"graph": digest(list(tensors), *tensors.values())}
    settings = Settings.of(options, inputs=inputs, leave_out=("root",))  # where the data lies changes no outcome
    experiment = Experiment(out, settings, ("torch-geometric", "scikit-learn"))
    names = [[f"split{number}-init{seed}" for seed in range(inits)] for number in range(len(drawn))]
    left = sum(name not in experiment.runs for names_of_split in names for name in names_of_split)
    with tqdm(total=left, desc=f"{options.dataset} {options.model}", unit="run", disable=None) as progress:
        for split, names_of_split in zip(drawn, names, strict=True):
            if experiment.runs.keys() >= set(names_of_split):
                continue
            weight, conflict = None, {}
            if options.renode == "on":
                contested = scored(data, split.train, transform)
                weight = contested.renode_weight[split.train].to(on_device.y.device)
                conflict = {"totoro": dataset_totoro(contested.totoro)}
            for seed, name in enumerate(names_of_split):
                if name not in experiment.runs:
                    result = train_once(on_device, split, weight, seed, options)
                    experiment.add(name, result | conflict)
                    progress.set_postfix_str(f"weighted F1 {100 * result['weighted_f1']:.1f}")
                    progress.update()
    return experiment


def train_once(data: Data, split: Split, weight: Tensor | None, seed: int, options: TrainOptions) -> dict[str, Any]:
    """One initialisation on one split: its scores on the test nodes, and how the training went."""
    start = time.perf_counter()
    seed_everything(seed)
    model = _model(data, options).to(data.y.device)
    best = fit(model, data, split, options.make_loss(_class_counts(data, split)), weight, options)
    truth, predicted = data.y[split.test].cpu(), best.logits[split.test].argmax(1).cpu()
    return {
        "weighted_f1": f1(truth, predicted),
        "macro_f1": f1(truth, predicted, "macro"),
        **classification_metrics(best.logits[split.test], data.y[split.test]),
        "valid_f1": best.valid_f1,
        "best_epoch": best.best_epoch,
        "epochs": best.epochs,
        "seconds": time.perf_counter() - start,
    }


def _model(data: Data, options: TrainOptions) -> nn.Module:
    return build_model(
        options.model,
        data.num_features,
        int(data.y.max()) + 1,
        options.hidden,
        options.layers,
        options.dropout,
        options.alpha,
        options.hops,
    )


def _class_counts(data: Data, split: Split) -> Tensor:
    return torch.bincount(data.y[split.train], minlength=int(data.y.max()) + 1)
