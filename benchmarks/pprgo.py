"""Claim: computing each neighbour of a batch once, then a sparse product, beats a pass per (row, neighbour) pair."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.timing import Function, Row, memory_row, time_row
from graph.renode.pprgo import PPRGo, RowBatches, to_torch
from graph.renode.push import push_pagerank

NOT_ON = {"cuda": "scipy gathers the neighbours on the CPU"}


def random_graph(nodes: int, degree: int, generator: np.random.Generator) -> Tensor:
    """Undirected edges, twice as likely to end at a node with twice the popularity, which has a heavy tail."""
    popularity = (np.arange(nodes) + 10.0) ** -0.5
    ends = generator.choice(nodes, (2, nodes * degree // 2), p=popularity / popularity.sum())
    edges = torch.from_numpy(ends)
    return torch.cat([edges, edges.flip(0)], 1)


def pairwise(model: PPRGo, batches: RowBatches) -> Callable[[], Tensor]:
    """The loss of all rows with the features gathered, and the perceptron run, for every stored entry."""
    rows, y, weight = batches.ppr, torch.from_numpy(batches.y), torch.from_numpy(batches.weight)
    row = torch.from_numpy(np.repeat(np.arange(len(y)), np.diff(rows.indptr)))
    values = torch.from_numpy(rows.data)[:, None]

    def loss() -> Tensor:
        local = model(to_torch(batches.x[rows.indices]))
        mixed = local.new_zeros(len(y), local.size(1)).index_add(0, row, values * local)
        return (weight * F.cross_entropy(mixed, y, reduction="none")).sum()

    return loss


def shared(model: PPRGo, batches: RowBatches) -> Callable[[], Tensor]:
    def loss() -> Tensor:
        batch = batches.batch(np.arange(len(batches.y)))
        return (batch.weight * F.cross_entropy(model(batch.x, batch.ppr), batch.y, reduction="none")).sum()

    return loss


def epoch(model: PPRGo, loss: Callable[[], Tensor]) -> Function:
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return step


def run(quick: bool) -> list[Row]:
    results = []
    sizes = ((2708, 4, 1433, 140, 0), (50_000, 10, 128, 500, 0), (50_000, 10, 128, 2000, 32))
    for nodes, degree, features, labelled, topk in ((200, 4, 8, 20, 0),) if quick else sizes:
        torch.manual_seed(0)
        generator = np.random.default_rng(0)
        sources = torch.from_numpy(generator.choice(nodes, labelled, replace=False))
        ppr = push_pagerank(random_graph(nodes, degree, generator), sources, nodes, topk=topk, eps=1e-4)
        x = generator.random((nodes, features), np.float32)
        batches = RowBatches(ppr, x, generator.integers(8, size=labelled))
        model = PPRGo(features, 8)
        ours, reference = epoch(model, shared(model, batches)), epoch(model, pairwise(model, batches))
        distinct = len(np.unique(ppr.indices))
        case = f"shared / pairwise, {labelled} rows, {ppr.nnz:,} neighbours, {distinct:,} distinct, {features} features"
        results.append(time_row(f"epoch, {case}", ours, reference, pairs=1 if quick else 3))
        results.append(memory_row(f"epoch beyond the gathered features, {case}", ours, reference))
    return results
