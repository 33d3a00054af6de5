"""``python -m graph.renode train-large``: PPRGo on splits of a graph too large for training on all of it at once."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from scipy import sparse
from tqdm import tqdm

from fairseq_ext.training.files import save_atomically
from fairseq_ext.training.options import at_least, option
from fairseq_ext.training.runs import Experiment
from fairseq_ext.training.settings import Settings, digest
from graph.metrics import classification_metrics
from graph.renode.data import has_root, load_graph
from graph.renode.losses import LossOptions
from graph.renode.options import SWITCH
from graph.renode.pprgo import PPRGo, RowBatches, predict_logits
from graph.renode.pprgo_data import IMBALANCES, InductiveSplit, LargeGraph, inductive_split, read_large_graph
from graph.renode.pprgo_train import REDUCTIONS, SCORES, labelled_weights, train
from graph.renode.push import NORMALIZATIONS, push_pagerank
from graph.renode.totoro import TIES
from graph.renode.train import f1

__all__ = ["LargeOptions", "add_arguments", "run", "train_large"]


OFF = {"renode": ("off",)}


@dataclass(frozen=True, kw_only=True)
class LargeOptions(LossOptions):
    """Settings of :func:`run`; defaults are the released code's where the help says so.

    Raises:
        OptionError: a value that is not allowed, or an option that would do nothing.
    """

    dataset: str = option("Cora", "an .npz file, or what `train` takes")
    root: str = option("data", "data sets by name live in ROOT/NAME")
    to_undirected: bool = option(False, "add the reverse of every edge; always so for an .npz file")
    features: str = option("", ".npy with the features of an .npz graph, left on disk (default: those in it)")
    imbalance: str = option("tinl", "tinl: equal classes; qinl: classes as drawn", IMBALANCES)
    train_each: int = option(50, "labelled nodes a class (released: 20, 50, 100)", least=1)

    alpha: float = option(0.15, "restart probability (released: 0.15)", above=0, below=1)
    eps: float = option(1e-4, "threshold of a push (released: 1e-4)", above=0, below=1)
    topk: int = option(0, "largest entries kept of a row; 0: all (released: 0)", least=0)
    normalization: str = option("sym", "of the rows (released: sym)", tuple(NORMALIZATIONS))
    renode: str = option("on", "weight the losses", SWITCH)
    totoro: str = option("exact", "scores behind the weights (released: push-softmax)", SCORES, idle=OFF)
    w_min: float = option(0.75, "weight of the most contested node (released: 0.75)", above=0, idle=OFF)
    w_max: float = option(1.25, "weight of the least contested node (released: 1.25)", above=0, idle=OFF)
    ties: str = option("index", "how equal scores rank (released: index)", TIES, idle=OFF)

    layers: int = option(2, "of the perceptron (released: 2)", least=1)
    hidden: int = option(32, "width (released: 32)", least=1, idle={"layers": (1,)})
    dropout: float = option(0.1, "on input and hidden activations (released: 0.1)", least=0, below=1)
    reduction: str = option("sum", "of a batch's losses (released: sum)", REDUCTIONS)
    lr: float = option(5e-3, "of Adam (released: 0.005)", above=0)
    weight_decay: float = option(1e-4, "of Adam (released: 1e-4)", least=0)
    batch_size: int = option(4200, "rows, over all processes (released: 4200)", least=1)
    epochs: int = option(800, "at most (released: 800)", least=1)
    patience: int = option(
        100,
        "epochs without a better validation F1; 0: no validation, the last one counts (released: 0)",
        least=0,
    )
    interval: int = option(1, "epochs between validations and checkpoints", least=1)
    steps: int = option(2, "of power iteration at inference (released: 2)", least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if Path(self.dataset).suffix == ".npz":
            self.refuse_idle("with an .npz file, whose edges are always undirected", "to_undirected")
        else:
            self.refuse_idle(f"with --dataset {self.dataset}, but with an .npz file", "features")
        if not has_root(self.dataset):
            self.refuse_idle(f"with --dataset {self.dataset}", "root")
        if self.w_min == self.w_max:
            self.refuse_idle("with equal --w-min and --w-max", "totoro", "ties")
        if self.imbalance == "tinl":
            self.refuse_idle("with as many labelled nodes of each class", "beta")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of :func:`train_large`."""
    LargeOptions.add_to(parser)
    parser.add_argument("--splits", type=int, default=1, help="split seeds 0, 1, ... [%(default)s] (released: 1)")
    parser.add_argument("--inits", type=int, default=1, help="seeds of each split [%(default)s] (released: 1)")
    parser.add_argument("--cpu", action="store_true", help="leave the GPU alone")
    parser.add_argument("--out", default="runs/renode-large", help="folder of results and models [%(default)s]")


def train_large(arguments: argparse.Namespace) -> None:
    """``python -m graph.renode train-large``."""
    at_least(arguments, splits=1, inits=1)
    accelerator = Accelerator(cpu=arguments.cpu, mixed_precision="no")
    options = LargeOptions.of(arguments)
    experiment = run(options, arguments.out, arguments.splits, arguments.inits, accelerator)
    if accelerator.is_main_process:
        for name in ("weighted_f1", "macro_f1"):
            found = experiment.summary()[name]
            print(f"{name}: {100 * found['mean']:.1f} +- {100 * found['std']:.1f} over {found['runs']} runs")


def run(
    options: LargeOptions, out: str | Path, splits: int = 1, inits: int = 1, accelerator: Accelerator | None = None
) -> Experiment:
    """Train on each split from each initialisation that ``results.json`` in ``out`` does not hold yet."""
    accelerator = accelerator or Accelerator(mixed_precision="no")
    if Path(options.dataset).suffix == ".npz":
        graph = read_large_graph(options.dataset, options.features or None)
    else:
        graph = LargeGraph.from_data(load_graph(options.dataset, options.root, to_undirected=options.to_undirected))
    x = graph.x
    features = (x.data, x.indices, x.indptr) if isinstance(x, sparse.csr_array) else (x,)
    inputs = {"graph": digest(graph.edge_index, graph.y, x.shape, *features)}
    settings = Settings.of(options, inputs=inputs, leave_out=("root",))  # where the data lies changes no outcome
    experiment = Experiment(out, settings, ("scipy", "accelerate"))
    for split_seed in range(splits):
        names = {f"split{split_seed}_init{seed}": seed for seed in range(inits)}
        names = {name: seed for name, seed in names.items() if name not in experiment.runs}
        if not names:
            continue
        split = inductive_split(graph.y, options.train_each, options.imbalance, split_seed)
        batches, valid = _batches(graph, split, options, accelerator)
        for name, seed in names.items():
            file = Path(out) / name
            record = _one_run(graph, split, batches, valid, options, accelerator, file, seed, settings)
            if accelerator.is_main_process:
                experiment.add(name, record)
                known = {key: value for key, value in record.items() if value is not None}
                tqdm.write(f"{name}: " + ", ".join(f"{key} {value:.4g}" for key, value in known.items()))
                Path(f"{file}.checkpoint.pt").unlink(missing_ok=True)
    return experiment


def _batches(
    graph: LargeGraph, split: InductiveSplit, options: LargeOptions, accelerator: Accelerator
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
        bounds: dict[str, Any] = {"w_min": options.w_min, "w_max": options.w_max, "ties": options.ties}
        weight = labelled_weights(graph, split.train, train_rows, alpha=options.alpha, score=options.totoro, **bounds)
    valid = batches(split.valid, rows(split.valid)) if options.patience else None
    return batches(split.train, train_rows, weight), valid


def _one_run(
    graph: LargeGraph,
    split: InductiveSplit,
    batches: RowBatches,
    valid: RowBatches | None,
    options: LargeOptions,
    accelerator: Accelerator,
    file: Path,
    seed: int,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    torch.manual_seed(seed)
    model = PPRGo(graph.x.shape[1], graph.num_classes, options.hidden, options.layers, options.dropout)
    start = time.perf_counter()
    counts = torch.from_numpy(np.bincount(batches.y, minlength=graph.num_classes)).to(accelerator.device)
    record: dict[str, Any] = train(
        model,
        batches,
        valid,
        loss=options.make_loss(counts),
        accelerator=accelerator,
        lr=options.lr,
        weight_decay=options.weight_decay,
        epochs=options.epochs,
        patience=options.patience,
        interval=options.interval,
        reduction=options.reduction,
        seed=seed,
        checkpoint=f"{file}.checkpoint.pt",
        settings=settings,
    )
    if not accelerator.is_main_process:
        return record
    record["seconds"] = time.perf_counter() - start
    save_atomically(model.state_dict(), f"{file}.pt")
    logits = predict_logits(
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
            record[f"{prefix}{average}_f1"] = f1(graph.y[nodes], logits[nodes].argmax(1), average)
    test = torch.from_numpy(split.test)
    return record | classification_metrics(torch.from_numpy(logits)[test], torch.from_numpy(graph.y)[test])
