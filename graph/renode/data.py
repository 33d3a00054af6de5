"""Node classification graphs by name or file, and their splits into labelled, validation and test nodes."""

from __future__ import annotations

import copy
import difflib
import importlib
import inspect
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch_geometric.datasets
import torch_geometric.transforms as T
from scipy import sparse
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.data.data import DataEdgeAttr, DataTensorAttr
from torch_geometric.data.storage import GlobalStorage
from torch_geometric.utils import index_to_mask

from fairseq_ext.errors import DataError, OptionError, choose
from fairseq_ext.files import load_safely
from graph.renode.pprgo_data import read_large_graph

__all__ = [
    "DATASETS",
    "IMBALANCES",
    "SPLITS",
    "Split",
    "check_graph",
    "count_splits",
    "labelled_nodes",
    "load_graph",
    "make_split",
    "quotas",
]

# Short names; every other class of torch_geometric.datasets is "Class" or "Class:name", such as "CitationFull:DBLP".
DATASETS = {
    **{name: f"Planetoid:{name}" for name in ("Cora", "CiteSeer", "PubMed")},
    **{name: f"Amazon:{name}" for name in ("Photo", "Computers")},
    **{name: f"Coauthor:{name}" for name in ("CS", "Physics")},
    **{name: name for name in ("WikiCS", "Reddit", "Flickr", "KarateClub")},
    **{name: name for name in ("ogbn-arxiv", "ogbn-products", "ogbn-papers100M")},
}
SPLITS = ("compat", "random", "public")
IMBALANCES = ("none", "step")
GRAPH_TYPES = [DataEdgeAttr, DataTensorAttr, GlobalStorage, Data]
"""What a saved graph is made of beside tensors."""


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
        normalize_features: let the features of each node sum to 1. Default: raw, as the released code.
        to_undirected: add the reverse of every edge. Default: the edges as they are.
        need_features: False leaves the features of an ``.npz`` unread, and takes a graph without any.

    Raises:
        OptionError: no such data set.
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
    return T.NormalizeFeatures()(data) if normalize_features else data


def _read_pt(path: Path) -> Data:
    with torch.serialization.safe_globals(GRAPH_TYPES):
        content = load_safely(path)
    if isinstance(content, dict) and all(isinstance(key, str) for key in content):
        content = Data.from_dict(content)
    if not isinstance(content, Data):
        raise DataError(f"{path}: holds a {type(content).__name__}, not a torch_geometric Data")
    return content


def _read_npz(path: Path, need_features: bool) -> Data:
    # torch_geometric's reader would turn every feature above 0 into 1.
    graph = read_large_graph(path)
    data = Data(edge_index=graph.edge_index, y=torch.from_numpy(graph.y), num_nodes=len(graph.y))
    if need_features:
        data.x = torch.from_numpy(graph.x.toarray() if isinstance(graph.x, sparse.csr_array) else graph.x)
    return data


def _load_dataset(name: str, root: Path) -> Data:
    load = _ogb_loader(name, root) if name.startswith("ogbn-") else _pyg_loader(name, root)
    try:
        # Their own files are read by torch's safe loader too, which knows no graphs.
        with torch.serialization.safe_globals(GRAPH_TYPES):
            return load()
    except Exception as error:  # whatever a constructor, a download or a damaged raw file raises
        raise DataError(f"--dataset {name}: not available under --root {root} ({_first_line(error)})") from error


def _pyg_loader(name: str, root: Path) -> Callable[[], Data]:
    class_name, _, variant = DATASETS.get(name, name).partition(":")
    classes = {key for key, value in vars(torch_geometric.datasets).items() if inspect.isclass(value)}
    if class_name not in classes:
        # All class names would fill a screen: the nearest one is enough.
        choose("--dataset", name, [*DATASETS, *difflib.get_close_matches(class_name, classes, n=1)])
    factory = getattr(torch_geometric.datasets, class_name)
    known = inspect.signature(factory).parameters
    options: dict[str, Any] = {}
    if bool(variant) != ("name" in known):
        several = f"holds several graphs; name one, as {class_name}:NAME"
        raise OptionError(f"--dataset: {class_name} {'is one graph, without names' if variant else several}")
    if variant:
        options["name"] = variant
    if "root" in known:
        # Where the class makes a folder for each name itself, the root is the one given.
        options["root"] = str(root if variant else root / class_name)
    return lambda: factory(**options)[0]


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


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def check_graph(data: Data, name: str = "graph", need_features: bool = True) -> Data:
    """``data`` with labels as a vector of int64, where it is a graph that can be trained on, or scored.

    Raises:
        DataError: absent parts, labels or edges out of range, several labels a node, NaN or infinite features.
    """
    for part in ("x", "edge_index", "y")[not need_features :]:
        if not isinstance(data.get(part), Tensor):
            raise DataError(f"{name}: the graph has no {part}")
    if need_features and data.x.dim() != 2:
        raise DataError(f"{name}: x must be (nodes, features), found shape {tuple(data.x.shape)}")
    n, y = len(data.x if need_features else data.y), data.y
    if y.dim() == 2 and y.size(1) == 1:
        y = y.squeeze(1)
    if y.shape != (n,):
        raise DataError(f"{name}: y must hold one label for each of {n} nodes, found shape {tuple(y.shape)}")
    if (y.is_floating_point() and not bool((y == y.round()).all())) or n == 0:
        raise DataError(f"{name}: y must hold class numbers from 0")
    y = y.long()
    if y.min() < 0:
        raise DataError(f"{name}: label {int(y.min())} of node {int(y.argmin())} is out of range, classes start at 0")
    edges = data.edge_index
    if edges.dim() != 2 or edges.size(0) != 2 or edges.is_floating_point():
        raise DataError(f"{name}: edge_index must be integers of shape (2, E), found shape {tuple(edges.shape)}")
    if edges.numel() and not 0 <= int(edges.min()) <= int(edges.max()) < n:
        bad = int(edges.min()) if edges.min() < 0 else int(edges.max())
        raise DataError(f"{name}: edge_index names node {bad}, the graph has nodes 0 to {n - 1}")
    data = copy.copy(data)
    data.y, data.edge_index, data.num_nodes = y, edges.long(), n
    if need_features:
        data.x = (data.x if data.x.layout == torch.strided else data.x.to_dense()).float()
        finite = data.x.isfinite().all(1)
        if not finite.all():
            raise DataError(f"{name}: the features of node {int((~finite).nonzero()[0])} are NaN or infinite")
    return data


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
    """Labelled, validation and test nodes.

    ``"compat"`` is what the released code draws from the same seed. The labelled nodes come first in a shuffled list;
    validation takes, for each class, the *lowest ids* that are left, so that it is nearly the same set for every seed.
    ``"random"`` labels the same nodes and goes on along the shuffled list for validation. In both, every other node is
    for testing. ``"public"`` reads ``train_mask``, ``val_mask`` and ``test_mask``; of masks with several columns the
    seed takes one.

    Args:
        data: the graph.
        kind: one of ``SPLITS``.
        seed: of the shuffle, or the column of public masks.
        valid_each: validation nodes of each class.
        **imbalance: arguments of :func:`quotas`.

    Raises:
        OptionError, DataError: a wrong option; too few nodes of a class; absent or empty masks; a class without
            labelled nodes.
    """
    choose("--split", kind, SPLITS)
    if kind == "public":
        return _public_split(data, seed)
    if valid_each < 1:
        raise OptionError(f"--valid-each must be at least 1, got {valid_each}")
    y, train_quota = data.y.tolist(), quotas(data.y, **imbalance)
    order = list(range(len(y)))
    # Python's generator: the released splits are its shuffle.
    random.Random(seed).shuffle(order)
    train = _walk(order, y, train_quota, "--train-each or --labeling-ratio")
    labelled = set(train)
    rest = [node for node in (order if kind == "random" else sorted(order)) if node not in labelled]
    valid = set(_walk(rest, y, [valid_each] * len(train_quota), "--valid-each"))
    test = [node for node in range(len(y)) if node not in labelled and node not in valid]
    if not test:
        raise OptionError(f"--train-each, --valid-each: none of the {len(y)} nodes is left for testing")
    return Split(torch.tensor(train), torch.tensor(sorted(valid)), torch.tensor(test))


def _walk(nodes: Sequence[int], y: Sequence[int], quota: Sequence[int], option: str) -> list[int]:
    left, chosen = list(quota), []
    for node in nodes:
        if left[y[node]]:
            left[y[node]] -= 1
            chosen.append(node)
    for label, missing in enumerate(left):
        if missing:
            raise OptionError(f"{option}: class {label} has only {quota[label] - missing} of {quota[label]} nodes left")
    return chosen


def _public_mask(data: Data, name: str, seed: int) -> Tensor:
    mask = data.get(name)
    if mask is None:
        raise DataError(f"--split public: the graph has no {name}")
    if isinstance(mask, Tensor) and mask.dim() == 2:
        mask = mask[:, seed % mask.size(1)]
    if not isinstance(mask, Tensor) or mask.shape != data.y.shape or mask.dtype != torch.bool or not mask.any():
        raise DataError(f"--split public: {name} must mark some of the {len(data.y)} nodes")
    return mask


def _public_split(data: Data, seed: int) -> Split:
    masks = [_public_mask(data, name, seed) for name in ("train_mask", "val_mask", "test_mask")]
    train, valid, test = (mask.nonzero().squeeze(1) for mask in masks)
    absent = torch.bincount(data.y[train], minlength=int(data.y.max()) + 1) == 0
    if absent.any():
        raise DataError(f"--split public: class {int(absent.nonzero()[0])} has no labelled node")
    return Split(train, valid, test)


def count_splits(data: Data, kind: str, wanted: int) -> int:
    """How many different splits there are to train on: of public ones as many as ``train_mask`` has columns."""
    mask = data.get("train_mask")
    if kind != "public" or mask is None:
        return wanted
    return min(wanted, 1 if mask.dim() == 1 else mask.size(1))


def labelled_nodes(data: Data, kind: str = "compat", seed: int = 0, **options: Any) -> Tensor:
    """Ids of the labelled nodes of :func:`make_split`; of a public split only ``train_mask`` is needed."""
    if kind == "public":
        return _public_mask(data, "train_mask", seed).nonzero().squeeze(1)
    return make_split(data, kind, seed, **options).train
