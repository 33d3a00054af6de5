"""Multi-label text classification with a label graph and soft training."""

from __future__ import annotations

from dataclasses import dataclass

from fairseq_ext.training.compare import compare
from fairseq_ext.training.flags import Runs
from fairseq_ext.training.options import option
from fairseq_ext.training.program import Program
from graph.label_graph.evaluate import evaluate, predict
from graph.label_graph.metrics import METRICS
from graph.label_graph.options import Options
from graph.label_graph.plot import plot
from graph.label_graph.synthetic import synthesize
from graph.label_graph.train import run

main = Program("graph.label_graph", __doc__)


@dataclass(frozen=True, kw_only=True)
class LabelGraphRuns(Runs):
    """Runs of the experiment; finished ones are not run again."""

    out: str = option("runs/label_graph", "folder of results and models")


@main.command
def train(options: Options, runs: LabelGraphRuns) -> str:
    """Train with one or more seeds, choose the epoch by validation, score on test."""
    return run(options, runs).report(*METRICS)


for command in (evaluate, predict, compare, plot, synthesize):
    main.command(command)


if __name__ == "__main__":
    main()
