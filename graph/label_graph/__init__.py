"""Multi-label text classification with a learned label graph and soft training (RMSC, music styles from reviews).

Guangxiang Zhao, Jingjing Xu, Qi Zeng, Xuancheng Ren, Xu Sun, "Review-Driven Multi-Label Music Style Classification by
Exploiting Style Correlations", NAACL 2019, arXiv:1808.07604.
"""

from graph.label_graph.label_graph import LabelGraph, label_graph_loss, label_graph_loss_terms, soft_targets
from graph.label_graph.metrics import multilabel_metrics, tune_threshold
from graph.label_graph.model import AttentionPooling, HierarchicalAttentionNetwork

__all__ = [
    "AttentionPooling",
    "HierarchicalAttentionNetwork",
    "LabelGraph",
    "label_graph_loss",
    "label_graph_loss_terms",
    "multilabel_metrics",
    "soft_targets",
    "tune_threshold",
]
