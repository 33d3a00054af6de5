"""A trained model on texts: metrics where they have labels, predicted labels where they have none."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fairseq_ext.training.errors import DataError
from fairseq_ext.training.options import SPLITS, OptionSet, option
from fairseq_ext.training.progress import progress
from graph.label_graph.classifier import Predictor
from graph.label_graph.data import label_matrix, read_file, read_splits, unknown_labels
from graph.label_graph.epoch import score

__all__ = ["evaluate", "predict"]


@dataclass(frozen=True, kw_only=True)
class Labelled(OptionSet):
    """What it is evaluated on."""

    data: str = option(help="folder in any form that train reads")
    split: str = option("test", "split of the data", SPLITS)


def evaluate(model: Predictor, labelled: Labelled) -> dict[str, Any]:
    """Metrics of a trained model at its threshold, as JSON.

    Raises:
        DataError: no sample has a label that the model knows.
    """
    classifier = model.load()
    samples = read_splits(labelled.data)[labelled.split]
    gold = label_matrix(samples, classifier.labels)
    if not gold.any():
        raise DataError(f"--data: no sample of {labelled.split} has a label that {model.model} knows")
    return {
        **score(classifier, classifier.encode(samples), gold),
        "threshold": classifier.threshold,
        "data": labelled.data,
        "samples": len(samples),
        "unknown_labels": unknown_labels(samples, classifier.labels),
    }


@dataclass(frozen=True, kw_only=True)
class Texts(OptionSet):
    """What it labels."""

    file: str = option(
        help="texts to label: a .txt with a text a line, - for such lines from the standard input, or .json/.tsv",
        positional=True,
    )


def predict(model: Predictor, texts: Texts) -> Iterator[dict[str, Any]]:
    """Labels and probabilities of new texts, one JSON line each."""
    classifier = model.load()
    samples = read_file(texts.file, need_labels=False)
    size = classifier.options.batch_size  # the ids of all samples may not fit into memory
    batches = (classifier.encode(samples[first : first + size]) for first in range(0, len(samples), size))
    rows = (row for ids in batches for row in classifier.probabilities(ids).tolist())
    bar = progress(samples, "texts", unit=" texts")
    for number, (sample, row) in enumerate(zip(bar, rows, strict=True), 1):
        ranked = sorted(zip(classifier.labels, row, strict=True), key=lambda pair: -pair[1])
        yield {
            "number": number,
            "text": "\n".join(sample.reviews),
            "labels": [label for label, probability in ranked if probability > classifier.threshold],
            "probabilities": {label: round(probability, 4) for label, probability in ranked},
        }
