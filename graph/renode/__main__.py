"""``python -m graph.renode train | score | plot | train-large``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from graph.renode import plot, score, train
from graph.renode.data import DATASETS, IMBALANCES, SPLITS
from graph.renode.model import MODELS


def _add_graph(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("graph").add_argument
    add(
        "--dataset",
        default="Cora",
        metavar="NAME",
        help=f"{', '.join(DATASETS)}; a Class or Class:name of torch_geometric.datasets; an .npz file in the layout "
        "of Amazon's; or a .pt file with a Data. Default: Cora",
    )
    add("--root", default="data", metavar="FOLDER", help="data sets by name live in FOLDER/NAME. Default: data")
    add("--to-undirected", action="store_true", help="add the reverse of every edge. Default: edges as they are")


def _add_split(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("split").add_argument
    add(
        "--split",
        default="compat",
        metavar="KIND",
        help=f"{', '.join(SPLITS)}. compat: the released splits, which validate on the lowest ids left of each class; "
        "random: random validation nodes, too; public: the masks of the data set. Default: compat",
    )
    add("--train-each", type=int, default=20, help="labelled nodes a class. Default: 20 (as released)")
    add("--valid-each", type=int, default=30, help="validation nodes a class. Default: 30 (as released)")
    add(
        "--imbalance",
        default="none",
        metavar="KIND",
        help=f"{', '.join(IMBALANCES)}. step: head classes have --imbalance-ratio times as many labelled nodes. "
        "Default: none (as released)",
    )
    add(
        "--labeling-ratio",
        type=float,
        default=0.05,
        help="labelled share of all nodes, for step. Default: 0.05 (released: 0.01)",
    )
    add("--imbalance-ratio", type=float, default=5.0, help="for step. Default: 5 (released: 1)")
    add(
        "--head-classes",
        type=int,
        nargs="+",
        default=[0, 1, 2],
        metavar="CLASS",
        help="for step. Default: 0 1 2 (as released)",
    )


def _add_renode(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("ReNode").add_argument
    add("--w-min", type=float, default=0.5, help="weight of the most contested one. Default: 0.5 (as released)")
    add("--w-max", type=float, default=1.5, help="weight of the least contested one. Default: 1.5 (as released)")
    add(
        "--alpha",
        type=float,
        default=0.15,
        help="restart probability of PageRank, here and in appnp and ppnp. Default: 0.15 (as released)",
    )
    add(
        "--ties",
        default="index",
        metavar="HOW",
        help="equal scores rank by node id (index) or share their mean weight (average). Default: index (as released)",
    )
    add("--tol", type=float, default=1e-12, help="relative residual at which the solver stops. Default: 1e-12")
    add("--max-iter", type=int, default=1000, help="steps after which the solver gives up. Default: 1000")


def _add_training(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("training").add_argument
    add(
        "--normalize-features",
        action="store_true",
        help="features of a node sum to 1. Default: raw (as released)",
    )
    add(
        "--model",
        default="gcn",
        metavar="NAME",
        help=f"{', '.join(MODELS)}, or torch_geometric.nn.models.CLASS. Default: gcn (released: sgc)",
    )
    add("--layers", type=int, default=2, help="of the model. Default: 2 (as released)")
    add("--hidden", type=int, default=32, help="width. Default: 32 (as released)")
    add("--dropout", type=float, default=0.5, help="on hidden activations. Default: 0.5 (as released)")
    add("--hops", type=int, default=10, help="steps of appnp. Default: 10")
    add("--loss", default="ce", metavar="NAME", help=f"{', '.join(train.LOSSES)}. Default: ce (as released)")
    add("--gamma", type=float, default=2.0, help="of focal. Default: 2 (as released)")
    add("--beta", type=float, default=0.9999, help="of cb-softmax. Default: 0.9999 (as released)")
    add("--log-end", type=float, default=0.75, help="of encouraging. Default: 0.75")
    add(
        "--renode",
        choices=("off", "on"),
        default="on",
        help="weight the loss of each labelled node by the rank of its conflict. Default: on (released: off)",
    )
    add("--lr", type=float, default=0.0075, help="of Adam. Default: 0.0075 (as released)")
    add("--lr-decay", type=float, default=0.95, help="factor an epoch. Default: 0.95 (as released)")
    add("--lr-decay-epoch", type=int, default=20, help="last epoch at the full rate. Default: 20 (as released)")
    add("--min-lr", type=float, default=1e-4, help="where decay ends. Default: 1e-4 (as released)")
    add("--weight-decay", type=float, default=0.0, help="of Adam. Default: 0 (as released)")
    add("--epochs", type=int, default=200, help="at most. Default: 200 (as released)")
    add("--least-epochs", type=int, default=40, help="no early stop before. Default: 40 (as released)")
    add(
        "--patience",
        type=int,
        default=20,
        help="epochs without a better validation F1. Default: 20 (as released)",
    )
    add("--splits", type=int, default=5, help="split seeds 0, 1, ... Default: 5 (as released)")
    add(
        "--inits",
        type=int,
        default=3,
        help="seeds 0, 1, ... of initialisation and dropout, for each split. Default: 3 (as released)",
    )
    add("--device", default="auto", help="as torch names it; auto: the GPU where there is one. Default: auto")
    add(
        "--out",
        type=Path,
        default=Path("runs/renode"),
        metavar="FOLDER",
        help="of results.json; finished runs in it are not run again. Default: runs/renode",
    )


def _add_output(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("output").add_argument
    add("--split-seed", type=int, default=0, help="which split. Default: 0")
    add("--out", type=Path, default=Path("runs/renode"), metavar="FOLDER", help="of the files. Default: runs/renode")


def _parser(command: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m graph.renode",
        description="Topology imbalance of labelled nodes: Totoro scores, ReNode weights, node classification.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train", help="train on the whole graph: splits x initialisations")
    scores = commands.add_parser("score", help="Totoro score and ReNode weight of each labelled node; no training")
    pictures = commands.add_parser("plot", help="pictures of the scores and weights")
    train_large = commands.add_parser("train-large", help="train on a graph too large for that: PPRGo, in mini-batches")
    for parts in (training, scores, pictures):
        _add_graph(parts)
        _add_split(parts)
        _add_renode(parts)
    _add_training(training)
    for parts in (scores, pictures):
        _add_output(parts)
    pictures.add_argument(
        "--layout-nodes", type=int, default=400, help="at most this many nodes in the layout. Default: 400"
    )
    if command == "train-large":  # its libraries take seconds to load
        from graph.renode import large

        large.add_arguments(train_large)
    return parser


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options of a command line, defaults included."""
    return _parser(arguments[0] if arguments else None).parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(sys.argv[1:] if arguments is None else arguments)
    if options.command == "train":
        experiment = train.run(options)
        summary = experiment.summary()
        weighted, macro = (
            f"{100 * summary[name]['mean']:.1f} ± {100 * summary[name]['std']:.1f}"
            for name in ("weighted_f1", "macro_f1")
        )
        print(
            f"{options.dataset}, {options.model}, {options.loss}, ReNode {options.renode}: weighted F1 {weighted}, "
            f"macro F1 {macro} ({len(experiment.runs)} runs in {experiment.file})"
        )
    elif options.command == "score":
        scores = score.run(options)
        print(f"{options.dataset}: {scores['labelled']} labelled nodes, Totoro {scores['totoro']:.5f}")
        for label, of in scores["classes"].items():
            print(f"  class {label}: {of['labelled']} nodes, mean {of['mean_totoro']:.3g}")
        print(f"scores.tsv, scores.npz, scores.json in {options.out}")
    elif options.command == "plot":
        for path in plot.run(options):
            print(path)
    else:
        from graph.renode import large

        large.run(options)


if __name__ == "__main__":
    main()
