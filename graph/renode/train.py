"""Full-batch training for node classification, with and without ReNode, over several splits and initialisations."""

from __future__ import annotations

import copy
import math
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from sklearn.metrics import f1_score
from torch import Tensor, nn
from torch_geometric import seed_everything
from torch_geometric.data import Data
from tqdm import tqdm

from fairseq_ext.errors import OptionError, choose
from fairseq_ext.experiments import Experiment, torch_device
from fairseq_ext.losses import (
    class_balanced_softmax_loss,
    encouraging_loss,
    focal_loss,
    reduce_weighted,
    reweighted_cross_entropy,
)
from graph.renode.data import Split, count_splits, load_graph, make_split
from graph.renode.model import build_model
from graph.renode.score import renode_transform, scored, split_options
from graph.renode.totoro import dataset_totoro

__all__ = ["LOSSES", "Fit", "Recipe", "f1", "fit", "make_loss", "run", "train_once"]

LOSSES = ("ce", "re-weight", "focal", "cb-softmax", "encouraging")
# Which runs there are and where they happen: nothing that changes the outcome of one of them.
NOT_SETTINGS = ("command", "splits", "inits", "out", "root", "device")


def make_loss(
    name: str, class_counts: Tensor, *, gamma: float = 2.0, beta: float = 0.9999, log_end: float = 0.75
) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """A loss ``(logits, target, sample_weight) -> mean of w l``.

    Args:
        name: one of ``LOSSES``.
        class_counts: labelled nodes of each class, for ``re-weight``, ``focal`` and ``cb-softmax``.
        gamma: of ``focal``.
        beta: of ``cb-softmax``.
        log_end: of ``encouraging``.

    Raises:
        OptionError: an unknown loss, or an option out of its range.
    """

    def plain(loss: Callable[..., Tensor], **options: float) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
        return lambda logits, y, weight: reduce_weighted(loss(logits, y, reduction="none", **options), weight)

    def balanced(loss: Callable[..., Tensor], **options: float) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
        return lambda logits, y, weight: loss(logits, y, class_counts, weight, **options)

    losses = {
        "ce": plain(F.cross_entropy),
        "re-weight": balanced(reweighted_cross_entropy),
        "focal": balanced(focal_loss, gamma=gamma),
        "cb-softmax": balanced(class_balanced_softmax_loss, beta=beta),
        "encouraging": plain(encouraging_loss, log_end=log_end),
    }
    loss = losses[choose("--loss", name, LOSSES)]
    try:  # a wrong option is an error here, not at the first step
        device = class_counts.device
        loss(torch.zeros(1, len(class_counts), device=device), torch.zeros(1, dtype=torch.long, device=device), None)
    except ValueError as error:
        raise OptionError(f"--loss {name}: {error}") from error
    return loss


@dataclass(frozen=True)
class Recipe:
    """How to train; every default is that of the released code.

    Args:
        lr: of Adam, up to ``lr_decay_epoch``; then times ``lr_decay`` at every epoch, down to ``min_lr``.
        weight_decay: of Adam.
        epochs: at most.
        least_epochs, patience: stop after ``least_epochs`` once ``patience`` epochs brought no better validation F1.
    """

    lr: float = 0.0075
    lr_decay: float = 0.95
    lr_decay_epoch: int = 20
    min_lr: float = 1e-4
    weight_decay: float = 0.0
    epochs: int = 200
    least_epochs: int = 40
    patience: int = 20

    def __post_init__(self) -> None:
        for name in ("lr", "lr_decay", "epochs", "patience"):
            if not getattr(self, name) > 0:
                raise OptionError(f"--{name.replace('_', '-')} must be positive, got {getattr(self, name)}")

    def lr_factor(self, steps: int) -> float:
        """What ``lr`` is multiplied by after ``steps`` epochs."""
        late = steps + 1 - self.lr_decay_epoch
        return max(self.lr_decay**late, self.min_lr / self.lr) if late > 0 else 1.0


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
    """
    recipe = recipe or Recipe()
    truth = data.y[split.valid].cpu()
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, recipe.lr_factor)
    best, best_state = Fit(data.x, -1.0, 0, 0), {}
    for epoch in range(1, recipe.epochs + 1):
        model.train()
        logits = model(data.x, data.edge_index)
        if logits.shape[:1] != data.y.shape:
            raise OptionError(
                f"--model: gives {tuple(logits.shape)}, not a row of logits for each of {len(data.y)} nodes"
            )
        value = loss(logits[split.train], data.y[split.train], weight)
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


def run(options: Namespace) -> Experiment:
    """``python -m graph.renode train``: every split with every initialisation that ``--out`` does not hold yet."""
    if options.splits < 1 or options.inits < 1:
        raise OptionError(f"--splits and --inits must be at least 1, got {options.splits} and {options.inits}")
    transform = renode_transform(options)
    recipe = Recipe(**{field.name: getattr(options, field.name) for field in fields(Recipe)})
    data = load_graph(
        options.dataset,
        options.root,
        normalize_features=options.normalize_features,
        to_undirected=options.to_undirected,
    )
    on_device = copy.copy(data).to(torch_device(options.device))
    count = count_splits(data, options.split, options.splits)
    splits = [make_split(data, options.split, seed, **split_options(options)) for seed in range(count)]
    # Made to refuse wrong options before anything is written.
    _model(data, options), _loss(data, splits[0], options)

    settings = {name: value for name, value in vars(options).items() if name not in NOT_SETTINGS}
    experiment = Experiment(options.out, settings, ("torch-geometric", "scikit-learn"))
    names = [[f"split{s}-init{i}" for i in range(options.inits)] for s in range(count)]
    left = sum(name not in experiment.runs for names_of_split in names for name in names_of_split)
    with tqdm(total=left, desc=f"{options.dataset} {options.model}", unit="run", disable=None) as progress:
        for split, names_of_split in zip(splits, names, strict=True):
            if experiment.runs.keys() >= set(names_of_split):
                continue
            weight, conflict = None, {}
            if options.renode == "on":
                contested = scored(data, split.train, transform)
                weight = contested.renode_weight[split.train].to(on_device.y.device)
                conflict = {"totoro": dataset_totoro(contested.totoro)}
            for seed, name in enumerate(names_of_split):
                if name not in experiment.runs:
                    result = train_once(on_device, split, weight, seed, recipe, options)
                    experiment.add(name, result | conflict)
                    progress.set_postfix_str(f"weighted F1 {100 * result['weighted_f1']:.1f}")
                    progress.update()
    return experiment


def train_once(
    data: Data, split: Split, weight: Tensor | None, seed: int, recipe: Recipe, options: Namespace
) -> dict[str, float]:
    """One initialisation on one split: its F1 on the test nodes, and how the training went."""
    start = time.perf_counter()
    seed_everything(seed)
    model = _model(data, options).to(data.y.device)
    best = fit(model, data, split, _loss(data, split, options), weight, recipe)
    truth, predicted = data.y[split.test].cpu(), best.logits[split.test].argmax(1).cpu()
    return {
        "weighted_f1": f1(truth, predicted),
        "macro_f1": f1(truth, predicted, "macro"),
        "valid_f1": best.valid_f1,
        "best_epoch": best.best_epoch,
        "epochs": best.epochs,
        "seconds": time.perf_counter() - start,
    }


def _model(data: Data, options: Namespace) -> nn.Module:
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


def _loss(data: Data, split: Split, options: Namespace) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    counts = torch.bincount(data.y[split.train], minlength=int(data.y.max()) + 1)
    return make_loss(options.loss, counts, gamma=options.gamma, beta=options.beta, log_end=options.log_end)
