"""The graph classifier on which the encouraging loss was published: GCN layers with self-attention pooling."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.nn import MLP, GCNConv, SAGPooling, global_max_pool, global_mean_pool
from torch_geometric.nn.pool.select import SelectOutput, SelectTopK
from torch_geometric.nn.pool.select.topk import topk

__all__ = ["SAGPoolClassifier", "logits_of"]


class SAGPoolClassifier(nn.Module):
    r"""Hierarchical self-attention pooling, after Lee et al., "Self-Attention Graph Pooling", arXiv:1904.08082.

    .. math::
        H_l &= \mathrm{relu}(\mathrm{GCN}(X_{l-1}, A_{l-1})), \qquad
        (X_l, A_l) = \mathrm{SAGPool}(H_l, A_{l-1}), \\
        z &= \mathrm{MLP}\Big(\sum_l \big[\max_i X_{l,i} \,\|\, \mathrm{mean}_i X_{l,i}\big]\Big).

    A GCN layer scores the nodes for the pooling, which keeps the share ``ratio`` of each graph.

    Args:
        in_channels: number of node features.
        out_channels: number of classes.
        hidden_channels: width of the GCN layers. Default 128, as published with the encouraging loss.
        num_layers: GCN layers, each with its pooling. Default 3, as published.
        ratio: share of the nodes that each pooling keeps. Default 0.5, as published.
        dropout: dropout after the first layer of the MLP, whose widths are ``2 hidden -> hidden -> hidden / 2 ->
            classes``. Default 0.5, as published; that it is in this place only is our choice.

    Shape:
        - x: :math:`(N, in)`, the nodes of all graphs.
        - edge_index: :math:`(2, E)`.
        - batch: :math:`(N)`, the graph of each node.
        - logits: :math:`(B, out)`.

    Example:
        >>> model = SAGPoolClassifier(dataset.num_features, dataset.num_classes)
        >>> logits = model(data.x, data.edge_index, data.batch)
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        hidden_channels: int = 128,
        num_layers: int = 3,
        ratio: float = 0.5,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        widths = [in_channels] + [hidden_channels] * (num_layers - 1)
        self.convs = nn.ModuleList(GCNConv(width, hidden_channels) for width in widths)
        self.pools = nn.ModuleList(SAGPooling(hidden_channels, ratio, GNN=GCNConv) for _ in widths)
        self.mlp = MLP(
            [2 * hidden_channels, hidden_channels, hidden_channels // 2, out_channels],
            dropout=[dropout, 0.0, 0.0],
            norm=None,
        )
        for pool in self.pools:
            pool.select.__class__ = _StableTopK  # a new one would draw parameters
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw every parameter anew."""
        for module in (*self.convs, *self.pools, self.mlp):
            module.reset_parameters()
        for select in self.modules():
            if isinstance(select, SelectTopK):
                # PyG divides this 1 x 1 weight by its norm, so it is only a sign, without gradient. Weight decay would
                # carry it across zero, where the order of all nodes turns round.
                nn.init.ones_(select.weight).requires_grad_(False)

    def forward(
        self, x: Tensor, edge_index: Tensor, batch: Tensor | None = None, batch_size: int | None = None
    ) -> Tensor:
        """Logits of each graph; without ``batch`` all nodes are one graph."""
        if batch is None:
            batch = edge_index.new_zeros(x.size(0))
        if batch_size is None:
            batch_size = int(batch.max()) + 1
        readouts = []
        for conv, pool in zip(self.convs, self.pools, strict=True):
            x, edge_index, _, batch, _, _ = pool(conv(x, edge_index).relu(), edge_index, batch=batch)
            pooled = [global_max_pool(x, batch, batch_size), global_mean_pool(x, batch, batch_size)]
            readouts.append(torch.cat(pooled, dim=-1))
        return self.mlp(torch.stack(readouts).sum(0))


class _StableTopK(SelectTopK):
    """PyG's, which sorts all scores of a batch without order among equal ones; nodes that look alike have them."""

    def forward(self, x: Tensor, batch: Tensor | None = None) -> SelectOutput:
        score = self.act((x.view(-1, 1) * self.weight).sum(-1) / self.weight.norm())
        batch = x.new_zeros(len(x), dtype=torch.long) if batch is None else batch
        rank = torch.empty_like(score)
        rank[score.argsort(descending=True, stable=True)] = torch.arange(len(x), 0, -1, device=x.device).to(score)
        kept = topk(rank, self.ratio, batch)
        cluster = torch.arange(len(kept), device=x.device)
        return SelectOutput(kept, len(x), cluster, len(kept), weight=score[kept])


def logits_of(model: nn.Module, data: Data) -> Tensor:
    """Logits of a batch of graphs, whose features may be whole numbers."""
    x = data.x.to(next(model.parameters()).dtype)
    return model(x, data.edge_index, data.batch, data.num_graphs)
