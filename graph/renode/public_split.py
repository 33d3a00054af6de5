"""The split that a graph brings: ``train_mask``, ``val_mask`` and ``test_mask``, with a column for each of several."""

from __future__ import annotations

import torch
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.utils import index_to_mask

from fairseq_ext.training.errors import DataError, OptionError
from graph.inputs import as_labels, as_tensor, node_ids

__all__ = ["public_labelled", "public_split", "public_splits"]


def public_splits(data: Data) -> int:
    """The number of splits: the columns of ``train_mask``.

    Raises:
        DataError: there is no ``train_mask``.
    """
    if data.get("train_mask") is None:
        raise DataError("--split-kind public: the graph has no train_mask")
    mask = as_tensor(data.train_mask, "train_mask")
    return mask.size(1) if mask.dim() == 2 and len(mask) == len(data.y) else 1


def _marked(data: Data, name: str, seed: int) -> Tensor:
    mask = data.get(name)
    if mask is None:
        raise DataError(f"--split-kind public: the graph has no {name}")
    count = public_splits(data)
    if not 0 <= seed < count:
        raise OptionError(f"--split-kind public: split {seed} is not there, the graph has {count}, counted from 0")
    mask, name, y = as_tensor(mask, name), f"--split-kind public: {name}", as_labels(data.y, name="data.y")
    # A mask of one column goes with each column of the others.
    nodes = node_ids(mask, len(y), name, seed if mask.dim() == 2 and mask.size(1) > 1 else None)
    if not len(nodes):
        raise DataError(f"{name} must mark some of the {len(y)} nodes")
    if (y[nodes] < 0).any():
        raise DataError(f"{name} marks node {int(nodes[y[nodes] < 0][0])}, which has no label")
    return nodes


def public_labelled(data: Data, seed: int) -> Tensor:
    """Ids of the labelled nodes.

    Raises:
        OptionError: a column that is not there.
        DataError: an absent or empty mask, a node without label, or a class without labelled nodes.
    """
    train, y = _marked(data, "train_mask", seed), as_labels(data.y, name="data.y")
    absent = torch.bincount(y[train], minlength=int(y.max()) + 1) == 0
    if absent.any():
        raise DataError(f"--split-kind public: class {int(absent.nonzero()[0])} has no labelled node")
    return train


def public_split(data: Data, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Ids of the labelled, validation and test nodes.

    Raises:
        OptionError, DataError: as :func:`public_labelled`; masks that overlap.
    """
    train = public_labelled(data, seed)
    valid, test = (_marked(data, name, seed) for name in ("val_mask", "test_mask"))
    parts = {"train_mask": train, "val_mask": valid, "test_mask": test}
    masks = {name: index_to_mask(nodes.cpu(), len(data.y)) for name, nodes in parts.items()}
    for name, other in (("train_mask", "test_mask"), ("val_mask", "test_mask"), ("train_mask", "val_mask")):
        if both := int((masks[name] & masks[other]).sum()):
            raise DataError(f"--split-kind public: {both} nodes are in {name} and in {other}")
    return train, valid, test
