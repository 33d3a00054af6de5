"""Graphs for the tests of PPRGo."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from scipy import sparse

from graph.renode.large_graph import LargeGraph
from graph.renode.pprgo import RowBatches
from graph.renode.push import push_pagerank


def a_graph(nodes: int = 150, classes: int = 3, features: int = 24, seed: int = 0) -> LargeGraph:
    """Classes that can be told by features and neighbours, and by neither perfectly; some nodes stay isolated."""
    generator = np.random.default_rng(seed)
    y = generator.integers(classes, size=nodes)
    near = np.where(y[:, None] == y, 0.06, 0.01)
    source, target = np.nonzero(np.triu(generator.random((nodes, nodes)) < near, 1))
    x = ((generator.random((nodes, features)) < 0.1) | (np.arange(features) % 8 == y[:, None])).astype(np.float32)
    x *= generator.random(x.shape) < 0.6
    edges = torch.from_numpy(np.stack([np.append(source, target), np.append(target, source)]))
    return LargeGraph(edges, sparse.csr_array(x), y)


def write_npz(graph: LargeGraph, path: Path, joint: str = "_") -> Path:
    arrays = {"labels": graph.y}
    for name, matrix in (("adj", graph.adjacency), ("attr", sparse.csr_array(graph.x))):
        for part in ("data", "indices", "indptr", "shape"):
            arrays[f"{name}{joint}{part}"] = getattr(matrix, part)
    np.savez(path, **arrays)
    return path


def rows_of(graph: LargeGraph, nodes: np.ndarray) -> sparse.csr_array:
    return push_pagerank(graph.edge_index, torch.from_numpy(nodes), len(graph.y), eps=1e-3)


def batches_of(graph: LargeGraph, nodes: np.ndarray, **options) -> RowBatches:
    return RowBatches(rows_of(graph, nodes), graph.x, graph.y[nodes], np.linspace(0.5, 1.5, len(nodes)), **options)
