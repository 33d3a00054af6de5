"""ReNode: training weights for labelled nodes by how strongly other classes contest their neighbourhood."""

from graph.renode.pagerank import PageRank, personalized_pagerank
from graph.renode.push import push_pagerank
from graph.renode.totoro import (
    class_influence,
    dataset_totoro,
    neighbor_conflict,
    renode_weights,
    totoro,
    totoro_from_rows,
)
from graph.renode.transform import ReNode, renode_loss

__all__ = [
    "PageRank",
    "ReNode",
    "class_influence",
    "dataset_totoro",
    "neighbor_conflict",
    "personalized_pagerank",
    "push_pagerank",
    "renode_loss",
    "renode_weights",
    "totoro",
    "totoro_from_rows",
]
