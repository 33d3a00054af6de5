"""Multi-label text classification with a label graph and soft training: python -m graph.label_graph COMMAND."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from fairseq_ext.errors import DataError, OptionError
from fairseq_ext.experiments import torch_device
from fairseq_ext.files import output_folder, write_json
from fairseq_ext.options import at_least, subcommands
from graph.label_graph.classifier import Classifier
from graph.label_graph.data import label_matrix, read_file, read_splits, unknown_labels
from graph.label_graph.metrics import METRICS
from graph.label_graph.options import Options, fixed_threshold
from graph.label_graph.plot import draw_label_graph, format_pairs, strongest_pairs
from graph.label_graph.synthetic import HIDDEN, synthesize
from graph.label_graph.train import run, score


def _train(arguments: argparse.Namespace) -> None:
    at_least(arguments, runs=1, seed=0)
    options = Options.of(arguments)
    experiment = run(options, arguments.out, arguments.seed, arguments.runs, torch_device(arguments.device))
    summary = experiment.summary()
    thresholds = {run["threshold_source"] for run in experiment.runs.values()}
    for name in METRICS:
        print(f"test {name} {summary[name]['mean']:.4f} +- {summary[name]['std']:.4f}")
    print(f"{len(experiment.runs)} runs, threshold {options.threshold} ({', '.join(thresholds)}): {experiment.file}")


def _evaluate(arguments: argparse.Namespace) -> None:
    classifier = _classifier(arguments)
    samples = read_splits(arguments.data or classifier.options.data)[arguments.split]
    gold = label_matrix(samples, classifier.labels)
    if not gold.any():
        raise DataError(f"--data: no sample of {arguments.split} has a label that {arguments.model} knows")
    found = {
        **score(classifier, classifier.encode(samples), gold),
        "threshold": classifier.threshold,
        "samples": len(samples),
        "unknown_labels": unknown_labels(samples, classifier.labels),
    }
    print(json.dumps(found, indent=2, ensure_ascii=False))


def _predict(arguments: argparse.Namespace) -> None:
    classifier = _classifier(arguments)
    samples = read_file(arguments.file, need_labels=False)
    size = classifier.options.batch_size  # the ids of all samples may not fit into memory
    batches = (classifier.encode(samples[first : first + size]) for first in range(0, len(samples), size))
    rows = (row for ids in batches for row in classifier.probabilities(ids).tolist())
    for number, (sample, row) in enumerate(zip(samples, rows, strict=True), 1):
        ranked = sorted(zip(classifier.labels, row, strict=True), key=lambda pair: -pair[1])
        found = {
            "number": number,
            "text": "\n".join(sample.reviews),
            "labels": [label for label, probability in ranked if probability > classifier.threshold],
            "probabilities": {label: round(probability, 4) for label, probability in ranked},
        }
        print(json.dumps(found, ensure_ascii=False))


def _classifier(arguments: argparse.Namespace) -> Classifier:
    """The model of the command line, at its ``--threshold`` where one is given."""
    classifier = Classifier.load(arguments.model)
    if arguments.threshold is not None:
        classifier.threshold = fixed_threshold(arguments.threshold)
    return classifier


def _plot(arguments: argparse.Namespace) -> None:
    at_least(arguments, pairs=1)
    classifier = Classifier.load(arguments.model)
    if classifier.network.label_graph is None:
        raise OptionError(f"--model {arguments.model} has no label graph (it was trained with --arm han)")
    folder = output_folder(arguments.out or Path(arguments.model).parent)
    graph = classifier.network.label_graph.weight
    pairs = strongest_pairs(graph, classifier.labels, arguments.pairs)
    draw_label_graph(graph, classifier.labels, folder / "label_graph.png")
    write_json(folder / "label_pairs.json", pairs)
    print(f"{format_pairs(pairs)}\n{folder / 'label_graph.png'}, {folder / 'label_pairs.json'}")


def _synthesize(arguments: argparse.Namespace) -> None:
    at_least(arguments, reviews=1, seed=0)
    hidden = [style for style in arguments.hidden.split(",") if style]
    synthesize(arguments.out, arguments.albums, seed=arguments.seed, hidden=hidden, reviews=arguments.reviews)
    print(f"{arguments.albums} albums in {arguments.out}")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="python -m graph.label_graph", description=__doc__)
    command = subcommands(top)

    train = command("train", _train, "train with one or more seeds, choose the epoch by validation, score on test")
    train.add_argument("--out", default="runs/label_graph", help="folder of results and models [runs/label_graph]")
    train.add_argument("--seed", type=int, default=1, help="first seed [1] (paper's code: 1)")
    train.add_argument("--runs", type=int, default=1, help="number of seeds [1]")
    train.add_argument("--device", default="auto", help="auto, cpu, cuda, ... [auto]")
    Options.add_to(train)

    evaluate = command("evaluate", _evaluate, "metrics of a trained model at its threshold, as JSON")
    evaluate.add_argument("--data", help="folder in any form that train reads [that of the training]")
    evaluate.add_argument("--split", default="test", choices=("train", "valid", "test"), help="[test]")
    predict = command("predict", _predict, "labels and probabilities of new texts, one JSON line each")
    predict.add_argument(
        "file", help="a .txt with a text a line, - for such lines from the standard input, or .json/.tsv"
    )
    for made in (evaluate, predict):
        made.add_argument("--threshold", help="a label is predicted above this probability [that of the model]")
    plot = command("plot", _plot, "heat map of the learned label graph, and its strongest pairs")
    plot.add_argument("--pairs", type=int, default=20, help="number of pairs [20]")
    plot.add_argument("--out", help="folder of label_graph.png and label_pairs.json [that of the model]")
    for made in (evaluate, predict, plot):
        made.add_argument("--model", default="runs/label_graph/seed1/model.pt", help="[%(default)s]")

    make = command("synthesize", _synthesize, "write made-up albums with the style counts of the music data")
    make.add_argument("--out", default="runs/label_graph_data", help="folder [%(default)s]")
    make.add_argument("--albums", type=int, default=1000, help="number of albums [%(default)s] (music data: 7172)")
    make.add_argument("--reviews", type=int, default=10, help="reviews of an album [%(default)s] (music data: 40)")
    make.add_argument("--hidden", default=",".join(HIDDEN), help="styles that no review tells [%(default)s]")
    make.add_argument("--seed", type=int, default=0, help="[%(default)s]")
    return top


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    options.function(options)


if __name__ == "__main__":
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `predict | head` ends without a traceback
    main(sys.argv[1:])
