"""The classifier: against a dense computation, and its invariances."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch_geometric.data import Batch, Data
from torch_geometric.utils import to_undirected

from graph.graph_classification.model import SAGPoolClassifier, logits_of


def random_graphs(seed: int, count: int = 5, features: int = 6) -> list[Data]:
    generator = torch.Generator().manual_seed(seed)
    graphs = []
    for size in range(1, count + 1):
        edges = torch.randint(size, (2, 2 * size), generator=generator)
        edges = to_undirected(edges[:, edges[0] != edges[1]], num_nodes=size)
        graphs.append(Data(x=torch.randn(size, features, generator=generator), edge_index=edges))
    return graphs


@pytest.fixture(scope="module")
def model() -> SAGPoolClassifier:
    torch.manual_seed(0)
    return SAGPoolClassifier(6, 3, hidden_channels=16).double().eval()


def logits(model: SAGPoolClassifier, graphs: list[Data]) -> torch.Tensor:
    batch = Batch.from_data_list(graphs)
    batch.x = batch.x.double()
    return logits_of(model, batch)


def dense_gcn(conv, x, adjacency):
    with_loops = adjacency + torch.eye(len(x), dtype=x.dtype)
    scale = with_loops.sum(1).rsqrt()
    return scale[:, None] * with_loops * scale @ x @ conv.lin.weight.T + conv.bias


def test_is_the_published_network(model):
    graph = random_graphs(1, 7)[-1]
    x, adjacency = graph.x.double(), torch.zeros(7, 7, dtype=torch.float64)
    adjacency[graph.edge_index[0], graph.edge_index[1]] = 1
    readout = 0
    for conv, pool in zip(model.convs, model.pools, strict=True):
        x = dense_gcn(conv, x, adjacency).relu()
        score = dense_gcn(pool.gnn, x, adjacency)[:, 0]
        kept = score.argsort(descending=True)[: math.ceil(0.5 * len(x))]
        x, adjacency = x[kept] * score[kept].tanh()[:, None], adjacency[kept][:, kept]
        readout = readout + torch.cat([x.amax(0), x.mean(0)])
    for layer in model.mlp.lins[:-1]:
        readout = layer(readout).relu()
    expected = model.mlp.lins[-1](readout)
    torch.testing.assert_close(logits(model, [graph])[0], expected)


def test_default_widths_are_the_published_ones():
    model = SAGPoolClassifier(4, 2)
    assert [conv.out_channels for conv in model.convs] == [128, 128, 128]
    assert model.mlp.channel_list == [256, 128, 64, 2]
    assert [pool.ratio for pool in model.pools] == [0.5] * 3


@given(st.permutations(range(5)), st.integers(0, 5))
def test_order_of_the_graphs_in_a_batch_does_not_matter(model, order, seed):
    graphs = random_graphs(seed)
    torch.testing.assert_close(logits(model, [graphs[i] for i in order]), logits(model, graphs)[list(order)])


def test_a_batch_of_one_is_the_graph_alone(model):
    graphs = random_graphs(3)
    together = logits(model, graphs)
    for graph, expected in zip(graphs, together, strict=True):
        torch.testing.assert_close(logits(model, [graph])[0], expected)
        torch.testing.assert_close(model(graph.x.double(), graph.edge_index)[0], expected)


def test_nodes_that_look_alike_are_kept_in_their_order(model):
    """All nodes of a ring; those that are kept are a path, or single nodes."""
    graphs = []
    for ring in map(torch.arange, range(6, 16)):
        edges = to_undirected(torch.stack([ring, ring.roll(1)]))
        graphs.append(Data(x=torch.arange(6.0).expand(len(ring), 6), edge_index=edges))
    together = logits(model, graphs)
    torch.testing.assert_close(together, torch.cat([logits(model, [graph]) for graph in graphs]))


@given(st.permutations(range(7)), st.integers(0, 5))
def test_order_of_the_nodes_does_not_matter(model, order, seed):
    graph, order = random_graphs(seed, 7)[-1], torch.tensor(order)
    place = order.argsort()
    moved = Data(x=graph.x[order], edge_index=place[graph.edge_index])
    torch.testing.assert_close(logits(model, [moved]), logits(model, [graph]))


def test_graphs_without_edges(model):
    lonely = Data(x=torch.randn(3, 6), edge_index=torch.empty(2, 0, dtype=torch.long))
    assert logits(model, [lonely, *random_graphs(0, 2)]).isfinite().all()


def test_weight_decay_cannot_turn_the_node_scores_round():
    torch.manual_seed(0)
    model = SAGPoolClassifier(6, 3, hidden_channels=16)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1, weight_decay=0.1)
    batch = Batch.from_data_list(random_graphs(0))
    before = [pool.gnn.lin.weight.clone() for pool in model.pools]
    for _ in range(20):
        optimizer.zero_grad()
        logits_of(model, batch).square().sum().backward()
        optimizer.step()
    assert all(pool.select.weight.item() == 1 for pool in model.pools)
    assert not any(torch.equal(pool.gnn.lin.weight, old) for pool, old in zip(model.pools, before, strict=True))


def test_reset_parameters_draws_anew_and_keeps_the_sign():
    model = SAGPoolClassifier(6, 3)
    before = model.convs[0].lin.weight.clone()
    model.reset_parameters()
    assert not torch.equal(model.convs[0].lin.weight, before)
    assert all(pool.select.weight.item() == 1 and not pool.select.weight.requires_grad for pool in model.pools)
