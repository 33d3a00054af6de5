"""Multi-label text classification with a label graph and soft training."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from fairseq_ext.training.errors import DataError, OptionError
from fairseq_ext.training.files import output_folder, write_json
from fairseq_ext.training.flags import Runs
from fairseq_ext.training.options import OptionSet, option
from fairseq_ext.training.program import Program
from graph.label_graph.classifier import Classifier
from graph.label_graph.data import SPLITS, label_matrix, read_file, read_splits, unknown_labels
from graph.label_graph.metrics import METRICS
from graph.label_graph.options import Options, fixed_threshold
from graph.label_graph.plot import draw_label_graph, format_pairs, strongest_pairs
from graph.label_graph.synthetic import HIDDEN, synthesize
from graph.label_graph.train import run, score

main = Program("graph.label_graph", __doc__)


@dataclass(frozen=True, kw_only=True)
class LabelGraphRuns(Runs):
    """Runs of the experiment; finished ones are not run again."""

    out: str = option("runs/label_graph", "folder of results and models")


@dataclass(frozen=True, kw_only=True)
class ModelOptions(OptionSet):
    """The trained model."""

    model: str = option("runs/label_graph/seed1/model.pt", "its file")

    def load(self) -> Classifier:
        return Classifier.load(self.model)


@dataclass(frozen=True, kw_only=True)
class PredictionOptions(ModelOptions):
    """The trained model, and when it predicts a label."""

    threshold: str = option("", "a label is predicted above this probability (default: that of the model)")

    def load(self) -> Classifier:
        classifier = super().load()
        if self.threshold:
            classifier.threshold = fixed_threshold(self.threshold)
        return classifier


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions(PredictionOptions):
    """The trained model, and what it is evaluated on."""

    data: str = option("", "folder in any form that train reads (default: that of the training)")
    split: str = option("test", "which part of it", SPLITS)


@dataclass(frozen=True, kw_only=True)
class TextOptions(PredictionOptions):
    """The trained model, and what it labels."""

    file: str = option(
        help="a .txt with a text a line, - for such lines from the standard input, or .json/.tsv", positional=True
    )


@dataclass(frozen=True, kw_only=True)
class PlotOptions(ModelOptions):
    """The trained model, and what is drawn of it."""

    pairs: int = option(20, "number of pairs", least=1)
    out: str = option("", "folder of label_graph.png and label_pairs.json (default: that of the model)")


@dataclass(frozen=True, kw_only=True)
class AlbumOptions(OptionSet):
    """The made-up data."""

    out: str = option("runs/label_graph_data", "folder")
    albums: int = option(1000, "number of albums (music data: 7172)")
    reviews: int = option(10, "reviews of an album (music data: 40)", least=1)
    hidden_styles: str = option(",".join(HIDDEN), "styles that no review tells")
    seed: int = option(0, "of all that is drawn", least=0)


@main.command
def train(options: Options, runs: LabelGraphRuns) -> None:
    """Train with one or more seeds, choose the epoch by validation, score on test."""
    experiment = run(options, runs)
    summary = experiment.summary()
    thresholds = {run["threshold_source"] for run in experiment.runs.values()}
    for name in METRICS:
        print(f"test {name} {summary[name]['mean']:.4f} +- {summary[name]['std']:.4f}")
    print(f"{len(experiment.runs)} runs, threshold {options.threshold} ({', '.join(thresholds)}): {experiment.file}")


@main.command
def evaluate(options: EvaluationOptions) -> None:
    """Metrics of a trained model at its threshold, as JSON."""
    classifier = options.load()
    samples = read_splits(options.data or classifier.options.data)[options.split]
    gold = label_matrix(samples, classifier.labels)
    if not gold.any():
        raise DataError(f"--data: no sample of {options.split} has a label that {options.model} knows")
    found = {
        **score(classifier, classifier.encode(samples), gold),
        "threshold": classifier.threshold,
        "samples": len(samples),
        "unknown_labels": unknown_labels(samples, classifier.labels),
    }
    print(json.dumps(found, indent=2, ensure_ascii=False))


@main.command
def predict(options: TextOptions) -> None:
    """Labels and probabilities of new texts, one JSON line each."""
    classifier = options.load()
    samples = read_file(options.file, need_labels=False)
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


@main.command
def plot(options: PlotOptions) -> None:
    """Heat map of the learned label graph, and its strongest pairs."""
    classifier = options.load()
    if classifier.network.label_graph is None:
        raise OptionError(f"--model {options.model} has no label graph (it was trained with --arm han)")
    folder = output_folder(options.out or Path(options.model).parent)
    graph = classifier.network.label_graph.weight
    pairs = strongest_pairs(graph, classifier.labels, options.pairs)
    draw_label_graph(graph, classifier.labels, folder / "label_graph.png")
    write_json(folder / "label_pairs.json", pairs)
    print(f"{format_pairs(pairs)}\n{folder / 'label_graph.png'}, {folder / 'label_pairs.json'}")


@main.command
def _synthesize(options: AlbumOptions) -> None:
    """Write made-up albums with the style counts of the music data."""
    hidden = [style for style in options.hidden_styles.split(",") if style]
    synthesize(options.out, options.albums, seed=options.seed, hidden=hidden, reviews=options.reviews)
    print(f"{options.albums} albums in {options.out}")


if __name__ == "__main__":
    main()
