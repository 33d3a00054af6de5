"""Files in PPRGo's ``.npz`` layout, which is also that of torch_geometric's ``Amazon`` data sets."""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy import sparse
from torch import Tensor
from torch_geometric.utils import remove_self_loops, to_undirected

from fairseq_ext.training.errors import DataError

__all__ = ["NpzGraph", "read_npz", "reading"]

_CSR_PARTS = ("data", "indices", "indptr", "shape")


def _csr(arrays: np.lib.npyio.NpzFile, name: str, path: Path) -> sparse.csr_array:
    joint = "." if f"{name}.data" in arrays else "_"
    keys = [f"{name}{joint}{part}" for part in _CSR_PARTS]
    missing = [key for key in keys if key not in arrays]
    if missing:
        raise DataError(f"{path}: no array {missing[0]!r}; expected adj_* and attr_* (data, indices, indptr, shape)")
    data, indices, indptr, shape = (arrays[key] for key in keys)
    if np.iscomplexobj(data):
        raise DataError(f"{path}: {keys[0]} must be real numbers, got {data.dtype}")
    matrix = sparse.csr_array((data.astype(np.float32, copy=False), indices, indptr), shape=tuple(shape))
    matrix.check_format(full_check=True)  # torch's sparse products would read beyond the end
    return matrix


@contextlib.contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Errors within become one line that names ``path``."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or 'cannot be read'}") from error
    except Exception as error:  # damaged files make the readers of zip and numpy raise many types
        reason = str(error).removeprefix(f"{path}: ") or type(error).__name__
        raise DataError(f"{path}: {reason.splitlines()[0]}") from error


class NpzGraph(NamedTuple):
    """Edges (2, E), features (n, F) where they were asked for, and labels, as a file has them."""

    edge_index: Tensor
    x: np.ndarray | sparse.csr_array | None
    y: np.ndarray


def read_npz(path: str | Path, features: str | Path | None = None, need_features: bool = True) -> NpzGraph:
    """The content of a file.

    Arrays ``adj_data, adj_indices, adj_indptr, adj_shape`` (CSR), ``labels``, and either ``attr_data, ...`` (CSR) or a
    dense ``attr_matrix``; a dot may stand for the underscore. Like torch_geometric's reader of this layout, edges are
    made undirected, and self-loops and weights are dropped; unlike there, features are not made binary. Nothing is
    ever unpickled.

    Args:
        features: an ``.npy`` file of an (n, F) array instead of the ``attr`` arrays. It is memory-mapped.
        need_features: False leaves them unread.

    Raises:
        DataError: where a file or array is missing or damaged, or the labels do not fit the edges.
    """
    path = Path(path)
    if not zipfile.is_zipfile(path):
        raise DataError(f"{path}: {'not an .npz file' if path.exists() else 'no such file'}")
    x = None
    with reading(path), np.load(path, allow_pickle=False) as arrays:
        adjacency, y = _csr(arrays, "adj", path), arrays["labels"]
        if need_features and features is None:
            x = arrays["attr_matrix"] if "attr_matrix" in arrays else _csr(arrays, "attr", path)
    if need_features and features is not None:
        with reading(features):
            x = np.load(features, mmap_mode="r", allow_pickle=False)
        if not isinstance(x, np.ndarray):
            raise DataError(f"{features}: holds several arrays; an .npy file holds one")
    if adjacency.shape != (y.size, y.size):
        raise DataError(f"{path}: adj_shape {adjacency.shape} for {y.size} labels")
    edges = adjacency.tocoo()
    edge_index, _ = remove_self_loops(torch.from_numpy(np.stack([edges.row, edges.col])).long())
    return NpzGraph(to_undirected(edge_index, num_nodes=y.size), x, y)
