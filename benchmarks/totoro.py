"""Claim: exact Totoro scores cost a few sparse solves, on graphs of any size that fits the memory."""

from __future__ import annotations

import multiprocessing
import resource
import time
import tracemalloc
from functools import partial

import torch
from torch import Tensor

from benchmarks.timing import Function, Row, compare, peak_bytes, rate_row, time_row
from graph.renode import personalized_pagerank, push_pagerank, totoro

ALPHA, CLASSES, LABELS_A_CLASS, EDGES_A_NODE = 0.15, 10, 20, 10
# Nodes, undirected edges and classes of the data sets that the paper uses; random edges in their place.
SHAPES = {"Cora": (2708, 5278, 7), "CiteSeer": (3327, 4552, 6)}
THREADS, MAX_SECONDS, MAX_MIB, MAX_MIB_OF_100_CLASSES = 2, 15, 2048, 4096

NOT_ON = {"cuda": "scipy solves on the CPU"}


def random_graph(nodes: int, edges: int, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """``edge_index`` of an undirected graph, the labels, and the ids of the labelled nodes, balanced."""
    generator = torch.Generator().manual_seed(0)
    edge_index = torch.randint(nodes, (2, edges), generator=generator)
    y = torch.randint(classes, (nodes,), generator=generator)
    labelled = torch.cat([(y == label).nonzero().view(-1)[:LABELS_A_CLASS] for label in range(classes)])
    return torch.cat([edge_index, edge_index.flip(0)], 1), y, labelled


def dense_totoro(edge_index: Tensor, y: Tensor, labelled: Tensor, *, released: bool) -> Tensor:
    """The scores by a dense inverse in float32; ``released`` also treats the diagonal of degrees as a dense matrix."""
    eye = torch.eye(len(y))
    adjacency = torch.zeros_like(eye)
    adjacency[edge_index[0], edge_index[1]] = 1
    adjacency += eye
    degree = adjacency.sum(1)
    if released:
        scale = torch.linalg.inv(torch.diag(degree)).sqrt()
        normalised = scale @ adjacency @ scale
    else:
        normalised = adjacency * degree.rsqrt()[:, None] * degree.rsqrt()
    pagerank = ALPHA * torch.linalg.inv(eye - (1 - ALPHA) * normalised)
    classes = torch.arange(int(y.max()) + 1)
    influence = torch.stack([pagerank[labelled[y[labelled] == label]].mean(0) for label in classes], 1)
    scores = pagerank @ (influence.sum(1, keepdim=True) - influence)
    return scores[labelled, y[labelled]]


def numpy_peak_bytes(function: Function) -> int:
    """Highest sum of NumPy's arrays (and Python's objects) alive at once during a call."""
    function()
    tracemalloc.start()
    function()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def against_dense(name: str, nodes: int, edges: int, classes: int, quick: bool) -> list[Row]:
    graph = random_graph(nodes, edges, classes)
    ours = partial(totoro, *graph, alpha=ALPHA)
    rows = []
    # The targets are for what the released code does; the lean reference shows what is due to the sparse solves alone.
    for way, released, speed, memory in (("as released", True, 100, 1 / 50), ("written leanly", False, None, None)):
        reference = partial(dense_totoro, *graph, released=released)
        torch.testing.assert_close(ours().float(), reference(), rtol=1e-3, atol=1e-6)
        case = f"totoro / dense inverse {way}, {name}'s size: {nodes} nodes, {edges} edges, {classes} classes"
        pairs = 1 if quick else 3
        rows.append(rate_row(case, ours, reference, items=1, unit="graphs/s", pairs=pairs, target=speed))
        # The sum of two peaks that need not coincide: it can only overstate.
        a, b = (peak_bytes(function) + numpy_peak_bytes(function) for function in (ours, reference))
        rows.append(Row(case, a / 2**20, b / 2**20, "MiB", a / b, memory))
    return rows


def measured_alone(nodes: int, classes: int, threads: int, tol: float) -> tuple[float, float]:
    """Seconds of one call and the highest MiB of the process, which should therefore be a fresh one."""
    torch.set_num_threads(threads)
    graph = random_graph(nodes, EDGES_A_NODE * nodes, classes)
    start = time.perf_counter()
    totoro(*graph, alpha=ALPHA, tol=tol)
    return time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def in_fresh_process(nodes: int, classes: int = CLASSES, threads: int = 1, tol: float = 1e-12) -> tuple[float, float]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measured_alone, (nodes, classes, threads, tol))


def growth(sizes: tuple[int, ...]) -> list[Row]:
    rows = []
    before = None
    for nodes in sizes:
        seconds, _ = in_fresh_process(nodes)
        case = f"totoro, {nodes:,} nodes, {EDGES_A_NODE * nodes:,} edges"
        if before is not None:
            rows.append(Row(f"{case}, {CLASSES} classes / a tenth of it", seconds, before, "s", seconds / before))
        before = seconds

    of_two, mebibytes = in_fresh_process(nodes, threads=THREADS)
    # A loose tolerance changes nothing about the memory.
    _, with_100 = in_fresh_process(nodes, classes=100, threads=THREADS, tol=0.1)
    bounds = (
        (f"{CLASSES} classes, {THREADS} threads / one", of_two, seconds, "s", None),
        (f"{CLASSES} classes, {THREADS} threads / {MAX_SECONDS} seconds", of_two, MAX_SECONDS, "s", 1),
        (f"{CLASSES} classes, whole process / {MAX_MIB} MiB", mebibytes, MAX_MIB, "MiB", 1),
        (f"100 classes, whole process / {MAX_MIB_OF_100_CLASSES} MiB", with_100, MAX_MIB_OF_100_CLASSES, "MiB", 1),
    )
    return rows + [
        Row(f"{case}, {name}", ours, bound, unit, ours / bound, target) for name, ours, bound, unit, target in bounds
    ]


def many_classes(nodes: int, quick: bool) -> Row:
    graphs = [random_graph(nodes, EDGES_A_NODE * nodes, classes) for classes in (100, CLASSES)]
    hundred, ten = (partial(totoro, *graph, alpha=ALPHA) for graph in graphs)
    case = f"totoro, {nodes:,} nodes, 100 classes / {CLASSES} classes"
    return time_row(case, hundred, ten, pairs=1 if quick else 3, target=100 / CLASSES)


def push_against_exact(nodes: int, quick: bool) -> Row:
    edge_index = random_graph(nodes, EDGES_A_NODE * nodes, CLASSES)[0]
    pushed, exact = torch.arange(1000 if not quick else 10), torch.arange(16 if not quick else 2)
    ours = partial(push_pagerank, edge_index, pushed, nodes, eps=1e-4)
    reference = partial(personalized_pagerank, edge_index, exact, nodes)
    a, b, _ = compare(ours, reference, pairs=1)
    case = f"push_pagerank(eps=1e-4), {len(pushed)} rows / personalized_pagerank, {len(exact)} rows, {nodes:,} nodes"
    rates = len(pushed) / a, len(exact) / b
    return Row(case, *rates, "rows/s", rates[0] / rates[1])


def run(quick: bool) -> list[Row]:
    shapes = {"Cora": (200, 400, 7)} if quick else SHAPES
    rows = [row for name, shape in shapes.items() for row in against_dense(name, *shape, quick)]
    rows.append(push_against_exact(1000 if quick else 100_000, quick))
    rows.append(many_classes(1000 if quick else 20_000, quick))
    return rows + growth((1000, 10_000) if quick else (10_000, 100_000, 1_000_000))
