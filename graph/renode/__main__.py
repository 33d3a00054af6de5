"""Topology imbalance of labelled nodes: Totoro scores, ReNode weights, node classification."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from fairseq_ext.training.compare import Pair, compare_experiments
from fairseq_ext.training.program import Program
from graph.renode import train as full_batch
from graph.renode import train_large as mini_batch
from graph.renode.inductive_split import InductiveSplitOptions
from graph.renode.options import LargeOptions, LargeRuns, PlotFiles, ScoreFiles, ScoreOptions, TrainOptions, TrainRuns
from graph.renode.plot import draw
from graph.renode.score import scored_graph, write_scores
from graph.renode.splits import SplitOptions

main = Program("graph.renode", __doc__)


@main.command
def train(options: TrainOptions, runs: TrainRuns) -> str:
    """Train on the whole graph: splits x initialisations."""
    return full_batch.run(options, runs).report("weighted_f1", "macro_f1")


@main.command
def score(options: ScoreOptions, files: ScoreFiles) -> dict[str, Any]:
    """Totoro score and ReNode weight of each labelled node; no training."""
    return write_scores(scored_graph(options, files.split_seed), files.out)


@main.command
def plot(options: ScoreOptions, files: PlotFiles) -> str:
    """Figures of the scores and weights."""
    return "\n".join(map(str, draw(options, files)))


@main.shared_command
def train_large(options: LargeOptions, runs: LargeRuns) -> str:
    """Train on a graph too large for that: PPRGo, in mini-batches."""
    return mini_batch.run(options, runs).report("weighted_f1", "macro_f1")


@main.command
def compare(pair: Pair) -> list[dict[str, Any]]:
    """Paired differences of the figures of two experiments, second minus first, and what they were trained with."""
    splits = [item.name for kind in (SplitOptions, InductiveSplitOptions) for item in fields(kind)]
    return compare_experiments(pair.first, pair.second, pair.metric, splits)


if __name__ == "__main__":
    main()
