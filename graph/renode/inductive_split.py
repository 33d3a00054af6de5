"""Splits of a large graph's nodes, as the released code draws them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fairseq_ext.training.errors import OptionError, choose
from fairseq_ext.training.options import OptionSet, option
from graph.inputs import as_labels
from graph.renode.splits import first_of_each_class

__all__ = ["InductiveSplit", "InductiveSplitOptions", "inductive_split"]

LABEL_SAMPLINGS = ("tinl", "qinl")


class InductiveSplit(NamedTuple):
    """Sorted node ids."""

    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray


def inductive_split(y: np.ndarray, train_each: int = 50, label_sampling: str = "tinl", seed: int = 0) -> InductiveSplit:
    """The inductive splits of the released ReNode code, seeds included.

    ``tinl`` (topology imbalance only): walking a random permutation, ``train_each`` nodes of each class train;
    the 1.5 times as many nodes of each class that come first *by id* among the rest validate. ``qinl`` (quantity
    imbalance too): the first ``classes * train_each`` nodes of the permutation train, the next 1.5 times as many
    validate. Everything left is for testing.

    Args:
        y: (n,) classes.
        train_each: 50, which is the released default (its grid: 20, 50, 100).
        label_sampling: one of ``LABEL_SAMPLINGS``.
        seed: of the permutation. Default 0.

    Raises:
        OptionError: where a class has too few nodes, or training would see no node of a class.
    """
    choose("--label-sampling", label_sampling, LABEL_SAMPLINGS)
    if train_each < 1:
        raise OptionError(f"--train-each must be at least 1, got {train_each}")
    y = as_labels(y).numpy()
    classes, valid_each = int(y.max()) + 1, int(1.5 * train_each)
    order = np.random.RandomState(seed).permutation(len(y))
    if label_sampling == "qinl":
        borders = [classes * train_each, classes * (train_each + valid_each)]
        train, valid, test = np.split(order, borders)
        absent = np.setdiff1d(np.arange(classes), y[train])
        if len(absent):
            raise OptionError(f"--train-each {train_each} leaves class {absent[0]} without training nodes")
    else:
        train = first_of_each_class(order, y, [train_each] * classes, "--train-each")
        rest = np.setdiff1d(order, train)
        valid = first_of_each_class(rest, y, [valid_each] * classes, "--train-each (of validation, 1.5 times as many)")
        test = np.setdiff1d(order, np.concatenate([train, valid]))
    if not len(test):
        raise OptionError(f"--train-each {train_each} leaves none of {len(y)} nodes for testing")
    return InductiveSplit(np.sort(train), np.sort(valid), np.sort(test))


@dataclass(frozen=True, kw_only=True)
class InductiveSplitOptions(OptionSet):
    """Which nodes are labelled."""

    label_sampling: str = option(
        "tinl",
        "how labelled nodes are drawn; tinl (topology imbalance): as many of each class; qinl (quantity imbalance "
        "too): at random",
        LABEL_SAMPLINGS,
        aliases=("imbalance",),
    )
    train_each: int = option(50, "labelled nodes a class (released: 50; its grid: 20, 50, 100)", least=1)

    def make_split(self, y: np.ndarray, seed: int = 0) -> InductiveSplit:
        """As :func:`inductive_split`."""
        return inductive_split(y, self.train_each, self.label_sampling, seed)
