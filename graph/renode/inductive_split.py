"""Splits of a large graph's nodes: as the released code draws them, or its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch_geometric.data import Data

from fairseq_ext.training.errors import DataError, OptionError, choose
from fairseq_ext.training.options import option
from graph.inputs import as_labels
from graph.renode.large_graph import LargeGraph
from graph.renode.split_kind import SplitKind
from graph.renode.splits import first_of_each_class, make_split, room

__all__ = ["InductiveSplit", "InductiveSplitOptions", "inductive_split"]

LABEL_SAMPLINGS = ("tinl", "qinl")


class InductiveSplit(NamedTuple):
    """Sorted node ids."""

    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray


def inductive_split(
    y: np.ndarray, train_each: int = 50, label_sampling: str = "tinl", seed: int = 0, *, random_valid: bool = False
) -> InductiveSplit:
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
        random_valid: let ``tinl`` validate on those that come next along the permutation instead of by id. Default:
            as released.

    Raises:
        OptionError: where a class has too few nodes, or training would see no node of a class.
        DataError: a node without a class.
    """
    choose("--label-sampling", label_sampling, LABEL_SAMPLINGS)
    if train_each < 1:
        raise OptionError(f"--train-each must be at least 1, got {train_each}")
    y = as_labels(y).numpy()
    if (y < 0).any():
        raise DataError("y: every node needs a class, and classes are numbered from 0")
    classes, valid_each = int(y.max()) + 1, int(1.5 * train_each)
    order = np.random.RandomState(seed).permutation(len(y))
    if label_sampling == "qinl":
        borders = [classes * train_each, classes * (train_each + valid_each)]
        train, valid, test = np.split(order, borders)
        absent = np.setdiff1d(np.arange(classes), y[train])
        if len(absent):
            _, first = np.unique(y[order], return_index=True)
            hint = (
                f"; with this seed every class is drawn from {first.max() // classes + 1} on" if absent[0] in y else ""
            )
            raise OptionError(f"--train-each {train_each} leaves class {absent[0]} without training nodes{hint}")
    else:
        most = room(y, 2)
        fits = f"--train-each fits if at most {max(each for each in range(most) if each + int(1.5 * each) <= most)}"
        train = first_of_each_class(order, y, [train_each] * classes, "--train-each", fits)
        rest = order[~np.isin(order, train)] if random_valid else np.setdiff1d(order, train)
        option = "--train-each (of validation, 1.5 times as many)"
        valid = first_of_each_class(rest, y, [valid_each] * classes, option, fits)
        test = np.setdiff1d(order, np.concatenate([train, valid]))
    if not len(test):
        raise OptionError(f"--train-each {train_each} leaves none of {len(y)} nodes for testing")
    return InductiveSplit(np.sort(train), np.sort(valid), np.sort(test))


@dataclass(frozen=True, kw_only=True)
class InductiveSplitOptions(SplitKind):
    """Which nodes are labelled."""

    label_sampling: str = option(
        "tinl",
        "how labelled nodes are drawn; tinl (topology imbalance): as many of each class; qinl (quantity imbalance "
        "too): at random",
        LABEL_SAMPLINGS,
        aliases=("imbalance",),
        idle={"split_kind": ("public",)},
    )
    train_each: int = option(
        50, "labelled nodes a class (released: 50; its grid: 20, 50, 100)", least=1, idle={"split_kind": ("public",)}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.split_kind == "random" and self.label_sampling == "qinl":
            self.refuse_idle("with --label-sampling qinl, which draws validation nodes at random", "split_kind")

    def make_split(self, graph: LargeGraph, seed: int = 0) -> InductiveSplit:
        """As :func:`inductive_split`, or of the graph's own masks as :func:`~graph.renode.splits.make_split`."""
        if self.split_kind == "public":
            public = make_split(Data(y=torch.from_numpy(graph.y), **graph.masks), "public", seed)
            return InductiveSplit(*(np.sort(nodes.numpy()) for nodes in (public.train, public.valid, public.test)))
        return inductive_split(
            graph.y, self.train_each, self.label_sampling, seed, random_valid=self.split_kind == "random"
        )
