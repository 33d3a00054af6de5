"""Node classification graphs by name or file."""

from __future__ import annotations

import contextlib
import copy
import difflib
import importlib
import inspect
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch_geometric.datasets
import torch_geometric.transforms as T
from scipy import sparse
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.data.data import DataEdgeAttr, DataTensorAttr
from torch_geometric.data.storage import AttrType, GlobalStorage
from torch_geometric.utils import index_to_mask

from fairseq_ext.training.errors import CheckpointError, DataError, OptionError, choose, one_line
from fairseq_ext.training.files import load_safely, safe_loads_only
from fairseq_ext.training.options import OptionSet, option
from fairseq_ext.training.settings import digest
from graph.inputs import as_labels, as_tensor, edges_of
from graph.processed import current
from graph.renode.npz import MASKS, read_npz

__all__ = ["DATASETS", "GraphOptions", "check_graph", "graph_digest", "has_root", "is_file", "load_graph"]

# Short names; every other class of torch_geometric.datasets is "Class" or "Class:name", such as "CitationFull:DBLP".
DATASETS = {
    **{name: f"Planetoid:{name}" for name in ("Cora", "CiteSeer", "PubMed")},
    **{name: f"Amazon:{name}" for name in ("Photo", "Computers")},
    **{name: f"Coauthor:{name}" for name in ("CS", "Physics")},
    **{name: name for name in ("WikiCS", "Reddit", "Flickr", "KarateClub")},
    **{name: name for name in ("ogbn-arxiv", "ogbn-products", "ogbn-papers100M")},
}


def _plain_dict(*_: Any) -> dict:
    """Stands for ``collections.defaultdict``, which torch's safe loader cannot fill."""
    return {}


_ARRAY = np.zeros(1)
GRAPH_TYPES = [
    *(Data, GlobalStorage, DataEdgeAttr, DataTensorAttr, AttrType, (_plain_dict, "collections.defaultdict")),
    *(np.ndarray, np.dtype, _ARRAY.__reduce__()[0], _ARRAY[0].__reduce__()[0]),
    *(type(np.dtype(code)) for code in np.typecodes["All"] if code not in "OV"),
]
"""What a saved graph is made of beside tensors. Each only holds data."""


@contextlib.contextmanager
def _graph_types() -> Iterator[None]:
    """Within, torch's safe loader knows ``GRAPH_TYPES``; afterwards what it knew before."""
    before = torch.serialization.get_safe_globals()
    # Where two of its types have one name it takes either: torch_geometric allows defaultdict itself.
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals([kind for kind in before if kind is not defaultdict] + GRAPH_TYPES)
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def load_graph(
    name: str,
    root: str | Path = "data",
    *,
    normalize_features: bool = False,
    to_undirected: bool = False,
    need_features: bool = True,
) -> Data:
    """A checked graph with ``x``, ``edge_index`` and ``y``.

    Args:
        name: one of ``DATASETS``; ``Class`` or ``Class:name`` of ``torch_geometric.datasets``; an ``.npz`` file in the
            layout of ``torch_geometric.datasets.Amazon``; or a ``.pt`` file with a ``Data`` (or the dict of one), read
            by torch's safe loader.
        root: data sets by name live in ``root/<name>``; those of torch_geometric download themselves to it.
        normalize_features: apply :class:`torch_geometric.transforms.NormalizeFeatures`: x' = (x - m) / max(s, 1), with
            the least feature m of all nodes, and s the sum of x - m of the node. Features of 0 and 1 then sum to 1, but
            a sum below 1 is kept. Default: raw, as the released code.
        to_undirected: add the reverse of every edge. Default: the edges as they are.
        need_features: False leaves the features of an ``.npz`` unread, and takes a graph without any.

    Raises:
        OptionError: no such data set; ``normalize_features`` where it changes nothing.
        DataError: the data set cannot be had, or :func:`check_graph` refuses it.
    """
    path = Path(name)
    if path.suffix == ".pt":
        data = _read_pt(path)
    elif path.suffix == ".npz":
        data = _read_npz(path, need_features)
    else:
        data = _load_dataset(name, Path(root))
    data = check_graph(data, name, need_features)
    if to_undirected:
        data = T.ToUndirected()(data)
    if not normalize_features:
        return data
    raw = data.x
    data = T.NormalizeFeatures()(data)
    if data.x.allclose(raw):
        raise OptionError(f"--normalize-features: changes nothing in {name}: no features sum to more than 1")
    return data


def is_file(name: str) -> bool:
    """Whether :func:`load_graph` takes ``name`` for a file."""
    return Path(name).suffix in (".pt", ".npz")


def has_root(name: str) -> bool:
    """Whether ``root`` matters to :func:`load_graph`: not to a file, nor to a data set that is part of its package."""
    if is_file(name):
        return False
    class_name = DATASETS.get(name, name).partition(":")[0]
    factory = getattr(torch_geometric.datasets, class_name, None)
    return not inspect.isclass(factory) or "root" in inspect.signature(factory).parameters


def _read_pt(path: Path) -> Data:
    try:
        with _graph_types():
            content = load_safely(path)
    except CheckpointError as error:
        if not (kind := re.search(r"it holds (torch_geometric\.\S+),", str(error))):
            raise
        raise DataError(
            f"{path}: holds more than one Data (it holds {kind[1]}): save one Data, or its dict, such as "
            "torch.save(data.to_dict(), FILE); of a HeteroData, hetero.to_homogeneous().to_dict()"
        ) from error
    # Made anew from its parts: what a file says of the inner state of a Data may be of another version, or made up.
    try:
        parts = content.to_dict() if isinstance(content, Data) else content
    except Exception as error:  # its state can be anything
        raise DataError(f"{path}: a damaged Data ({one_line(error)})") from error
    if not isinstance(parts, dict) or not all(isinstance(key, str) for key in parts):
        raise DataError(f"{path}: holds a {type(content).__name__}, not a torch_geometric Data")
    return Data.from_dict(parts)


def _read_npz(path: Path, need_features: bool) -> Data:
    # torch_geometric's reader would turn every feature above 0 into 1.
    graph = read_npz(path, need_features=need_features)
    x = graph.x.toarray() if isinstance(graph.x, sparse.csr_array) else graph.x
    return Data(edge_index=graph.edge_index, x=x, y=graph.y, **graph.masks)


def _load_dataset(name: str, root: Path) -> Data:
    load = _ogb_loader(name, root) if name.startswith("ogbn-") else _pyg_loader(name, root)
    try:
        # Their own files are read by torch's safe loader too, which knows no graphs; what it refuses stays refused,
        # where torch_geometric would go on to the unsafe one.
        with _graph_types(), safe_loads_only():
            return load()
    except Exception as error:  # whatever a constructor, a download or a damaged raw file raises
        raise DataError(f"--dataset {name}: not available under --root {root} ({one_line(error)})") from error


def _pyg_loader(name: str, root: Path) -> Callable[[], Data]:
    class_name, _, variant = DATASETS.get(name, name).partition(":")
    classes = {key for key, value in vars(torch_geometric.datasets).items() if inspect.isclass(value)}
    if class_name not in classes:
        # All class names would fill a screen: the nearest one is enough.
        choose("--dataset", name, [*DATASETS, *difflib.get_close_matches(class_name, classes, n=1)])
    factory = getattr(torch_geometric.datasets, class_name)
    parameters = inspect.signature(factory).parameters
    options: dict[str, Any] = {}
    if bool(variant) != ("name" in parameters):
        several = f"holds several graphs; name one, as {class_name}:NAME"
        raise OptionError(f"--dataset: {class_name} {'is one graph, without names' if variant else several}")
    if variant:
        options["name"] = variant
    if "root" in parameters:
        # Where the class makes a folder for each name itself, the root is the one given.
        options["root"] = str(root if variant else root / class_name)
    return lambda: current(factory, **options)[0]


def _ogb_loader(name: str, root: Path) -> Callable[[], Data]:
    choose("--dataset", name, DATASETS)
    try:
        ogb = importlib.import_module("ogb.nodeproppred")
    except ImportError as error:
        raise DataError(f"--dataset {name} needs the package ogb: pip install ogb") from error

    def load() -> Data:
        dataset = ogb.PygNodePropPredDataset(name, root=str(root))
        data = dataset[0]
        for split, ids in dataset.get_idx_split().items():
            data[{"valid": "val_mask"}.get(split, f"{split}_mask")] = index_to_mask(ids, data.num_nodes)
        return data

    return load


def check_graph(data: Data, name: str = "graph", need_features: bool = True) -> Data:
    """``data`` with ``edge_index`` and labels of int64, where it is a graph that can be trained on, or scored.

    Public masks are tensors afterwards, where they can be, so that :func:`graph_digest` reads the masks that are used.

    A label of -1, or NaN, marks a node without one.

    Raises:
        DataError: absent parts, labels or edges out of range, several labels per node, features that are complex, NaN
            or infinite, edges with weights other than 1, which nothing here reads.
    """
    for part in ("x", "y")[not need_features :]:
        if data.get(part) is None:
            raise DataError(f"{name}: the graph has no {part}")
    x = as_tensor(data.x, f"{name}: x") if need_features else None
    if x is not None and x.dim() != 2:
        raise DataError(f"{name}: x must be (nodes, features), got shape {tuple(x.shape)}")
    if x is not None and x.is_complex():
        raise DataError(f"{name}: x must be real numbers, got {x.dtype}")
    y = as_labels(data.y, None if x is None else len(x), f"{name}: y")
    if y.numel() == 0 or y.max() < 0:
        raise DataError(f"{name}: y: no node has a label")
    if y.min() < -1:
        raise DataError(
            f"{name}: y: label {int(y.min())} of node {int(y.argmin())} is out of range, classes start at 0"
        )
    edges = edges_of(data, f"{name}: ")
    if edges.numel() and not 0 <= int(edges.min()) <= int(edges.max()) < len(y):
        bad = int(edges.min()) if edges.min() < 0 else int(edges.max())
        raise DataError(f"{name}: edge_index names node {bad}, the graph has nodes 0 to {len(y) - 1}")
    data = copy.copy(data)
    del data.adj_t  # the edges have one form from here on
    data.y, data.edge_index, data.num_nodes = y, edges, len(y)
    for part in MASKS:
        if data.get(part) is not None:
            with contextlib.suppress(DataError):  # refused where the split is asked for
                data[part] = as_tensor(data[part], part)
    if x is not None:
        data.x = (x if x.layout == torch.strided else x.to_dense()).float()
        finite = data.x.isfinite().all(1)
        if not finite.all():
            raise DataError(f"{name}: the features of node {int((~finite).nonzero()[0])} are NaN or infinite")
    return data


def graph_digest(data: Data) -> str:
    """SHA-256 of the names and contents of a graph's tensors."""
    tensors = {name: value for name, value in sorted(data.to_dict().items()) if isinstance(value, Tensor)}
    return digest(list(tensors), *tensors.values())


@dataclass(frozen=True, kw_only=True)
class GraphOptions(OptionSet):
    """Which graph."""

    dataset: str = option(
        "Cora",
        f"data set: {', '.join(DATASETS)}; a Class or Class:name of torch_geometric.datasets; an .npz file in the "
        "layout of Amazon's; or a .pt file with a Data",
    )
    root: str = option("data", "folder of the data sets, each in ROOT/NAME", outcome=False)
    to_undirected: bool = option(False, "add the reverse of every edge (default: edges as they are; always in an .npz)")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not has_root(self.dataset):
            self.refuse_idle(f"with --dataset {self.dataset}", "root")
        if Path(self.dataset).suffix == ".npz":
            self.refuse_idle("with an .npz file, whose edges are always undirected", "to_undirected")

    def load(self, **how: bool) -> Data:
        """The graph, as :func:`load_graph` with ``how``."""
        return load_graph(self.dataset, self.root, to_undirected=self.to_undirected, **how)
