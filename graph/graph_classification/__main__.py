"""``python -m graph.graph_classification train|compare``: encouraging loss on TU data sets."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from fairseq_ext.training.options import at_least, subcommands
from fairseq_ext.training.runs import Experiment, torch_device
from fairseq_ext.training.settings import Settings

from .compare import compare, spread_of_repeats
from .data import dataset_digest, load_dataset
from .splits import random_splits, stratified_folds
from .train import DEFER_START, Options, train_all


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="python -m graph.graph_classification", description=__doc__)
    command = subcommands(top)

    train = command("train", train_command, "train on every split; a killed command goes on where it was")
    train.add_argument("--dataset", required=True, help="name of a TU data set: PROTEINS, NCI1, MUTAG, ...")
    train.add_argument("--root", type=Path, default=Path("data/TUDataset"), help="its folder (default: %(default)s)")
    train.add_argument("--out", type=Path, help="results (default: runs/graph_classification/DATASET-LOSS)")
    train.add_argument("--use-node-attr", action="store_true", help="node attributes as features too (default: labels)")
    protocol = train.add_mutually_exclusive_group()
    protocol.add_argument("--runs", type=int, default=10, help="random 80/10/10 splits (default: 10; paper: 50)")
    protocol.add_argument("--folds", type=int, help="stratified cross-validation instead of random splits")
    train.add_argument("--repeats", type=int, default=1, help="of all runs or folds (default: 1; paper: 5)")
    train.add_argument("--seed", type=int, default=0, help="of the first run; others count on (default: 0)")
    train.add_argument(
        "--device", default="auto", help="cpu, cuda, ...; auto: the GPU where there is one (default: auto)"
    )
    Options.add_to(train)
    train.set_defaults(defer_start=None)

    pairs = command("compare", compare_command, "paired differences of two result folders, second minus first")
    pairs.add_argument("first", type=Path)
    pairs.add_argument("second", type=Path)
    return top


def train_command(arguments: argparse.Namespace) -> None:
    """Check everything, then train."""
    if arguments.defer_start is None:
        published = DEFER_START if arguments.loss == "encouraging" else {}
        arguments.defer_start = published.get(arguments.dataset, Options.defer_start)
    options = Options.of(arguments)
    at_least(arguments, runs=1, repeats=1, seed=0)
    device = torch_device(arguments.device)
    dataset = load_dataset(arguments.root, arguments.dataset, arguments.use_node_attr)
    make_splits, runs = (
        (random_splits, arguments.runs) if arguments.folds is None else (stratified_folds, arguments.folds)
    )
    splits = make_splits(dataset.y, runs, arguments.repeats, arguments.seed)

    out = arguments.out or Path("runs/graph_classification") / f"{arguments.dataset}-{arguments.loss}"
    named = ("dataset", "use_node_attr", "folds", "runs", "repeats", "seed")
    inputs = {"graphs": dataset_digest(dataset)}
    recorded = Settings.of(options, inputs=inputs, **{name: getattr(arguments, name) for name in named})
    experiment = Experiment(out, recorded, packages=("torch-geometric",))
    train_all(dataset, splits, options, experiment, device)

    found = experiment.summary()
    spread = (
        f", ± {100 * spread_of_repeats(experiment.runs):.2f} of the repeats' means" if arguments.repeats > 1 else ""
    )
    more = {"balanced": "test_balanced_accuracy", "ROC-AUC": "test_roc_auc"}
    others = [f"{name} {100 * found[key]['mean']:.2f}" for name, key in more.items() if key in found]
    print(
        f"{arguments.dataset}, {arguments.loss}: test accuracy {100 * found['test_accuracy']['mean']:.2f}"
        f" ± {100 * found['test_accuracy']['std']:.2f} over {len(experiment.runs)} runs{spread}"
        f" ({', '.join(others)});"
        f" {found['epochs']['mean']:.0f} epochs a run, {found['bonus_epochs']['mean']:.0f} with the bonus"
    )
    print(f"results: {experiment.file}")


def compare_command(options: argparse.Namespace) -> None:
    """Print the comparison."""
    found = compare(options.first, options.second)
    print(
        f"{found['runs']} pairs: {100 * found['first']:.2f} -> {100 * found['second']:.2f},"
        f" difference {100 * found['difference']:+.2f} ± {100 * found['std']:.2f}"
        f" (better {found['better']}, equal {found['equal']}, worse {found['worse']})"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command."""
    options = parser().parse_args(argv)
    options.function(options)


if __name__ == "__main__":
    main()
