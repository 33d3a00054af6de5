"""The configuration of the retriever, and a region as one token of its sequence (UNITER, arXiv:1909.11740)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import BertConfig

from fairseq_ext.training.errors import OptionError

__all__ = ["REGION_TYPE", "RegionEmbeddings", "RegionRetrieverConfig"]

REGION_TYPE = 1
"""Row of the token type embedding that marks regions; text has row 0."""


class RegionRetrieverConfig(BertConfig):
    """A :class:`~transformers.BertConfig` and what a region is described by, one of the two.

    Args:
        region_feature_size: D, numbers in a region's feature vector; 2048 for bottom-up attention, as the paper's.
        region_labels: names of the region classes, where a class label stands in for the feature vector.
    """

    model_type = "region_retriever"

    def __init__(self, region_feature_size: int = 0, region_labels: list[str] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.region_feature_size = region_feature_size
        self.region_labels = region_labels


class RegionEmbeddings(nn.Module):
    r"""Feature f (or class label c) and box geometry p of a region as one token.

    .. math::
        e = \mathrm{LN}(\mathrm{LN}(W_f f + b_f) + \mathrm{LN}(W_p p + b_p) + t_1)

    with the token type embedding :math:`t_1`. For class labels a learned vector of the class takes the place of
    :math:`W_f f + b_f` (our choice). The parameters have UNITER's names.

    Shape:
        boxes ``(B, V, 7)``, contents ``(B, V, D)`` floats or ``(B, V)`` class numbers, or one row of them for all B.
        Returns ``(B, V, H)``.
    """

    def __init__(self, config: RegionRetrieverConfig) -> None:
        super().__init__()
        if bool(config.region_feature_size) == bool(config.region_labels):
            raise OptionError(
                "a region has either a feature vector or a class label, got "
                f"region_feature_size={config.region_feature_size} and region_labels={config.region_labels}"
            )
        if config.region_labels:
            self.label_embeddings = nn.Embedding(len(config.region_labels), config.hidden_size)
        else:
            self.img_linear = nn.Linear(config.region_feature_size, config.hidden_size)
        self.img_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.pos_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.pos_linear = nn.Linear(7, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, boxes: Tensor, contents: Tensor, type_embedding: Tensor) -> Tensor:
        content = self.img_linear(contents) if hasattr(self, "img_linear") else self.label_embeddings(contents)
        embedded = self.img_layer_norm(content) + self.pos_layer_norm(self.pos_linear(boxes)) + type_embedding
        return self.dropout(self.LayerNorm(embedded))
