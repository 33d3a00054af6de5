"""Totoro scores and ReNode weights of a graph's labelled nodes, as files; nothing is trained."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.utils import index_to_mask

from fairseq_ext.training.arrays import write_npz
from fairseq_ext.training.files import replacing, write_json, writing_to
from graph.renode.options import ScoreOptions
from graph.renode.totoro import dataset_totoro
from graph.renode.transform import ReNode

__all__ = ["score_table", "scored", "scored_graph", "write_scores"]


def scored(data: Data, nodes: Tensor, transform: ReNode) -> Data:
    """A shallow copy of ``data`` with ``nodes`` labelled, and with the scores and weights that ``transform`` writes."""
    data = copy.copy(data)
    data.train_mask = index_to_mask(nodes, len(data.y))
    return transform(data)


def scored_graph(options: ScoreOptions, split_seed: int = 0) -> Data:
    """The graph that ``options`` name, with scores and weights of one split's labelled nodes."""
    transform = options.make_transform()
    data = options.load(need_features=False)
    options = options.with_kind(options.dataset, data)
    return scored(data, options.labelled_nodes(data, split_seed), transform)


def score_table(data: Data) -> dict[str, np.ndarray]:
    """Columns ``node``, ``label``, ``totoro``, ``rank`` (0: least conflict) and ``weight`` of labelled nodes."""
    nodes = data.train_mask.nonzero().squeeze(1)
    scores = data.totoro[nodes]
    rank = torch.empty(len(nodes), dtype=torch.long)
    rank[scores.argsort(stable=True)] = torch.arange(len(nodes))
    columns = {
        "node": nodes,
        "label": data.y[nodes],
        "totoro": scores,
        "rank": rank,
        "weight": data.renode_weight[nodes],
    }
    return {name: column.numpy() for name, column in columns.items()}


def write_scores(data: Data, folder: str | Path) -> dict[str, Any]:
    """Write ``scores.tsv``, ``scores.npz`` and a summary, ``scores.json``; returns the summary."""
    table = score_table(data)
    summary = {
        "nodes": data.num_nodes,
        "edges": data.num_edges,
        "labelled": len(table["node"]),
        "totoro": dataset_totoro(data.totoro),
        "classes": {
            int(label): {"labelled": int(of.sum()), "mean_totoro": float(table["totoro"][of].mean())}
            for label in np.unique(table["label"])
            for of in [table["label"] == label]
        },
    }
    with writing_to(folder) as folder:
        with replacing(folder / "scores.tsv") as partial, open(partial, "w", encoding="utf-8") as file:
            file.write("\t".join(table) + "\n")
            for node, label, score, rank, weight in zip(*table.values(), strict=True):
                file.write(f"{node}\t{label}\t{score:.8g}\t{rank}\t{weight:.6f}\n")
        write_npz(folder / "scores.npz", table, compress=True)
        write_json(folder / "scores.json", summary)
    return summary
