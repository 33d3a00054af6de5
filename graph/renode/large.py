"""``python -m graph.renode train-large``: PPRGo on splits of a graph too large for training on all of it at once."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from scipy import sparse
from tqdm import tqdm

from fairseq_ext.errors import OptionError, choose
from fairseq_ext.experiments import Experiment
from fairseq_ext.files import save_atomically
from graph.renode.data import load_graph
from graph.renode.pagerank import push_pagerank
from graph.renode.pprgo import PPRGo, RowBatches, predict
from graph.renode.pprgo_data import IMBALANCES, InductiveSplit, LargeGraph, inductive_split, read_large_graph
from graph.renode.pprgo_train import REDUCTIONS, SCORES, labelled_weights, train
from graph.renode.train import LOSSES, f1, make_loss

__all__ = ["add_arguments", "run"]


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
        for average in ("weighted", "macro"):
            record[f"{prefix}{average}_f1"] = f1(graph.y[nodes], predicted[nodes], average)
    return record
