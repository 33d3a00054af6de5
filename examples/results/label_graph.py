"""Multi-label text classification: attention network, label graph, soft training."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.svm import LinearSVC

from examples.results.report import asked, environments, mean_spread, seeds, unique
from fairseq_ext.training.errors import DataError
from fairseq_ext.training.flags import Runs
from graph.label_graph.data import label_matrix, label_names, read_splits
from graph.label_graph.metrics import multilabel_metrics, tune_threshold
from graph.label_graph.options import Options
from graph.label_graph.train import run

DATASETS = ("mams_acsa", "netflix_genres")
ARMS = {"han": "attention network", "graph": "+ label graph", "soft": "+ soft training"}
METRICS = {"one_error": "one-error", "hamming_loss": "Hamming loss", "micro_f1": "micro F1", "macro_f1": "macro F1"}
SVM = "linear SVM, TF-IDF"
# Small sets of single sentences; all of it is our choice, and the same for every arm.
SETTINGS = {
    "embedding": "learned",
    "max_words": 40,
    "hidden_size": 64,
    "batch_size": 32,
    "start_eval": 1,
    "threshold": "tuned",
}

TEXT = """## {heading}

Test set, mean ± spread over {runs} seeds; one-error and Hamming loss: less is better.
{settings}. {environment}.

    python -m examples.results {command}

| system | {metrics} |
|---|---|---|---|---|
{rows}
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--datasets", nargs="+", choices=DATASETS, default=list(DATASETS), help="data sets")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 1 on")
    parser.add_argument("--epochs", type=int, default=10, help="passes over the training set")


SELECTS = "datasets"


def names(options: argparse.Namespace) -> list[str]:
    return [f"label_graph_{dataset}" for dataset in options.datasets]


def measure(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Every arm on every data set, and the linear SVM."""
    settings = ", ".join(f"{name} {value}" for name, value in (*SETTINGS.items(), ("epochs", options.epochs)))
    for dataset in options.datasets:
        data = options.data / "multilabel" / dataset
        if not data.is_dir():
            raise DataError(f"--data: {data} is not a folder with {{train,valid,test}}.tsv.gz")
        rows: list[dict[str, Any]] = [{"dataset": dataset, "system": SVM, "runs": {"": linear_svm(data)}}]
        recorded: list[dict[str, Any]] = []
        for arm, name in ARMS.items():
            choice = Options(data=str(data), arm=arm, **SETTINGS, epochs=options.epochs)
            out = str(options.out / "label_graph" / f"{dataset}-{arm}")
            experiment = run(choice, Runs(out=out, runs=options.seeds))
            runs = asked(experiment.runs, seeds(options.seeds))
            recorded += [run["environment"] for run in runs.values()]
            scores = {seed: {key: run[key] for key in METRICS} for seed, run in runs.items()}
            rows.append({"dataset": dataset, "system": name, "runs": scores})
            print(dataset, name, _cells(rows[-1]), flush=True)
        content = {"name": f"label_graph_{dataset}", "settings": settings, "environments": unique(recorded)}
        yield {**content, "rows": rows}


def linear_svm(data: Path) -> dict[str, float]:
    """One linear SVM a label on TF-IDF of words; the threshold on the margin is tuned as that of the networks."""
    splits = read_splits(data)
    names = label_names(splits["train"])
    text = {split: [" ".join(sample.reviews) for sample in samples] for split, samples in splits.items()}
    gold = {split: label_matrix(samples, names).numpy() for split, samples in splits.items()}
    model = make_pipeline(TfidfVectorizer(), OneVsRestClassifier(LinearSVC())).fit(text["train"], gold["train"])
    threshold = tune_threshold(model.decision_function(text["valid"]), gold["valid"])
    return multilabel_metrics(model.decision_function(text["test"]), gold["test"], threshold)


def _cells(row: dict[str, Any]) -> str:
    columns = [[run[metric] for run in row["runs"].values()] for metric in METRICS]
    return " | ".join(mean_spread(values, 3) for values in columns)


def heading(content: dict[str, Any]) -> str:
    """Of the section with the table."""
    return f"Label graph: {content['rows'][0]['dataset']}"


def section(contents: list[dict[str, Any]]) -> str:
    """A table for each data set."""
    parts = []
    for content in contents:
        rows = content["rows"]
        parts.append(
            TEXT.format(
                heading=heading(content),
                runs=max(len(row["runs"]) for row in rows),
                settings=content["settings"],
                environment=environments(content),
                command=content["command"],
                metrics=" | ".join(METRICS.values()),
                rows="\n".join(f"| {row['system']} | {_cells(row)} |" for row in rows),
            )
        )
    return "\n".join(parts)
