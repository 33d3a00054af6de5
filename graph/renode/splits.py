"""Splits of a graph's nodes into labelled, validation and test nodes."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data

from fairseq_ext.training.errors import DataError, OptionError, choose
from fairseq_ext.training.options import option
from graph.inputs import as_labels
from graph.renode.public_split import public_labelled, public_split, public_splits
from graph.renode.split_kind import KINDS, SplitKind

__all__ = [
    "IMBALANCES",
    "LabelOptions",
    "Split",
    "SplitOptions",
    "count_splits",
    "first_of_each_class",
    "labelled_nodes",
    "make_split",
    "quotas",
    "room",
]

IMBALANCES = ("none", "step")


@dataclass(frozen=True)
class Split:
    """Node ids. ``train`` keeps the order in which the nodes were drawn; ``valid`` and ``test`` ascend."""

    train: Tensor
    valid: Tensor
    test: Tensor


def quotas(
    y: Tensor,
    imbalance: str = "none",
    *,
    train_each: int = 20,
    labeling_ratio: float = 0.05,
    imbalance_ratio: float = 5.0,
    head_classes: Sequence[int] = (0, 1, 2),
) -> list[int]:
    r"""Labelled nodes of each class.

    ``"none"``: ``train_each`` of each class. ``"step"``: with :math:`\delta` the labelling ratio and
    :math:`\rho` the imbalance ratio, and H head classes out of C,

    .. math::
        base = \lfloor n \delta / (C - H + H \rho) \rfloor, \qquad \text{head } \lfloor base\,\rho \rfloor, \quad
        \text{others } base

    Raises:
        OptionError: an option out of its range, or one that leaves a class without labelled nodes.
    """
    choose("--imbalance", imbalance, IMBALANCES)
    classes = int(y.max()) + 1
    if imbalance == "none":
        if train_each < 1:
            raise OptionError(f"--train-each must be at least 1, got {train_each}")
        return [train_each] * classes
    heads = set(head_classes)
    if not heads <= set(range(classes)):
        raise OptionError(f"--head-classes: {sorted(heads)} must be among the classes 0 to {classes - 1}")
    if not 0 < labeling_ratio < 1 or imbalance_ratio <= 0:
        raise OptionError(
            f"--labeling-ratio must be in (0, 1) and --imbalance-ratio positive, got {labeling_ratio} {imbalance_ratio}"
        )
    base = int(len(y) * labeling_ratio / (classes - len(heads) + len(heads) * imbalance_ratio))
    if base < 1 or int(base * imbalance_ratio) < 1:
        raise OptionError(
            f"--labeling-ratio {labeling_ratio} of {len(y)} nodes at --imbalance-ratio {imbalance_ratio} "
            "leaves a class without labelled nodes"
        )
    return [int(base * imbalance_ratio) if label in heads else base for label in range(classes)]


def make_split(data: Data, kind: str = "compat", seed: int = 0, *, valid_each: int = 30, **imbalance: Any) -> Split:
    """Labelled, validation and test nodes, all among those that have a label.

    ``"compat"`` is what the released code draws from the same seed. The labelled nodes come first in a shuffled list;
    validation takes, for each class, the *lowest ids* that are left, so that it is nearly the same set for every seed.
    ``"random"`` labels the same nodes and goes on along the shuffled list for validation. In both, every other node is
    for testing. ``"public"`` reads ``train_mask``, ``val_mask`` and ``test_mask``; of masks with several columns the
    seed takes one.

    Args:
        data: the graph.
        kind: one of ``KINDS``.
        seed: of the shuffle, or the column of public masks.
        valid_each: validation nodes of each class.
        **imbalance: arguments of :func:`quotas`.

    Raises:
        OptionError, DataError: a wrong option; too few nodes of a class; absent, empty or overlapping masks; a class
            without labelled nodes.
    """
    choose("--split-kind", kind, KINDS)
    if kind == "public":
        return Split(*public_split(data, seed))
    if valid_each < 1:
        raise OptionError(f"--valid-each must be at least 1, got {valid_each}")
    labels = as_labels(data.y, name="data.y")
    y, order = labels.cpu().numpy(), _shuffled(len(labels), seed)
    fits = "--train-each and --valid-each fit if together at most {}"
    if imbalance.get("imbalance", "none") != "none":
        fits = "lower --labeling-ratio or --valid-each"
    fits = fits.format(room(y, 2))
    train = _drawn(labels, order, imbalance, fits)
    rest, quota = order if kind == "random" else np.arange(len(y)), [valid_each] * (int(y.max()) + 1)
    valid = first_of_each_class(rest[~np.isin(rest, train)], y, quota, "--valid-each", fits)
    test = np.setdiff1d(np.flatnonzero(y >= 0), np.concatenate([train, valid]))
    if not len(test):
        raise OptionError(f"--train-each, --valid-each: none of the {len(y)} nodes is left for testing")
    return Split(*map(torch.from_numpy, (train, np.sort(valid), test)))


def labelled_nodes(data: Data, kind: str = "compat", seed: int = 0, **imbalance: Any) -> Tensor:
    """Ids of the labelled nodes of :func:`make_split`, which need no others: of a public split only ``train_mask``."""
    choose("--split-kind", kind, KINDS)
    if kind == "public":
        return public_labelled(data, seed)
    y = as_labels(data.y, name="data.y")
    equal = imbalance.get("imbalance", "none") == "none"
    fits = f"--train-each fits if at most {room(y.cpu().numpy(), 1)}" if equal else "lower --labeling-ratio"
    return torch.from_numpy(_drawn(y, _shuffled(len(y), seed), imbalance, fits))


def _shuffled(size: int, seed: int) -> np.ndarray:
    order = list(range(size))
    # Python's generator: the released splits are its shuffle.
    random.Random(seed).shuffle(order)
    return np.array(order)


def _drawn(y: Tensor, order: np.ndarray, imbalance: dict[str, Any], fits: str) -> np.ndarray:
    quota = quotas(y, **imbalance)
    return first_of_each_class(order, y.cpu().numpy(), quota, "--train-each or --labeling-ratio", fits)


def room(y: np.ndarray, parts: int) -> int:
    """The most nodes per class that a split can take.

    Args:
        y: (n,) classes; below 0 a node has none.
        parts: 1, the labelled nodes alone, or 2, which validate, too, and leave a node for testing.

    Raises:
        DataError: a class has fewer nodes than parts.
    """
    sizes = np.bincount(y[y >= 0])
    most = int(min(sizes.min(), (sizes.sum() - (parts > 1)) // len(sizes)))
    if most < parts:
        label = int(sizes.argmin())
        and_one = " and one for testing" * (parts > 1)
        raise DataError(f"class {label} has {sizes[label]} of the nodes, a split takes {parts} of each{and_one}")
    return most


def first_of_each_class(nodes: np.ndarray, y: np.ndarray, quota: Sequence[int], option: str, fits: str) -> np.ndarray:
    """The first of ``nodes`` in each class, in the order of ``nodes``.

    Args:
        nodes: node ids.
        y: (n,) classes; below 0 a node has none.
        quota: how many of each class of ``y``.
        option: what the message of an error begins with.
        fits: what it ends with: the values that :func:`room` allows.

    Raises:
        OptionError: a class has too few.
    """
    nodes = nodes[y[nodes] >= 0]
    found, wanted = np.bincount(y[nodes], minlength=len(quota)), np.array(quota)
    if (lacking := found < wanted).any():
        label = int(lacking.argmax())
        raise OptionError(f"{option}: class {label} has only {found[label]} of {wanted[label]} nodes left; {fits}")
    # One stable sort for all classes; in a class, places stay in the order of ``nodes`` and are counted from 0.
    places = np.argsort(y[nodes], kind="stable")
    rank = np.arange(len(nodes)) - np.repeat(np.cumsum(found) - found, found)
    return nodes[np.sort(places[rank < np.repeat(wanted, found)])]


def count_splits(data: Data, kind: str, wanted: int = 0) -> int:
    """How many splits to train on: ``wanted``, or 5 where it is 0, but no more than there are public ones.

    Raises:
        OptionError: ``wanted`` is more than the columns of the public ``train_mask``.
    """
    if kind != "public":
        return wanted or 5
    count = public_splits(data)
    if wanted > count:
        raise OptionError(f"--splits {wanted}: the graph has {count} public split{'s' * (count > 1)}")
    return wanted or min(5, count)


@dataclass(frozen=True, kw_only=True)
class LabelOptions(SplitKind):
    """Which of its nodes are labelled."""

    train_each: int = option(20, "labelled nodes a class (released: 20)", least=1, idle={"imbalance": ("step",)})
    imbalance: str = option(
        "none",
        "imbalance of the labelled nodes; step: head classes have --imbalance-ratio times as many (released: none)",
        IMBALANCES,
        idle={"split_kind": ("public",)},
    )
    labeling_ratio: float = option(
        0.05,
        "labelled share of all nodes, with --imbalance step (released: 0.01)",
        above=0,
        below=1,
        idle={"imbalance": ("none",)},
    )
    imbalance_ratio: float = option(
        5.0,
        "labelled nodes of a head class for one of another class, with --imbalance step (released: 1)",
        above=0,
        idle={"imbalance": ("none",)},
    )
    head_classes: tuple[int, ...] = option(
        (0, 1, 2), "numbers of the head classes, with --imbalance step (released: 0 1 2)", idle={"imbalance": ("none",)}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.split_kind == "public":
            self.refuse_idle("with --split-kind public", "train_each")
        if self.imbalance_ratio == 1:
            self.refuse_idle("with --imbalance-ratio 1", "head_classes")

    @property
    def equal_classes(self) -> bool:
        """Whether all classes have as many labelled nodes, by these options."""
        return self.split_kind != "public" and (self.imbalance == "none" or self.imbalance_ratio == 1)

    def labelled_nodes(self, data: Data, seed: int = 0) -> Tensor:
        """As :func:`labelled_nodes`."""
        return labelled_nodes(data, self.split_kind, seed, **self._quotas())

    def _quotas(self) -> dict[str, Any]:
        """The arguments of :func:`quotas`."""
        return {item.name: getattr(self, item.name) for item in fields(LabelOptions) if item.name != "split_kind"}


@dataclass(frozen=True, kw_only=True)
class SplitOptions(LabelOptions):
    """Which of its nodes are labelled, and which validate."""

    valid_each: int = option(30, "validation nodes a class (released: 30)", least=1, idle={"split_kind": ("public",)})

    def make_split(self, data: Data, seed: int = 0) -> Split:
        """As :func:`make_split`."""
        return make_split(data, self.split_kind, seed, valid_each=self.valid_each, **self._quotas())
