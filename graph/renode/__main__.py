"""``python -m graph.renode train | score | plot | train-large``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from fairseq_ext.training.options import at_least, subcommands
from graph.renode import plot, score, train
from graph.renode.options import (
    GraphOptions,
    LabelOptions,
    ModelOptions,
    Recipe,
    ScoreOptions,
    SplitOptions,
    TrainOptions,
    WeightOptions,
)


def _train(arguments: argparse.Namespace) -> None:
    at_least(arguments, splits=1, inits=1)
    options = TrainOptions.of(arguments)
    experiment = train.run(options, arguments.out, arguments.splits, arguments.inits, arguments.device)
    weighted, macro = (
        f"{100 * experiment.summary()[name]['mean']:.1f} ± {100 * experiment.summary()[name]['std']:.1f}"
        for name in ("weighted_f1", "macro_f1")
    )
    print(
        f"{options.dataset}, {options.model}, {options.loss}, ReNode {options.renode}: weighted F1 {weighted}, "
        f"macro F1 {macro} ({len(experiment.runs)} runs in {experiment.file})"
    )


def _score(arguments: argparse.Namespace) -> None:
    scores = score.run(ScoreOptions.of(arguments), arguments.out, arguments.split_seed)
    print(f"{arguments.dataset}: {scores['labelled']} labelled nodes, Totoro {scores['totoro']:.5f}")
    for label, of in scores["classes"].items():
        print(f"  class {label}: {of['labelled']} nodes, mean {of['mean_totoro']:.3g}")
    print(f"scores.tsv, scores.npz, scores.json in {arguments.out}")


def _plot(arguments: argparse.Namespace) -> None:
    at_least(arguments, layout_nodes=1)
    options = ScoreOptions.of(arguments)
    for path in plot.run(options, arguments.out, arguments.split_seed, arguments.layout_nodes):
        print(path)


def _train_large(arguments: argparse.Namespace) -> None:
    from graph.renode.large import train_large

    train_large(arguments)


def _parser(chosen: str | None) -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="python -m graph.renode",
        description="Topology imbalance of labelled nodes: Totoro scores, ReNode weights, node classification.",
    )
    command = subcommands(top)
    training = command("train", _train, "train on the whole graph: splits x initialisations")
    scores = command("score", _score, "Totoro score and ReNode weight of each labelled node; no training")
    pictures = command("plot", _plot, "pictures of the scores and weights")
    for parser in (training, scores, pictures):
        labels = SplitOptions if parser is training else LabelOptions
        for title, part in (("graph", GraphOptions), ("split", labels), ("ReNode", WeightOptions)):
            part.add_to(parser.add_argument_group(title))
        parser.add_argument("--out", default="runs/renode", help="folder of results or files [%(default)s]")

    ModelOptions.add_to(training.add_argument_group("model and loss"))
    Recipe.add_to(training.add_argument_group("training"))
    training.add_argument("--splits", type=int, help="split seeds 0, 1, ... [5, or all public ones] (released: 5)")
    training.add_argument("--inits", type=int, default=3, help="seeds of each split [%(default)s] (released: 3)")
    training.add_argument("--device", default="auto", help="auto, cpu, cuda, ... [%(default)s]")
    for parser in (scores, pictures):
        parser.add_argument("--split-seed", type=int, default=0, help="which split [%(default)s]")
    pictures.add_argument("--layout-nodes", type=int, default=400, help="at most, of the layout [%(default)s]")
    large = command("train-large", _train_large, "train on a graph too large for that: PPRGo, in mini-batches")
    if chosen == "train-large":  # its libraries take seconds to load
        from graph.renode.large import add_arguments

        add_arguments(large)
    return top


def main(arguments: Sequence[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parser(arguments[0] if arguments else None).parse_args(arguments)
    options.function(options)


if __name__ == "__main__":
    main()
