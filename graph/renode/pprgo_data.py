"""Graphs too large for one pass over all nodes: features that stay sparse or on disk, and inductive splits."""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import sparse
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.utils import remove_self_loops, to_undirected

from fairseq_ext.training.errors import DataError, OptionError, choose
from graph.renode.inputs import as_edges, as_labels
from graph.renode.pagerank import binary_adjacency

__all__ = ["IMBALANCES", "InductiveSplit", "LargeGraph", "inductive_split", "read_large_graph"]


@dataclass(frozen=True)
class LargeGraph:
    """Edges, features and classes.

    Args:
        edge_index: (2, E) edges; duplicates count once, and neither directions nor self-loops are added.
        x: (n, F) features: an array, a memory map (only the rows in use are read), a tensor or a scipy CSR array.
        y: (n,) classes, an array or a tensor.

    Raises:
        DataError: where they do not fit one another, a label is negative, or a feature is NaN or infinite.
    """

    edge_index: Tensor
    x: np.ndarray | sparse.csr_array
    y: np.ndarray

    def __post_init__(self) -> None:
        given: dict[str, Any] = {
            "edge_index": as_edges(self.edge_index),
            "x": self.x.numpy() if isinstance(self.x, Tensor) else self.x,
            "y": as_labels(self.y, name="labels").numpy(),
        }
        for name, value in given.items():
            object.__setattr__(self, name, value)  # frozen, but for other forms of the same
        if self.x.ndim != 2 or self.x.shape[0] != len(self.y):
            raise DataError(f"features: found shape {self.x.shape} for {len(self.y)} labels")
        if not (np.issubdtype(self.x.dtype, np.number) or self.x.dtype == np.bool_):
            raise DataError(f"features: numbers are needed, found {self.x.dtype}")
        if not len(self.y) or self.y.min() < 0:
            raise DataError("labels: every node needs a class, and classes are numbered from 0")
        values = self.x.data if sparse.issparse(self.x) else self.x
        # Blocks, so that a memory map is never held as a whole.
        if not all(np.isfinite(values[start : start + 65536]).all() for start in range(0, len(values), 65536)):
            raise DataError("features: NaN or infinite values")

    @property
    def num_classes(self) -> int:
        return int(self.y.max()) + 1

    @property
    def adjacency(self) -> sparse.csr_array:
        """(n, n) float32 ones, made anew from the edges each time.

        Raises:
            DataError: where an edge names a node that does not exist.
        """
        return binary_adjacency(self.edge_index, len(self.y)).astype(np.float32)

    @classmethod
    def from_data(cls, data: Data) -> LargeGraph:
        """The same graph as torch_geometric holds it."""
        return cls(data.edge_index, data.x, data.y)


IMBALANCES = ("tinl", "qinl")
_CSR_PARTS = ("data", "indices", "indptr", "shape")


def _csr(arrays: np.lib.npyio.NpzFile, name: str, path: Path) -> sparse.csr_array:
    joint = "." if f"{name}.data" in arrays else "_"
    keys = [f"{name}{joint}{part}" for part in _CSR_PARTS]
    missing = [key for key in keys if key not in arrays]
    if missing:
        raise DataError(f"{path}: no array {missing[0]!r}; expected adj_* and attr_* (data, indices, indptr, shape)")
    data, indices, indptr, shape = (arrays[key] for key in keys)
    matrix = sparse.csr_array((data.astype(np.float32, copy=False), indices, indptr), shape=tuple(shape))
    matrix.check_format(full_check=True)  # torch's sparse products would read beyond the end
    return matrix


@contextlib.contextmanager
def _reading(path: str | Path) -> Iterator[None]:
    """Errors within become one line that names ``path``."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or 'cannot be read'}") from error
    except Exception as error:  # damaged files make the readers of zip and numpy raise many types
        reason = str(error).removeprefix(f"{path}: ") or type(error).__name__
        raise DataError(f"{path}: {reason.splitlines()[0]}") from error


def read_large_graph(path: str | Path, features: str | Path | None = None) -> LargeGraph:
    """A graph from PPRGo's .npz layout, which is also that of torch_geometric's ``Amazon`` data sets.

    Arrays ``adj_data, adj_indices, adj_indptr, adj_shape`` (CSR), ``labels``, and either ``attr_data, ...`` (CSR) or a
    dense ``attr_matrix``; a dot may stand for the underscore. Like torch_geometric's reader of this layout, edges are
    made undirected, and self-loops and weights are dropped; unlike there, features are not made binary. Nothing is
    ever unpickled.

    Args:
        features: an ``.npy`` file of an (n, F) array instead of the ``attr`` arrays. It is memory-mapped.

    Raises:
        DataError: where a file or array is missing, or they do not fit one another.
    """
    path = Path(path)
    if not zipfile.is_zipfile(path):
        raise DataError(f"{path}: {'not an .npz file' if path.exists() else 'no such file'}")
    with _reading(path), np.load(path, allow_pickle=False) as arrays:
        adjacency, y = _csr(arrays, "adj", path), arrays["labels"]
        if features is None:
            x = arrays["attr_matrix"] if "attr_matrix" in arrays else _csr(arrays, "attr", path)
    if features is not None:
        with _reading(features):
            x = np.load(features, mmap_mode="r", allow_pickle=False)
        if not isinstance(x, np.ndarray):
            raise DataError(f"{features}: holds several arrays; an .npy file holds one")
    if adjacency.shape != (y.size, y.size):
        raise DataError(f"{path}: found adj_shape {adjacency.shape} for {y.size} labels")
    edges = adjacency.tocoo()
    edge_index, _ = remove_self_loops(torch.from_numpy(np.stack([edges.row, edges.col])).long())
    with _reading(path if features is None else features):
        return LargeGraph(to_undirected(edge_index, num_nodes=y.size), x, y)


class InductiveSplit(NamedTuple):
    """Sorted node ids."""

    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray


def inductive_split(y: np.ndarray, train_each: int = 50, imbalance: str = "tinl", seed: int = 0) -> InductiveSplit:
    """The inductive splits of the released ReNode code, seeds included.

    ``tinl`` (topology imbalance only): walking a random permutation, ``train_each`` nodes of each class train;
    the 1.5 times as many nodes of each class that come first *by id* among the rest validate. ``qinl`` (quantity
    imbalance too): the first ``classes * train_each`` nodes of the permutation train, the next 1.5 times as many
    validate. Everything left is for testing.

    Args:
        y: (n,) classes.
        train_each: 50, which is the released default (its grid: 20, 50, 100).

    Raises:
        OptionError: where a class has too few nodes, or training would see no node of a class.
    """
    choose("--imbalance", imbalance, IMBALANCES)
    if train_each < 1:
        raise OptionError(f"--train-each must be at least 1, got {train_each}")
    y = as_labels(y).numpy()
    classes, valid_each = int(y.max()) + 1, int(1.5 * train_each)
    order = np.random.RandomState(seed).permutation(len(y))
    if imbalance == "qinl":
        borders = [classes * train_each, classes * (train_each + valid_each)]
        train, valid, test = np.split(order, borders)
        absent = np.setdiff1d(np.arange(classes), y[train])
        if len(absent):
            raise OptionError(f"--train-each {train_each} leaves class {absent[0]} without training nodes")
    else:
        train = _first_of_each_class(order, y, train_each, classes)
        valid = _first_of_each_class(np.setdiff1d(order, train), y, valid_each, classes)
        test = np.setdiff1d(order, np.concatenate([train, valid]))
    if not len(test):
        raise OptionError(f"--train-each {train_each} leaves none of {len(y)} nodes for testing")
    return InductiveSplit(np.sort(train), np.sort(valid), np.sort(test))


def _first_of_each_class(order: np.ndarray, y: np.ndarray, quota: int, classes: int) -> np.ndarray:
    chosen = [order[y[order] == label][:quota] for label in range(classes)]
    for label, ids in enumerate(chosen):
        if len(ids) < quota:
            raise OptionError(f"--train-each: class {label} has {len(ids)} of the {quota} nodes that it needs")
    return np.concatenate(chosen)
