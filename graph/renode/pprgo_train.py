"""Inductive training on large graphs: PPRGo on local personalised-PageRank rows, with ReNode weights."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from scipy import sparse
from sklearn.metrics import f1_score
from torch import Tensor
from tqdm import tqdm

from fairseq_ext.errors import CheckpointError, OptionError, choose
from fairseq_ext.experiments import Experiment
from fairseq_ext.files import load_safely, save_atomically
from fairseq_ext.losses import reduce_weighted
from graph.renode.data import load_graph
from graph.renode.pagerank import push_pagerank
from graph.renode.pprgo import PPRGo, RowBatches, predict
from graph.renode.pprgo_data import IMBALANCES, InductiveSplit, LargeGraph, inductive_split, read_large_graph
from graph.renode.totoro import renode_weights, totoro, totoro_from_rows
from graph.renode.train import LOSSES, make_loss

__all__ = ["add_arguments", "f1", "labelled_weights", "run", "train"]

SCORES = ("exact", "push-softmax")
REDUCTIONS = ("sum", "mean")


def labelled_weights(
    graph: LargeGraph,
    nodes: np.ndarray,
    rows: sparse.csr_array,
    *,
    alpha: float = 0.15,
    w_min: float = 0.75,
    w_max: float = 1.25,
    ties: str = "index",
    score: str = "exact",
) -> np.ndarray:
    """ReNode weights of labelled nodes.

    Args:
        nodes: (L,) their ids.
        rows: (L, n) their pushed rows, which only ``score="push-softmax"`` looks at.
        w_min, w_max: 0.75 and 1.25, the released defaults for large graphs. Equal bounds weigh all nodes alike.
        score: ``"exact"``: :func:`~graph.renode.totoro`, by sparse solves (our choice); or ``"push-softmax"``:
            :func:`~graph.renode.totoro_from_rows`, as released.

    Returns:
        (L,) float32.
    """
    choose("--totoro", score, SCORES)
    labels = torch.from_numpy(graph.y)
    ids = torch.from_numpy(nodes)
    if score == "exact":
        scores = totoro(graph.edge_index, labels, ids, alpha=alpha)
    else:
        scores = totoro_from_rows(rows, labels[ids])
    return renode_weights(scores, w_min, w_max, ties).float().numpy()


def f1(truth: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Weighted and macro F1."""
    return {
        f"{kind}_f1": float(f1_score(truth, predicted, average=kind, zero_division=0)) for kind in ("weighted", "macro")
    }


def weighted_cross_entropy(logits: Tensor, y: Tensor, weight: Tensor | None) -> Tensor:
    """The mean of weight times cross-entropy."""
    return reduce_weighted(F.cross_entropy(logits, y, reduction="none"), weight)


def train(
    model: PPRGo,
    batches: RowBatches,
    valid: RowBatches | None = None,
    *,
    loss: Callable[[Tensor, Tensor, Tensor | None], Tensor] = weighted_cross_entropy,
    accelerator: Accelerator | None = None,
    lr: float = 5e-3,
    weight_decay: float = 1e-4,
    epochs: int = 800,
    patience: int = 100,
    interval: int = 1,
    reduction: str = "sum",
    seed: int = 0,
    checkpoint: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, int | float]:
    """Minimise Σ_v w_v · loss(z_v, y_v) with Adam, and leave the best epoch's weights in ``model``.

    Order and dropout of an epoch come from (seed, epoch) alone, so a resumed training needs no state of a generator,
    and ends bit for bit where an uninterrupted one ends.

    Args:
        batches: this process's shares of the training rows.
        valid: rows whose weighted F1 picks the epoch; without them it is the last one, as released.
        loss: called with logits, classes and weights; the mean of w · loss. Default: cross-entropy, as released.
        lr, weight_decay, epochs: 0.005, 1e-4 and 800, as released.
        patience: epochs without a better F1 that end the training, at least 1 (our choice, like validation itself).
        interval: epochs between validations and checkpoints.
        reduction: ``"sum"`` over the batch, as released, or ``"mean"``.
        checkpoint: file to go on from and to save to.
        settings: a checkpoint of other settings is refused.

    Returns:
        ``{"epochs": of them run, "best_epoch": ..., "best_valid_weighted_f1": ...}``, the last two with ``valid`` only.

    Raises:
        CheckpointError: where ``checkpoint`` is damaged or belongs to other settings.
    """
    choose("--reduction", reduction, REDUCTIONS)
    accelerator = accelerator or Accelerator(mixed_precision="no")  # sparse products know float32 only
    model.to(accelerator.device)
    optimizer = torch.optim.Adam(model.parameters(), lr, weight_decay=weight_decay)
    state: dict[str, Any] = {"epoch": 0, "best_epoch": 0, "best_f1": -1.0, "best": None}
    state["settings"] = dict(settings or {})
    if checkpoint is not None and Path(checkpoint).exists():
        found = load_safely(checkpoint)
        if not isinstance(found, dict) or found.get("settings") != state["settings"]:
            raise CheckpointError(
                f"{checkpoint}: of a training with other settings; delete it, or choose another --out"
            )
        model.load_state_dict(found.pop("model"))
        optimizer.load_state_dict(found.pop("optimizer"))
        state = found
    parallel = accelerator.prepare_model(model)

    hidden = None if accelerator.is_main_process else True
    bar = tqdm(total=epochs, initial=state["epoch"], disable=hidden, unit="epoch")
    while state["epoch"] < epochs and (valid is None or state["epoch"] - state["best_epoch"] < patience):
        state["epoch"] += 1
        generator = np.random.default_rng([seed, state["epoch"]])
        torch.manual_seed(int(generator.integers(2**32)) + accelerator.process_index)
        model.train()
        for batch in batches.epoch(generator.permutation(len(batches.y))):
            logits = parallel(batch.x, batch.ppr)
            # A process without rows still takes part in the exchange of gradients, with zeros.
            share = loss(logits, batch.y, batch.weight) * len(batch.y) if len(batch.y) else logits.sum()
            # Gradients are averaged over the processes, but a batch's loss is the sum of their shares.
            total = share * accelerator.num_processes / (batch.size if reduction == "mean" else 1)
            if not total.isfinite():
                raise OptionError(f"--lr {lr}: the loss is {total.item()} in epoch {state['epoch']}")
            optimizer.zero_grad()
            accelerator.backward(total)
            optimizer.step()
        bar.update()
        if state["epoch"] % interval and state["epoch"] < epochs:
            continue
        if valid is not None:
            score = _validate(model, valid, accelerator)
            bar.set_postfix(valid_f1=f"{score:.4f}")
            if score > state["best_f1"]:
                best = {name: value.detach().clone() for name, value in model.state_dict().items()}
                state |= {"best_f1": score, "best_epoch": state["epoch"], "best": best}
        if checkpoint is not None and accelerator.is_main_process:
            save_atomically(state | {"model": model.state_dict(), "optimizer": optimizer.state_dict()}, checkpoint)
    bar.close()
    if state["best"] is None:
        return {"epochs": state["epoch"]}
    model.load_state_dict(state["best"])
    return {"epochs": state["epoch"], "best_epoch": state["best_epoch"], "best_valid_weighted_f1": state["best_f1"]}


@torch.no_grad()
def _validate(model: PPRGo, batches: RowBatches, accelerator: Accelerator) -> float:
    model.eval()
    results = [torch.stack([batch.y, model(batch.x, batch.ppr).argmax(1)], 1) for batch in batches]
    # The shares of the processes differ in length; -1 fills them up.
    padded = accelerator.pad_across_processes(torch.cat(results), pad_index=-1)
    truth, predicted = accelerator.gather(padded).cpu().numpy().T
    return f1(truth[truth >= 0], predicted[truth >= 0])["weighted_f1"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of :func:`run`."""
    add = parser.add_argument_group("graph and split").add_argument
    add("--dataset", default="Cora", metavar="NAME", help="an .npz file, or what `train` takes. Default: Cora")
    add("--root", default="data", metavar="FOLDER", help="data sets by name live in FOLDER/NAME. Default: data")
    add("--to-undirected", action="store_true", help="add the reverse of every edge; always so for an .npz file")
    add(
        "--features", metavar="FILE", help=".npy with the features of an .npz graph, left on disk. Default: those in it"
    )
    add("--imbalance", default="tinl", help=f"{', '.join(IMBALANCES)}: equal classes, or drawn. Default: tinl")
    add("--train-each", type=int, default=50, help="labelled nodes a class. Default: 50 (released: 20, 50, 100)")

    add = parser.add_argument_group("PageRank and ReNode").add_argument
    add("--alpha", type=float, default=0.15, help="restart probability. Default: 0.15 (released: the same)")
    add("--eps", type=float, default=1e-4, help="threshold of a push. Default: 1e-4 (released: the same)")
    add("--topk", type=int, default=0, help="largest entries kept of a row. Default: 0, all (released: the same)")
    add("--normalization", default="sym", help="sym, row or col. Default: sym (released: the same)")
    add("--renode", choices=("off", "on"), default="on", help="weight the losses. Default: on")
    add("--totoro", default="exact", help=f"{', '.join(SCORES)}. Default: exact (released: push-softmax)")
    add(
        "--w-min",
        type=float,
        default=0.75,
        help="weight of the most contested node. Default: 0.75 (released: the same)",
    )
    add("--w-max", type=float, default=1.25, help="of the least contested. Default: 1.25 (released: the same)")
    add("--ties", default="index", help="of equal scores: index or average. Default: index (released: the same)")

    add = parser.add_argument_group("training").add_argument
    add("--layers", type=int, default=2, help="Default: 2 (released: the same)")
    add("--hidden", type=int, default=32, help="width. Default: 32 (released: the same)")
    add("--dropout", type=float, default=0.1, help="on input and hidden. Default: 0.1 (released: the same)")
    add("--loss", default="ce", metavar="NAME", help=f"{', '.join(LOSSES)}. Default: ce (released: the same)")
    add("--gamma", type=float, default=2.0, help="of focal. Default: 2")
    add("--beta", type=float, default=0.9999, help="of cb-softmax. Default: 0.9999")
    add("--log-end", type=float, default=0.75, help="of encouraging. Default: 0.75")
    add("--reduction", default="sum", help="of a batch's losses: sum or mean. Default: sum (released: the same)")
    add("--lr", type=float, default=5e-3, help="of Adam. Default: 0.005 (released: the same)")
    add("--weight-decay", type=float, default=1e-4, help="of Adam. Default: 1e-4 (released: the same)")
    add("--batch-size", type=int, default=4200, help="rows, over all processes. Default: 4200 (released: the same)")
    add("--epochs", type=int, default=800, help="at most. Default: 800 (released: the same)")
    add(
        "--patience",
        type=int,
        default=100,
        help="epochs without a better validation F1; 0: no validation, the last one counts. Default: 100 (released: 0)",
    )
    add("--interval", type=int, default=1, help="epochs between validations and checkpoints. Default: 1")
    add("--steps", type=int, default=2, help="of power iteration at inference. Default: 2 (released: the same)")

    add = parser.add_argument_group("runs").add_argument
    add("--splits", type=int, default=1, help="split seeds 0, 1, ... Default: 1 (released: the same)")
    add("--inits", type=int, default=1, help="seeds 0, 1, ... of each split. Default: 1 (released: the same)")
    add("--cpu", action="store_true", help="leave the GPU alone")
    add(
        "--out",
        type=Path,
        default=Path("runs/renode-large"),
        metavar="FOLDER",
        help="of results.json and models; finished runs in it are not run again. Default: runs/renode-large",
    )


# Which runs there are and where they happen: nothing that changes the outcome of one of them.
NOT_SETTINGS = ("command", "splits", "inits", "out", "root", "cpu")
AT_LEAST = {
    "hidden": 1,
    "batch_size": 1,
    "epochs": 1,
    "patience": 0,
    "interval": 1,
    "steps": 0,
    "splits": 1,
    "inits": 1,
}


def run(options: argparse.Namespace) -> None:
    """Trains on each split from each initialisation that ``results.json`` does not hold yet."""
    _check(options)
    accelerator = Accelerator(cpu=options.cpu, mixed_precision="no")
    settings = {name: value for name, value in vars(options).items() if name not in NOT_SETTINGS}
    experiment = Experiment(options.out, settings, ("torch", "scipy", "accelerate"))
    if Path(options.dataset).suffix == ".npz":
        graph = read_large_graph(options.dataset, options.features)
    else:
        graph = LargeGraph.from_data(load_graph(options.dataset, options.root, to_undirected=options.to_undirected))
    for split_seed in range(options.splits):
        names = {f"split{split_seed}_init{seed}": seed for seed in range(options.inits)}
        names = {name: seed for name, seed in names.items() if name not in experiment.runs}
        if not names:
            continue
        split = inductive_split(graph.y, options.train_each, options.imbalance, split_seed)
        batches, valid = _batches(graph, split, options, accelerator)
        for name, seed in names.items():
            record = _one_run(graph, split, batches, valid, options, accelerator, name, seed, settings)
            if accelerator.is_main_process:
                experiment.add(name, record)
                tqdm.write(f"{name}: " + ", ".join(f"{key} {value:.4g}" for key, value in record.items()))
                (options.out / f"{name}.checkpoint.pt").unlink(missing_ok=True)
    if accelerator.is_main_process:
        for key, value in experiment.summary().items():
            if key in ("weighted_f1", "macro_f1"):
                tqdm.write(f"{key}: {100 * value['mean']:.1f} +- {100 * value['std']:.1f} over {value['runs']} runs")


def _check(options: argparse.Namespace) -> None:
    for name, least in AT_LEAST.items():
        if getattr(options, name) < least:
            raise OptionError(f"--{name.replace('_', '-')} must be at least {least}, got {getattr(options, name)}")
    if options.lr <= 0 or options.weight_decay < 0:
        raise OptionError(
            f"--lr must be positive, --weight-decay not negative, got {options.lr} and {options.weight_decay}"
        )
    choose("--reduction", options.reduction, REDUCTIONS)
    choose("--totoro", options.totoro, SCORES)
    if options.features is not None and Path(options.dataset).suffix != ".npz":
        raise OptionError(f"--features goes with an .npz graph, got --dataset {options.dataset}")


def _batches(
    graph: LargeGraph, split: InductiveSplit, options: argparse.Namespace, accelerator: Accelerator
) -> tuple[RowBatches, RowBatches | None]:
    """Training rows with their weights, and validation rows where they are wanted."""

    def rows(nodes: np.ndarray) -> sparse.csr_array:
        size, kind = len(graph.y), options.normalization
        return push_pagerank(
            graph.edge_index, torch.from_numpy(nodes), size, options.alpha, options.eps, options.topk, kind
        )

    def batches(nodes: np.ndarray, ppr: sparse.csr_array, weight: np.ndarray | None = None) -> RowBatches:
        share = {"rank": accelerator.process_index, "world": accelerator.num_processes, "device": accelerator.device}
        return RowBatches(ppr, graph.x, graph.y[nodes], weight, options.batch_size, **share)

    train_rows = rows(split.train)
    weight = None
    if options.renode == "on":
        bounds = {"w_min": options.w_min, "w_max": options.w_max, "ties": options.ties}
        weight = labelled_weights(graph, split.train, train_rows, alpha=options.alpha, score=options.totoro, **bounds)
    valid = batches(split.valid, rows(split.valid)) if options.patience else None
    return batches(split.train, train_rows, weight), valid


def _one_run(
    graph: LargeGraph,
    split: InductiveSplit,
    batches: RowBatches,
    valid: RowBatches | None,
    options: argparse.Namespace,
    accelerator: Accelerator,
    name: str,
    seed: int,
    settings: Mapping[str, Any],
) -> dict[str, int | float]:
    torch.manual_seed(seed)
    model = PPRGo(graph.x.shape[1], graph.num_classes, options.hidden, options.layers, options.dropout)
    start = time.perf_counter()
    counts = torch.from_numpy(np.bincount(batches.y, minlength=graph.num_classes)).to(accelerator.device)
    record = train(
        model,
        batches,
        valid,
        loss=make_loss(options.loss, counts, gamma=options.gamma, beta=options.beta, log_end=options.log_end),
        accelerator=accelerator,
        lr=options.lr,
        weight_decay=options.weight_decay,
        epochs=options.epochs,
        patience=options.patience,
        interval=options.interval,
        reduction=options.reduction,
        seed=seed,
        checkpoint=options.out / f"{name}.checkpoint.pt",
        settings=settings,
    )
    if not accelerator.is_main_process:
        return record
    record["seconds"] = time.perf_counter() - start
    save_atomically(model.state_dict(), options.out / f"{name}.pt")
    predicted = predict(
        model,
        graph.x,
        graph.adjacency,
        alpha=options.alpha,
        steps=options.steps,
        normalization=options.normalization,
        device=accelerator.device,
    )
    for part, nodes in split._asdict().items():
        prefix = "" if part == "test" else f"{part}_"
        record |= {prefix + metric: value for metric, value in f1(graph.y[nodes], predicted[nodes]).items()}
    return record
