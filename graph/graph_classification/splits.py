"""Splits of graphs into training, validation and test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from sklearn.model_selection import StratifiedKFold
from torch import Tensor
from torch_geometric.data import Data, Dataset

from fairseq_ext.training.errors import DataError, OptionError
from fairseq_ext.training.flags import Device
from fairseq_ext.training.options import check_seeds, option, seed_option
from fairseq_ext.training.runs import run_name
from fairseq_ext.training.settings import digest
from graph.inputs import as_labels, node_ids

__all__ = ["Protocol", "Split", "class_labels", "classes_of", "random_splits", "stratified_folds"]


def class_labels(dataset: Dataset) -> Tensor:
    """The class of every graph, int64 of shape (graphs).

    Raises:
        DataError: a graph has no ``y``, several values, or a value that is no class number.
    """
    classes = [getattr(graph, "y", None) for graph in dataset]
    for number, y in enumerate(classes):
        if y is None or torch.as_tensor(y).numel() != 1:
            count = 0 if y is None else torch.as_tensor(y).numel()
            raise DataError(f"dataset: graph {number} has {count} labels y; each graph must have one class")
    return _as_classes([torch.as_tensor(y).item() for y in classes], "dataset: y")


def classes_of(batch: Data) -> Tensor:
    """The class of each graph of a batch, whatever the shape and type of ``y``."""
    return batch.y.view(-1).long()


def _as_classes(labels: Any, name: str = "labels") -> Tensor:
    """Class numbers as int64 of shape (n), from a tensor, array or list, also from a column or from whole floats."""
    classes = as_labels(labels, name=name)
    if (classes < 0).any():
        raise DataError(f"{name}: graph {int((classes < 0).nonzero()[0])} has no class number from 0 on")
    return classes


class Split(NamedTuple):
    """One run: its name, such as ``repeat0-fold3``, its seed, and the graphs of each part."""

    name: str
    seed: int
    train: Tensor
    valid: Tensor
    test: Tensor

    @property
    def digest(self) -> str:
        """SHA-256 of the seed and the graphs of each part."""
        return digest(self.seed, self.train, self.valid, self.test)

    def checked(self, graphs: int) -> Split:
        """The same split with its parts as int64 numbers, whether they were numbers, masks or arrays.

        Raises:
            DataError: a part is empty, is out of range, or shares graphs with another part.
        """
        names = ("train", "valid", "test")
        parts = [node_ids(getattr(self, name), graphs, f"split: {name}", of="graph") for name in names]
        for name, part in zip(names, parts, strict=True):
            if not len(part):
                raise DataError(f"split: {name} has no graph")
        every = torch.cat(parts)
        if len(every.unique()) < len(every):
            raise DataError("split: a graph is in two parts")
        return Split(self.name, self.seed, *parts)


def random_splits(labels: Tensor, runs: int, repeats: int = 1, seed: int = 0) -> list[Split]:
    """``repeats x runs`` random splits into 80, 10 and 10 percent: the published protocol."""
    labels = _as_classes(labels)
    tenth = len(labels) // 10
    if not tenth:
        raise DataError(f"--dataset: {len(labels)} graphs, a random split needs at least 10")
    splits = []
    for number in range(repeats * runs):
        generator = torch.Generator().manual_seed(seed + number)
        valid, test, train = torch.randperm(len(labels), generator=generator).split(
            [tenth, tenth, len(labels) - 2 * tenth]
        )
        name = run_name(repeat=number // runs, run=number % runs)
        splits.append(Split(name, seed + number, train, valid, test))
    return splits


def stratified_folds(labels: Tensor, folds: int, repeats: int = 1, seed: int = 0) -> list[Split]:
    """The splits of ``repeats`` cross-validations: each fold is the test set once, and the next fold validates."""
    if folds < 3:
        raise OptionError(f"--folds: {folds}, must be at least 3: one tests, one validates, the others train")
    labels = _as_classes(labels)
    counts = labels.bincount()
    smallest = int(counts[counts > 0].min())
    if folds > smallest:
        raise OptionError(f"--folds: {folds}, but the smallest class has {smallest} graphs")
    splits = []
    for repeat in range(repeats):
        shuffled = StratifiedKFold(folds, shuffle=True, random_state=seed + repeat)
        parts = [torch.from_numpy(test) for _, test in shuffled.split(labels, labels)]
        for fold in range(folds):
            tested, validated = fold, (fold + 1) % folds
            train = torch.cat([part for number, part in enumerate(parts) if number not in (tested, validated)])
            run_seed = seed + repeat * folds + fold
            name = run_name(repeat=repeat, fold=fold)
            splits.append(Split(name, run_seed, train, parts[validated], parts[tested]))
    return splits


@dataclass(frozen=True, kw_only=True)
class Protocol(Device):
    """Runs of the experiment; finished ones are not run again."""

    out: str = option("", "folder of results (default: runs/graph_classification/DATASET-LOSS)")
    runs: int = option(10, "number of random 80/10/10 splits (paper's code: 50)", least=1)
    folds: int = option(
        0, "folds of a stratified cross-validation, in place of random splits; 0: random splits", least=0
    )
    repeats: int = option(1, "repetitions of all runs or folds (paper's code: 5)", least=1)
    seed: int = seed_option(0, "seed of the first run; the others count on")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.folds:
            self.refuse_idle(f"with --folds {self.folds}", "runs")
        check_seeds(self.seed, self.repeats * (self.folds or self.runs))

    def splits(self, labels: Tensor) -> list[Split]:
        """The split of every run, given the class of every graph.

        Raises:
            OptionError: ``--folds`` that the classes do not allow.
            DataError: too few graphs.
        """
        if self.folds:
            return stratified_folds(labels, self.folds, self.repeats, self.seed)
        return random_splits(labels, self.runs, self.repeats, self.seed)
