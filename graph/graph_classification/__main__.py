"""Encouraging loss on TU data sets."""

from __future__ import annotations

from typing import Any

from fairseq_ext.training.compare import Pair, compare_experiments
from fairseq_ext.training.program import Program
from graph.graph_classification.options import Options
from graph.graph_classification.splits import Protocol
from graph.graph_classification.train import PROTOCOL, run, spread_of_repeats

main = Program("graph.graph_classification", __doc__)


@main.command
def train(options: Options, protocol: Protocol) -> str:
    """Train on every split; a command that was killed is resumed."""
    experiment = run(options, protocol)
    names = ("test_accuracy", "test_balanced_accuracy", "test_roc_auc", "epochs", "bonus_epochs")
    report = experiment.report(*names)
    if protocol.repeats > 1:
        return f"test_accuracy of the repeats ± {spread_of_repeats(experiment.runs):.4f}\n{report}"
    return report


@main.command
def compare(pair: Pair) -> list[dict[str, Any]]:
    """Paired differences of the figures of two experiments, second minus first, and what they were trained with."""
    return compare_experiments(pair.first, pair.second, pair.metric, PROTOCOL)


if __name__ == "__main__":
    main()
