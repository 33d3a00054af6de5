"""Graphs too large for one pass over all nodes: features that stay sparse or on disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse
from torch import Tensor
from torch_geometric.data import Data

from fairseq_ext.training.errors import DataError
from fairseq_ext.training.options import option
from fairseq_ext.training.settings import digest
from graph.inputs import as_edges, as_labels, edges_of
from graph.renode.data import GraphOptions
from graph.renode.npz import MASKS, read_npz, reading
from graph.renode.pagerank import binary_adjacency

__all__ = ["LargeGraph", "LargeGraphOptions", "read_large_graph"]

# Values that are checked at a time.
BLOCK = 1 << 20


@dataclass(frozen=True)
class LargeGraph:
    """Edges, features and classes.

    Args:
        edge_index: (2, E) edges; duplicates count once, and neither directions nor self-loops are added.
        x: (n, F) features: an array, a memory map, a tensor or a scipy CSR array. A memory map is read as a whole here,
            which looks for NaN, and by ``digest``, but never held as a whole; else only the rows in use are read.
        y: (n,) classes, an array or a tensor.
        masks: the graph's own ``train_mask``, ``val_mask`` and ``test_mask``, where it has them.

    Raises:
        DataError: they do not fit each other, a label is negative, or a feature is complex, NaN or infinite.
    """

    edge_index: Tensor
    x: np.ndarray | sparse.csr_array
    y: np.ndarray
    masks: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        given: dict[str, Any] = {
            "edge_index": as_edges(self.edge_index),
            "x": self.x.numpy() if isinstance(self.x, Tensor) else self.x,
            "y": as_labels(self.y, name="labels").numpy(),
        }
        for name, value in given.items():
            object.__setattr__(self, name, value)  # the class is frozen; the value is the same in another form
        if self.x.ndim != 2 or self.x.shape[0] != len(self.y):
            raise DataError(f"features: got shape {self.x.shape} for {len(self.y)} labels")
        if np.iscomplexobj(self.x) or not (np.issubdtype(self.x.dtype, np.number) or self.x.dtype == np.bool_):
            raise DataError(f"features: real numbers are needed, got {self.x.dtype}")
        if not len(self.y) or self.y.min() < 0:
            raise DataError("labels: every node needs a class, and classes are numbered from 0")
        if not _all_finite(np.asarray(self.x.data if sparse.issparse(self.x) else self.x)):
            raise DataError("features: NaN or infinite values")

    @property
    def num_classes(self) -> int:
        return int(self.y.max()) + 1

    @property
    def adjacency(self) -> sparse.csr_array:
        """The adjacency matrix of float32 ones, (n, n), made anew from the edges each time.

        Raises:
            DataError: an edge names a node that does not exist.
        """
        return binary_adjacency(self.edge_index, len(self.y)).astype(np.float32)

    @property
    def digest(self) -> str:
        """SHA-256 of edges, features and classes."""
        x = self.x
        features = (x.data, x.indices, x.indptr) if isinstance(x, sparse.csr_array) else (x,)
        return digest(self.edge_index, self.y, x.shape, *features)

    @classmethod
    def from_data(cls, data: Data) -> LargeGraph:
        """The graph that a ``Data`` of torch_geometric holds.

        Raises:
            DataError: it has no edges, or weights of edges other than 1.
        """
        masks = {name: data[name] for name in MASKS if data.get(name) is not None}
        return cls(edges_of(data, "data."), data.x, data.y, masks)


def _all_finite(values: np.ndarray) -> bool:
    """Whether no value is NaN or infinite, found out a block of rows at a time, whatever the shape."""
    rows = max(1, BLOCK * len(values) // max(1, values.size))
    return all(np.isfinite(values[start : start + rows]).all() for start in range(0, len(values), rows))


def read_large_graph(path: str | Path, features: str | Path | None = None) -> LargeGraph:
    """A graph from one file, or from two if features lie apart: see :func:`~graph.renode.npz.read_npz`.

    Raises:
        DataError: a file or array is missing, or they do not fit each other.
    """
    content = read_npz(path, features)
    with reading(path if features is None else features):
        return LargeGraph(*content)


@dataclass(frozen=True, kw_only=True)
class LargeGraphOptions(GraphOptions):
    """Which graph."""

    features: str = option("", "file (.npy) with the features of an .npz graph, left on disk (default: those in it)")

    def __post_init__(self) -> None:
        super().__post_init__()
        if Path(self.dataset).suffix != ".npz":
            self.refuse_idle(f"with --dataset {self.dataset}, but with an .npz file", "features")

    def load_large(self) -> LargeGraph:
        """The graph, read by :func:`read_large_graph` if in ``.npz``, else by :func:`~graph.renode.data.load_graph`."""
        if Path(self.dataset).suffix == ".npz":
            return read_large_graph(self.dataset, self.features or None)
        return LargeGraph.from_data(self.load())
