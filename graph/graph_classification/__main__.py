"""Encouraging loss on TU data sets."""

from __future__ import annotations

from dataclasses import dataclass

from fairseq_ext.training.options import OptionSet, option
from fairseq_ext.training.program import Program
from graph.graph_classification.compare import compare, spread_of_repeats
from graph.graph_classification.options import Options
from graph.graph_classification.splits import Protocol
from graph.graph_classification.train import run

main = Program("graph.graph_classification", __doc__)


@dataclass(frozen=True, kw_only=True)
class Pair(OptionSet):
    """The two experiments."""

    first: str = option(help="folder of results", positional=True)
    second: str = option(help="another one, of the same splits", positional=True)


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
def _compare(pair: Pair) -> dict[str, float]:
    """Paired differences of the test accuracies of two experiments, second minus first."""
    return compare(pair.first, pair.second)


if __name__ == "__main__":
    main()
