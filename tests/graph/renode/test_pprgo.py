"""PPRGo: fixtures of the released code, batches against their plain form, inference."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from benchmarks.totoro import numpy_peak_bytes
from fairseq_ext.training.errors import DataError
from graph.renode.large_graph import LargeGraph
from graph.renode.pprgo import PPRGo, RowBatches, predict, to_torch
from graph.renode.push import push_pagerank
from tests.graph.renode.large_graphs import a_graph, batches_of, rows_of
from tests.helpers import load_golden


def golden_cases() -> list[str]:
    return sorted({key.split(".w.")[0] for key in load_golden("renode", "pprgo") if ".w." in key})


@pytest.mark.parametrize("kind", ["dense", "sparse"])
@pytest.mark.parametrize("case", golden_cases())
def test_released_model(case, kind):
    graph_name, layers, _, normalization = case.split(".")
    released, data = load_golden("renode", "pprgo"), load_golden("renode", graph_name)
    x = data["x"] if kind == "dense" else sparse.csr_array(data["x"])
    graph, nodes = LargeGraph(torch.from_numpy(data["edge_index"]), x, data["y"]), data["labelled"]
    model = PPRGo(8, 4, hidden_channels=16, num_layers=int(layers[1:]), dropout=0)
    # The first matrix is kept the other way round there.
    with torch.no_grad():
        for i, layer in enumerate(model.layers):
            weight = torch.from_numpy(released[f"{case}.w.mlp.fcs.{i}.weight"])
            layer.weight.copy_(weight if i else weight.T)

    rows = sparse.csr_array(released[f"{case}.ppr"])
    (batch,) = RowBatches(rows, graph.x, graph.y[nodes], released[f"{case}.rn_weight"])
    out = model(batch.x, batch.ppr)
    loss = (batch.weight * F.cross_entropy(out, batch.y, reduction="none")).sum()
    loss.backward()
    np.testing.assert_allclose(out.detach(), released[f"{case}.out"], atol=1e-6)
    np.testing.assert_allclose(loss.item(), released[f"{case}.loss_sum_renode"], rtol=1e-5)
    assert (out.argmax(1) == batch.y).sum() == released[f"{case}.ncorrect"]
    for i, layer in enumerate(model.layers):
        gradient = layer.weight.grad if i else layer.weight.grad.T
        np.testing.assert_allclose(gradient, released[f"{case}.gw.mlp.fcs.{i}.weight"], atol=2e-6)
    everywhere = predict(model, graph.x, graph.adjacency, normalization=normalization, chunk=7)
    np.testing.assert_array_equal(everywhere, released[f"{case}.pred_all_nprop2"])


@given(st.integers(0, 10_000), st.sampled_from([1, 4, 9, 50]), st.integers(1, 4), st.booleans())
def test_a_batch_holds_each_neighbour_once_and_loses_nothing(seed, batch_size, world, dense):
    generator = np.random.default_rng(seed)
    rows = sparse.random_array((9, 30), density=0.2, format="csr", dtype=np.float32, rng=generator)
    x = sparse.random_array((30, 5), density=0.5, format="csr", dtype=np.float32, rng=generator)
    y, weight, order = generator.integers(3, size=9), generator.random(9).astype(np.float32), generator.permutation(9)
    source = x.toarray() if dense else x
    shares = [
        RowBatches(rows, source, y, weight, batch_size, rank=rank, world=world).epoch(order) for rank in range(world)
    ]
    mixed, pairs = {}, set()
    for step in zip(*shares, strict=True):
        assert sum(len(share.y) for share in step) == step[0].size
        for share in step:
            assert (share.ppr.to_dense() != 0).any(0).all() and share.ppr.shape == (len(share.y), len(share.x))
            products = share.ppr.to_dense() @ share.x.to_dense()
            pairs |= {(int(label), float(w)) for label, w in zip(share.y, share.weight, strict=True)}
            mixed |= {float(w): product for w, product in zip(share.weight, products, strict=True)}
    assert pairs == {(int(label), float(w)) for label, w in zip(y, weight, strict=True)}
    expected = rows.toarray() @ x.toarray()
    np.testing.assert_allclose(torch.stack([mixed[float(w)] for w in weight]), expected, atol=1e-5)


def test_small_batches_sum_to_the_gradient_of_the_whole():
    graph, nodes = a_graph(), np.arange(0, 60)
    model = PPRGo(24, 3, dropout=0)

    def gradient(batch_size: int) -> torch.Tensor:
        model.zero_grad()
        for batch in batches_of(graph, nodes, batch_size=batch_size).epoch(np.random.permutation(60)):
            terms = F.cross_entropy(model(batch.x, batch.ppr), batch.y, reduction="none")
            (batch.weight * terms).sum().backward()
        return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])

    torch.testing.assert_close(gradient(7), gradient(4200), rtol=1e-4, atol=1e-5)


def test_only_neighbours_are_read():
    graph, nodes = a_graph(), np.arange(20)
    rows = push_pagerank(graph.edge_index, torch.from_numpy(nodes), topk=4)
    x = graph.x.toarray()
    absent = np.setdiff1d(np.arange(len(x)), rows.indices)
    assert len(absent)
    x[absent] = math.nan
    for batch in RowBatches(rows, x, graph.y[nodes], batch_size=6):
        assert batch.x.isfinite().all()


def test_a_batch_costs_the_same_in_a_larger_graph():
    """And gives the same, whichever way its neighbours are found."""
    nodes, rows = 4_000_000, sparse.csr_array(np.eye(3, 5, 1, dtype=np.float32))
    rows.resize(3, nodes)
    batches = RowBatches(rows, np.broadcast_to(np.float32(1), (nodes, 2)), np.zeros(3, np.int64))
    assert numpy_peak_bytes(lambda: list(batches)) < 100_000, "an array over all nodes"
    (large,), rows = batches, rows[:, :5]
    (small,) = RowBatches(rows, np.ones((5, 2), np.float32), np.zeros(3, np.int64))
    assert torch.equal(large.ppr.to_dense(), small.ppr.to_dense()) and torch.equal(large.x, small.x)


def test_dropout_treats_sparse_and_dense_input_alike():
    x = sparse.random_array((400, 50), density=0.3, format="csr", dtype=np.float32, rng=np.random.default_rng(0))
    x.data[:] = 1
    model = PPRGo(50, 50, num_layers=1, dropout=0.25)
    with torch.no_grad():
        model.layers[0].weight.copy_(torch.eye(50))
        for source in (to_torch(x), to_torch(x.toarray())):
            model.train()
            stored = model(source)[to_torch(x.toarray()) != 0]
            values, counts = stored.unique(return_counts=True)
            torch.testing.assert_close(values, torch.tensor([0, 4 / 3]))
            assert abs(counts[0] / len(stored) - 0.25) < 0.02
            torch.testing.assert_close(model.eval()(source), to_torch(x.toarray()))


def test_initial_law():
    for layer, fan_in in zip(PPRGo(300, 7, hidden_channels=64, num_layers=3).layers, (300, 64, 64), strict=True):
        weight, bound = layer.weight, fan_in**-0.5
        assert layer.bias is None and 0.95 * bound < weight.abs().max() <= bound
        torch.testing.assert_close(weight.std().item(), bound / math.sqrt(3), rtol=0.1, atol=0)


@pytest.mark.parametrize("normalization", ["sym", "row", "col"])
def test_inference_is_the_power_iteration(normalization):
    graph = a_graph()
    model = PPRGo(24, 3)
    adjacency = torch.from_numpy(graph.adjacency.toarray())
    degree = adjacency.sum(1).clamp(min=1)
    left, right = {"sym": (-0.5, -0.5), "row": (-1, 0), "col": (0, -1)}[normalization]
    operator = degree[:, None] ** left * adjacency * degree**right
    with torch.no_grad():
        local = z = model.eval()(to_torch(graph.x))
    for _ in range(3):
        z = 0.8 * operator @ z + 0.2 * local
    model.train()
    predicted = predict(model, graph.x, graph.adjacency, alpha=0.2, steps=3, normalization=normalization, chunk=11)
    np.testing.assert_array_equal(predicted, z.argmax(1))
    assert (z.argmax(1) != local.argmax(1)).any(), "propagation decides nothing here"


@pytest.mark.parametrize("batch_size", [9, 4200])
def test_batches_and_adjacency_are_of_the_arrays_as_they_are(batch_size):
    graph = a_graph()
    graph = LargeGraph(graph.edge_index, graph.x.toarray(), graph.y)
    batches = batches_of(graph, np.arange(30), batch_size=batch_size)
    before, edges = [batch.x.sum() for batch in batches], graph.adjacency.nnz
    np.multiply(graph.x, 2, out=graph.x)
    batches.weight[:] = 0
    torch.testing.assert_close([batch.x.sum() for batch in batches], [2 * total for total in before])
    assert not any(batch.weight.any() for batch in batches)
    graph.edge_index[:, 1:] = graph.edge_index[:, :1].clone()
    assert graph.adjacency.nnz == 1 < edges


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (np.arange(30.0), "weight: 1 of 30 labelled nodes weigh 0: the weights are of another mask"),
        (np.ones(29), r"weight must have one value for each of 30 labelled nodes, got torch.float64 of shape \(29,\)"),
    ],
)
def test_weights_that_do_not_fit_are_refused(weight, message):
    graph, nodes = a_graph(), np.arange(30)
    with pytest.raises(DataError, match=message):
        RowBatches(rows_of(graph, nodes), graph.x, graph.y[nodes], weight)
