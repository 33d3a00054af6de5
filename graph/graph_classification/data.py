"""TU data sets by name, and the splits of their graphs into training, validation and test."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from sklearn.model_selection import StratifiedKFold
from torch import Tensor
from torch_geometric.data import Data, InMemoryDataset
from torch_geometric.datasets import TUDataset
from torch_geometric.transforms import BaseTransform
from torch_geometric.utils import degree

from fairseq_ext.errors import DataError, OptionError, choose
from fairseq_ext.settings import digest

__all__ = ["CappedDegree", "Split", "dataset_digest", "load_dataset", "random_splits", "stratified_folds"]

# Some of the classification data sets of https://chrsmrrs.github.io/datasets: a name that differs from one of them, or
# of those in --root, by a letter or two is taken for a typing error before anything is downloaded.
TU_NAMES = (
    *("AIDS", "BZR", "COLLAB", "COX2", "DBLP_v1", "DD", "DHFR", "ENZYMES", "FRANKENSTEIN", "github_stargazers"),
    *("IMDB-BINARY", "IMDB-MULTI", "KKI", "MSRC_9", "MSRC_21", "MUTAG", "Mutagenicity", "NCI1", "NCI109", "OHSU"),
    *("PROTEINS", "PROTEINS_full", "PTC_FM", "PTC_FR", "PTC_MM", "PTC_MR", "REDDIT-BINARY", "REDDIT-MULTI-5K"),
    *("REDDIT-MULTI-12K", "SYNTHETIC", "Synthie", "TRIANGLES", "Tox21_AhR_training", "twitch_egos", "Yeast"),
)


class CappedDegree(BaseTransform):
    """One-hot node degree as features, for data sets without any; degrees from ``cap`` on share one entry."""

    def __init__(self, cap: int = 127) -> None:
        self.cap = cap

    def forward(self, data: Data) -> Data:
        degrees = degree(data.edge_index[0], data.num_nodes, dtype=torch.long).clamp(max=self.cap)
        data.x = F.one_hot(degrees, self.cap + 1).float()
        return data


def load_dataset(root: str | Path, name: str, use_node_attr: bool = False) -> TUDataset:
    """The TU data set ``name`` under ``root``, in PyG's layout; downloaded by PyG where absent.

    Node labels are the features, with ``use_node_attr`` after the node attributes; a data set with neither gets
    :class:`CappedDegree` (our choice).

    Raises:
        OptionError: a name that looks mistyped; the message has the nearest one.
        DataError: files that are absent and cannot be downloaded, cannot be read, or do not fit together.
    """
    root = Path(root)
    present = {path.parent.parent.name for path in root.glob("*/raw/*_A.txt")}
    known = sorted(present.union(TU_NAMES))
    if difflib.get_close_matches(name, known, n=1, cutoff=0.85):
        choose("--dataset", name, known)
    try:
        dataset = TUDataset(str(root), name, use_node_attr=use_node_attr)
    except Exception as error:  # downloads, and files that do not fit together, fail in many places and types
        problem = "cannot read" if name in present else "not there, and cannot be downloaded:"
        reason = " ".join(str(error).split()[:30])
        raise DataError(f"--dataset {name}: {problem} {root / name} ({type(error).__name__}: {reason})") from error
    labels = getattr(dataset, "y", None)
    if labels is None or labels.is_floating_point() or labels.numel() != len(dataset):
        found = "no labels" if labels is None else f"{labels.numel()} labels of type {labels.dtype}"
        raise DataError(f"--dataset {name}: {len(dataset)} graphs, but {found}; each graph must have one class")
    if dataset.num_classes < 2:
        raise DataError(f"--dataset {name}: all graphs are of one class")
    for number, graph in enumerate(dataset):
        try:
            graph.validate()
        except ValueError as error:  # an edge from one graph to another, above all
            raise DataError(f"--dataset {name}: graph {number} of {root / name}: {error}") from error
    if not dataset.num_node_features:
        dataset.transform = CappedDegree()
    elif not dataset.x.isfinite().all():
        raise DataError(f"--dataset {name}: node features hold {int((~dataset.x.isfinite()).sum())} NaN or infinities")
    return dataset


def dataset_digest(dataset: InMemoryDataset) -> str:
    """SHA-256 of all graphs by content."""
    stored = dataset._data.to_dict()
    names = sorted(name for name, value in stored.items() if isinstance(value, Tensor))
    return digest(names, *(stored[name] for name in names), *(dataset.slices[name] for name in names))


class Split(NamedTuple):
    """One run: its name ``repeat/number``, its seed, and the graphs of each part."""

    name: str
    seed: int
    train: Tensor
    valid: Tensor
    test: Tensor


def random_splits(labels: Tensor, runs: int, repeats: int = 1, seed: int = 0) -> list[Split]:
    """``repeats x runs`` random splits of 80, 10 and 10 percent, the published protocol."""
    tenth = len(labels) // 10
    if not tenth:
        raise DataError(f"--dataset: {len(labels)} graphs, a random split needs at least 10")
    splits = []
    for number in range(repeats * runs):
        generator = torch.Generator().manual_seed(seed + number)
        valid, test, train = torch.randperm(len(labels), generator=generator).split(
            [tenth, tenth, len(labels) - 2 * tenth]
        )
        splits.append(Split(f"{number // runs}/{number % runs}", seed + number, train, valid, test))
    return splits


def stratified_folds(labels: Tensor, folds: int, repeats: int = 1, seed: int = 0) -> list[Split]:
    """``repeats x folds`` cross-validation: each fold is the test set once, with the next one for validation."""
    if folds < 3:
        raise OptionError(f"--folds: {folds}, must be at least 3: one tests, one validates, the others train")
    smallest = int(labels.bincount().min())
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
            splits.append(Split(f"{repeat}/{fold}", run_seed, train, parts[validated], parts[tested]))
    return splits
