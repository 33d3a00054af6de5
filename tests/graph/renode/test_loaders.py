"""ReNode's weights in batches that torch_geometric's loaders sample.

``NeighborLoader`` needs a compiled library; its base class ``NodeLoader`` takes a sampler, which is plain Python here.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch_geometric.data import Batch, HeteroData
from torch_geometric.loader import ImbalancedSampler, NeighborLoader, NodeLoader, RandomNodeLoader
from torch_geometric.nn import GCN
from torch_geometric.sampler import BaseSampler, HeteroSamplerOutput, SamplerOutput
from torch_geometric.typing import WITH_PYG_LIB, WITH_TORCH_SPARSE

from fairseq_ext.training.errors import DataError
from graph.renode import ReNode, renode_loss
from tests.graph.renode.test_transform import small_graph

PAPERS = ("paper", "cites", "paper")


class WholeGraph(BaseSampler):
    """The seeds first, as listed, then all other nodes, with all edges of those."""

    def __init__(self, edge_index, num_nodes, hetero=False):
        self.edge_index, self.num_nodes, self.hetero = edge_index, num_nodes, hetero

    def sample_from_nodes(self, index, **kwargs):
        others = torch.ones(self.num_nodes, dtype=torch.bool).index_fill(0, index.node, False).nonzero()[:, 0]
        node = torch.cat([index.node, others])
        place = torch.empty(self.num_nodes, dtype=torch.long).scatter(0, node, torch.arange(len(node)))
        (row, col), metadata = place[self.edge_index], (index.input_id, index.time)
        edge = torch.arange(len(row))
        if not self.hetero:
            return SamplerOutput(node, row, col, edge, metadata=metadata)
        other = {"author": torch.arange(2)}
        return HeteroSamplerOutput(
            {"paper": node, **other}, {PAPERS: row}, {PAPERS: col}, {PAPERS: edge}, metadata=metadata
        )

    sample_from_edges = None  # abstract in the base class


def loader_of(data, **options):
    return NodeLoader(data, WholeGraph(data.edge_index, data.num_nodes), input_nodes=data.train_mask, **options)


def test_weights_follow_the_seeds_and_labelled_neighbours_wait_for_their_turn():
    torch.manual_seed(0)
    data = ReNode()(small_graph())
    model = GCN(3, 4, num_layers=2, out_channels=2).eval()
    expected = F.cross_entropy(model(data.x, data.edge_index), data.y, reduction="none")
    total, seen = 0, []
    for batch in loader_of(data, batch_size=3, shuffle=True):
        seeds = slice(batch.batch_size)
        assert torch.equal(batch.renode_weight[seeds], data.renode_weight[batch.n_id[seeds]])
        losses = F.cross_entropy(model(batch.x, batch.edge_index), batch.y, reduction="none")
        loss = renode_loss(losses, batch)
        torch.testing.assert_close(renode_loss(losses[seeds], batch), loss)
        torch.testing.assert_close(loss, (batch.renode_weight * losses)[seeds].mean())
        total, seen = total + loss * batch.batch_size, seen + batch.n_id[seeds].tolist()
    assert sorted(seen) == data.train_mask.nonzero()[:, 0].tolist()
    torch.testing.assert_close(total / len(seen), renode_loss(expected, data))


def test_beside_the_imbalanced_sampler_each_drawn_seed_keeps_its_weight():
    data = ReNode()(small_graph(train_mask=torch.tensor([True, False, True, True, False, False, False])))
    sampler = ImbalancedSampler(data.y, input_nodes=data.train_mask, num_samples=64)
    (batch,) = loader_of(data, batch_size=64, sampler=sampler)
    drawn = batch.n_id[:64]
    assert torch.equal(batch.renode_weight[:64], data.renode_weight[drawn]) and len(drawn.unique()) == 3
    losses = torch.rand(len(batch.n_id))
    torch.testing.assert_close(renode_loss(losses, batch), (losses[:64] * data.renode_weight[drawn]).mean())


def test_the_seeds_of_a_heterogeneous_graph():
    graph, data = small_graph(), HeteroData()
    data["paper"].x, data["paper"].y, data["paper"].train_mask = graph.x, graph.y, graph.train_mask
    data["author"].x, data[PAPERS].edge_index = torch.rand(2, 3), graph.edge_index
    data = ReNode(node_type="paper")(data)
    sampler = WholeGraph(graph.edge_index, 7, hetero=True)
    losses = torch.rand(7)
    (batch,) = NodeLoader(data, sampler, input_nodes=("paper", graph.train_mask), batch_size=4)
    expected = (losses * data["paper"].renode_weight[batch["paper"].n_id])[:4].mean()
    torch.testing.assert_close(renode_loss(losses, batch["paper"]), expected)
    batch["author"].renode_weight, batch["author"].train_mask = torch.ones(2), torch.ones(2, dtype=torch.bool)
    with pytest.raises(DataError, match="sampled around nodes of another type"):
        renode_loss(torch.rand(2), batch["author"])


def test_other_batches_count_all_their_labelled_nodes():
    data = ReNode()(small_graph())
    losses = torch.rand(14)
    batch = Batch.from_data_list([data, data])
    torch.testing.assert_close(renode_loss(losses, batch), (losses * batch.renode_weight).sum() / 8)
    (part,) = RandomNodeLoader(data, num_parts=1)
    assert len(part.renode_weight) == 7
    torch.testing.assert_close(
        renode_loss(losses[:7], part), (losses[:7] * part.renode_weight).sum() / part.train_mask.sum()
    )


def test_the_loss_of_a_graph_from_its_parts():
    """As the docstring says: each part's loss times its share of the labelled nodes."""
    data, losses = ReNode()(small_graph()), torch.rand(7)
    nodes = torch.arange(7)
    parts = [part for part in (nodes[:2], nodes[2:]) if data.train_mask[part].any()]
    total = sum(
        renode_loss(losses[part], data.subgraph(part)) * data.train_mask[part].sum() / data.train_mask.sum()
        for part in parts
    )
    torch.testing.assert_close(total, renode_loss(losses, data))


def test_what_a_sampled_batch_would_get_wrong_is_refused():
    (batch,) = loader_of(ReNode()(small_graph()), batch_size=4)
    with pytest.raises(DataError, match="sampled part of a graph"):
        ReNode()(batch)
    with pytest.raises(DataError, match=r"loss must have .* 7 nodes or|loss must have .*7 or, for the seeds, 4 nodes"):
        renode_loss(torch.rand(5), batch)
    with pytest.raises(DataError, match="7 nodes, got shape"):
        renode_loss(torch.rand(5), ReNode()(small_graph()))
    ids = small_graph(train_mask=torch.tensor([0, 2, 3, 4]))
    (batch,) = NodeLoader(ReNode()(ids), WholeGraph(ids.edge_index, 7), input_nodes=ids.train_mask, batch_size=4)
    with pytest.raises(DataError, match="has to be a mask"):
        renode_loss(torch.rand(7), batch)
    data = ReNode()(small_graph())
    (batch,) = NodeLoader(data, WholeGraph(data.edge_index, 7), input_nodes=torch.tensor([5, 6]), batch_size=2)
    with pytest.raises(DataError, match="no seed node of the batch is labelled"):
        renode_loss(torch.rand(7), batch)


@pytest.mark.skipif(not (WITH_PYG_LIB or WITH_TORCH_SPARSE), reason="NeighborLoader needs pyg-lib or torch-sparse")
def test_neighbor_loader():
    data = ReNode()(small_graph())
    loader = NeighborLoader(data, num_neighbors=[-1, -1], input_nodes=data.train_mask, batch_size=2)
    losses = torch.rand(7)
    total = sum(renode_loss(losses[batch.n_id], batch) * batch.batch_size for batch in loader)
    torch.testing.assert_close(total / 4, renode_loss(losses, data))
