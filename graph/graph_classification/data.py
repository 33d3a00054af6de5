"""TU data sets by name, as their raw files are now."""

from __future__ import annotations

import codecs
import difflib
import re
from pathlib import Path

import torch
import torch.nn.functional as F
from torch_geometric.data import Data, Dataset
from torch_geometric.datasets import TUDataset
from torch_geometric.io import read_txt_array
from torch_geometric.transforms import BaseTransform
from torch_geometric.utils import degree

from fairseq_ext.training.errors import DataError, OptionError, choose
from fairseq_ext.training.files import safe_loads_only
from fairseq_ext.training.settings import digest
from graph.processed import current

__all__ = ["CappedDegree", "dataset_digest", "load_dataset"]

# Some of the classification data sets of https://chrsmrrs.github.io/datasets. A name that differs by a letter or two
# from one of them, or from a data set in --root, is taken for a typing error before anything is downloaded.
TU_NAMES = (
    *("AIDS", "BZR", "COLLAB", "COX2", "DBLP_v1", "DD", "DHFR", "ENZYMES", "FRANKENSTEIN", "github_stargazers"),
    *("IMDB-BINARY", "IMDB-MULTI", "KKI", "MSRC_9", "MSRC_21", "MUTAG", "Mutagenicity", "NCI1", "NCI109", "OHSU"),
    *("PROTEINS", "PROTEINS_full", "PTC_FM", "PTC_FR", "PTC_MM", "PTC_MR", "REDDIT-BINARY", "REDDIT-MULTI-5K"),
    *("REDDIT-MULTI-12K", "SYNTHETIC", "Synthie", "TRIANGLES", "Tox21_AhR_training", "twitch_egos", "Yeast"),
)

FILES = (
    *("A", "graph_indicator", "node_labels", "node_attributes", "edge_labels", "edge_attributes"),
    *("graph_labels", "graph_attributes"),
)
"""Kinds of files that torch_geometric reads of a data set; the file of kind A is ``NAME_A.txt``."""
NEWLINE = b"\n"
BLANK = re.compile(rb"(?:\A|\n)[ \t\r]*\n")


class CappedDegree(BaseTransform):
    """One-hot node degree as features, for data sets without any; degrees from ``cap`` on share one entry."""

    def __init__(self, cap: int = 127) -> None:
        self.cap = cap

    def forward(self, data: Data) -> Data:
        degrees = degree(data.edge_index[0], data.num_nodes, dtype=torch.long).clamp(max=self.cap)
        data.x = F.one_hot(degrees, self.cap + 1).float()
        return data


def load_dataset(root: str | Path, name: str, use_node_attr: bool = False) -> TUDataset:
    """The TU data set ``name`` under ``root``, in PyG's layout; PyG downloads it where it is absent.

    The features of a node are its label or, with ``use_node_attr``, its attributes and its label; a data set without
    features gets :class:`CappedDegree` (our choice).

    Raises:
        OptionError: a name that looks mistyped (the message names the nearest one), or ``use_node_attr`` for a data set
            without node attributes.
        DataError: files that are absent and cannot be downloaded, cannot be read, or do not fit together.
    """
    root = Path(root)
    present = {path.parent.parent.name for path in root.glob("*/raw/*_A.txt")}
    names = sorted(present.union(TU_NAMES))
    if difflib.get_close_matches(name, names, n=1, cutoff=0.85):
        choose("--dataset", name, names)
    _check_lines(root, name)
    try:
        with safe_loads_only():
            dataset = current(TUDataset, str(root), name, use_node_attr=use_node_attr)
    except Exception as error:  # downloads, and files that do not fit together, fail in many places and types
        _check_lines(root, name)
        problem = "cannot read" if name in present else "not there, and cannot be downloaded:"
        reason = " ".join(str(error).split()[:30])
        place = _damaged_file(root, name) or root / name
        raise DataError(f"--dataset {name}: {problem} {place} ({type(error).__name__}: {reason})") from error
    if name not in present:
        _check_lines(root, name)
    labels = getattr(dataset, "y", None)
    if labels is None or labels.is_floating_point() or labels.numel() != len(dataset):
        form = "no labels" if labels is None else f"{labels.numel()} labels of type {labels.dtype}"
        raise DataError(f"--dataset {name}: {len(dataset)} graphs, but {form}; each graph must have one class")
    if "x" in dataset.slices and len(dataset.x) != dataset.slices["x"][-1]:
        raise DataError(f"--dataset {name}: {dataset.slices['x'][-1]} nodes, but features of {len(dataset.x)}")
    if dataset.num_classes < 2:
        raise DataError(f"--dataset {name}: all graphs are of one class")
    for number, graph in enumerate(dataset):
        try:
            graph.validate()
        except ValueError as error:  # an edge from one graph to another, above all
            raise DataError(f"--dataset {name}: graph {number} of {root / name}: {error}") from error
    if use_node_attr and not dataset.num_node_attributes:
        raise OptionError(f"--use-node-attr: has no effect with --dataset {name}, which has no node attributes")
    if not dataset.num_node_features:
        dataset.transform = CappedDegree()
    elif not dataset.x.isfinite().all():
        raise DataError(f"--dataset {name}: node features hold {int((~dataset.x.isfinite()).sum())} NaN or infinities")
    return dataset


def _check_lines(root: Path, name: str) -> None:
    """Refuse files that torch_geometric would read only in part, or fail to read without telling why.

    Raises:
        DataError: names the file, and what is wrong with its lines.
    """
    for path in _files(root, name):
        data, where = path.read_bytes(), f"--dataset {name}: {path}"
        if not data:  # torch_geometric would read it as data without features or labels
            raise DataError(f"{where} is empty")
        if data.startswith(codecs.BOM_UTF8):
            raise DataError(f"{where} begins with a byte order mark; save it as UTF-8 without one")
        if blank := BLANK.search(data):
            raise DataError(f"{where}: line {data.count(NEWLINE, 0, blank.end() - 1) + 1} is blank")
        if not data.endswith(NEWLINE):  # torch_geometric drops what follows the last line feed
            raise DataError(f"{where}: the last line has no line feed at its end, and would be lost; add one")


def _files(root: Path, name: str) -> list[Path]:
    """The files that are there and that torch_geometric reads."""
    paths = [root / name / "raw" / f"{name}_{kind}.txt" for kind in FILES]
    return [path for path in paths if path.is_file()]


def _damaged_file(root: Path, name: str) -> Path | None:
    """The first file that cannot be read on its own; None where each can."""
    for path in _files(root, name):
        try:
            read_txt_array(str(path), sep=",", dtype=None if path.stem.endswith("_attributes") else torch.long)
        except Exception:  # the parser raises many types
            return path
    return None


def dataset_digest(dataset: Dataset) -> str:
    """SHA-256 of everything in the graphs that a classifier reads, in their order."""
    return digest([digest(graph.x, graph.edge_index, torch.as_tensor(graph.y)) for graph in dataset])
