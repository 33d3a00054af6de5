"""A UNITER-like image-text retriever on a Hugging Face text encoder: its tokens, its score, and its checkpoints.

Yen-Chun Chen, Linjie Li, Licheng Yu, Ahmed El Kholy, Faisal Ahmed, Zhe Gan, Yu Cheng, Jingjing Liu, "UNITER: UNiversal
Image-TExt Representation Learning", ECCV 2020, https://arxiv.org/abs/1909.11740.

More than 300 lines, as the names of the parameters, their use, and the two kinds of checkpoints with these names belong
together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertConfig, BertModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import ModelOutput
from transformers.models.bert.modeling_bert import BertEmbeddings, BertEncoder, BertPooler, BertPreTrainedModel

from fairseq_ext.training.errors import CheckpointError, OptionError, first_few
from fairseq_ext.training.pretrained import check_weights, load_model, read_config

__all__ = ["REGION_TYPE", "RegionEmbeddings", "RegionRetriever", "RegionRetrieverConfig", "RegionRetrieverOutput"]

PREFIXES = ("module.", "model.", "uniter.", "bert.")
"""Prefixes that wrappers put before the names of weights, the outermost first."""
REGION_TYPE = 1
"""Row of the token type embedding that marks regions; text has row 0."""


class RegionRetrieverConfig(BertConfig):
    """A :class:`~transformers.BertConfig` that also says how a region is described: by features or by a label.

    Args:
        region_feature_size: length of a region's feature vector, D; 2048 for bottom-up attention, as in the paper.
            Default 0, no feature vectors.
        region_labels: names of the region classes, where a class label takes the place of the feature vector.
        max_regions: most regions of an image that the model reads, in training and after. Default 100, as in the paper.
    """

    model_type = "region_retriever"

    def __init__(
        self,
        region_feature_size: int = 0,
        region_labels: list[str] | None = None,
        max_regions: int = 100,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.max_regions = max_regions
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


@dataclass
class RegionRetrieverOutput(ModelOutput):
    """``scores (B,)``, higher for better matches, and ``last_hidden_state (B, T + V, H)``."""

    scores: Tensor | None = None
    last_hidden_state: Tensor | None = None


class RegionRetriever(BertPreTrainedModel):
    """Scores how well a text describes an image that is given as regions.

    One BERT reads ``[CLS] text [SEP]`` and then the regions. The score is ``w . tanh(W_p h + b_p) + b`` of the last
    hidden state h at [CLS]. Build a retriever with :meth:`from_encoder`, load a saved one with :meth:`from_pretrained`.
    The parameters that UNITER has too have UNITER's names.

    Args:
        config: sizes of BERT, and how a region is described.

    Shape:
        ``input_ids``, ``attention_mask`` ``(B, T)``, padded on the right; ``region_boxes (B, V, 7)``;
        ``region_mask (B, V)``, True for a region and False for padding; ``region_features (B, V, D)`` or
        ``region_labels (B, V)``. Texts or images with B = 1 are shared by all rows of the others: one text with B
        images, or B texts with one image.

    Example:
        >>> model = RegionRetriever.from_encoder(folder, region_labels=["person", "dog"])
        >>> model(**collator(pairs)).scores  # (B,)
    """

    config_class = RegionRetrieverConfig  # type: ignore[assignment]
    _supports_flash_attn = False
    _supports_flex_attn = False

    def __init__(self, config: RegionRetrieverConfig) -> None:
        super().__init__(config)
        if config.type_vocab_size <= REGION_TYPE:
            raise OptionError(f"type_vocab_size is {config.type_vocab_size}; text and regions need 2 token types")
        self.embeddings = BertEmbeddings(config)
        self.img_embeddings = RegionEmbeddings(config)
        self.encoder = BertEncoder(config)
        self.pooler = BertPooler(config)
        self.rank_output = nn.Linear(config.hidden_size, 1)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embeddings.word_embeddings = value  # type: ignore[assignment]

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        region_boxes: Tensor,
        region_mask: Tensor,
        region_features: Tensor | None = None,
        region_labels: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> RegionRetrieverOutput:
        rows = max(len(input_ids), len(region_boxes))
        if self.training:  # expanded before the embedding, so that every row draws a dropout of its own
            input_ids, region_boxes = input_ids.expand(rows, -1), region_boxes.expand(rows, -1, -1)
        text = self.embeddings(input_ids=input_ids, position_ids=position_ids)
        regions = self._embed_regions(region_boxes, region_features, region_labels)
        hidden = torch.cat((text.expand(rows, -1, -1), regions.expand(rows, -1, -1)), 1)
        mask = torch.cat((attention_mask.bool().expand(rows, -1), region_mask.bool().expand(rows, -1)), 1)
        hidden = self.encoder(hidden, attention_mask=_additive(mask, hidden.dtype)).last_hidden_state
        return RegionRetrieverOutput(self._rank(hidden), hidden)

    def score_pairs(self, texts: Mapping[str, Tensor], regions: Mapping[str, Tensor]) -> Tensor:
        """The scores of every text with every image, ``(texts, images)``; for evaluation mode, without dropout.

        The scores are those of :meth:`forward`. But each text and each image is embedded only once, and the last layer
        runs at [CLS] alone, as the score depends on nothing else of it.

        Args:
            texts: ``input_ids`` and ``attention_mask`` ``(texts, T)``.
            regions: ``region_boxes``, ``region_mask`` and ``region_features`` or ``region_labels`` ``(images, V, *)``.
        """
        text = self.embeddings(input_ids=texts["input_ids"])
        region = self._embed_regions(
            regions["region_boxes"], regions.get("region_features"), regions.get("region_labels")
        )
        pairs = (len(text), len(region))
        hidden = torch.cat((text[:, None].expand(*pairs, -1, -1), region[None].expand(*pairs, -1, -1)), 2).flatten(0, 1)
        text_mask, region_mask = texts["attention_mask"].bool(), regions["region_mask"].bool()
        mask = torch.cat((text_mask[:, None].expand(*pairs, -1), region_mask[None].expand(*pairs, -1)), 2).flatten(0, 1)
        additive = None if mask.all() else _additive(mask, hidden.dtype)
        for layer in self.encoder.layer[:-1]:
            output = layer(hidden, attention_mask=additive)
            hidden = output[0] if isinstance(output, tuple) else output  # transformers 4 gives a tuple
        cls = self._last_layer_at_cls(hidden, additive)
        return self._rank(cls).view(pairs)

    def _rank(self, hidden: Tensor) -> Tensor:
        """The scores, in the weights' own number format: in bfloat16 the best of a thousand candidates would tie."""
        with torch.autocast(hidden.device.type, enabled=False):
            return self.rank_output(self.pooler(hidden.to(self.rank_output.weight.dtype))).squeeze(-1)

    def _last_layer_at_cls(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        layer: Any = self.encoder.layer[-1]
        attention, cls = layer.attention.self, hidden[:, :1]
        heads = (attention.num_attention_heads, attention.attention_head_size)
        query = attention.query(cls).unflatten(-1, heads).transpose(1, 2)
        key = attention.key(hidden).unflatten(-1, heads).transpose(1, 2)
        value = attention.value(hidden).unflatten(-1, heads).transpose(1, 2)
        context = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        attended = layer.attention.output(context.transpose(1, 2).flatten(2), cls)
        return layer.output(layer.intermediate(attended), attended)

    def _embed_regions(self, boxes: Tensor, features: Tensor | None, labels: Tensor | None) -> Tensor:
        contents, name = (labels, "region_labels") if self.config.region_labels else (features, "region_features")
        if contents is None:
            raise ValueError(f"this model reads {name}")
        return self.img_embeddings(boxes, contents, self.embeddings.token_type_embeddings.weight[REGION_TYPE])

    @staticmethod
    def positions(attention_mask: Tensor, region_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Where the word pieces, without [CLS] and [SEP], and the regions stand in the joint sequence.

        These are the two masks, ``(B, T + V)`` booleans each, for
        :meth:`IAISHook.blocks <vision_language.iais.hook.IAISHook.blocks>`.
        """
        position = torch.arange(attention_mask.size(1), device=attention_mask.device)
        last = attention_mask.long().sum(1, keepdim=True) - 1
        words = F.pad((position > 0) & (position < last), (0, region_mask.size(1)))
        regions = F.pad(region_mask.bool(), (attention_mask.size(1), 0))
        rows = max(len(attention_mask), len(region_mask))
        return words.expand(rows, -1), regions.expand(rows, -1)

    @classmethod
    def from_encoder(
        cls,
        encoder: str | Path | BertConfig,
        *,
        region_feature_size: int = 0,
        region_labels: Sequence[str] | None = None,
        num_hidden_layers: int | None = None,
    ) -> RegionRetriever:
        """A retriever on a text encoder; weights that the encoder lacks are drawn from N(0, 0.02).

        Args:
            encoder: folder of a BERT with safetensors weights, or a :class:`~transformers.BertConfig` to start from
                random weights.
            region_feature_size: length of the feature vectors, D, for regions with features.
            region_labels: class names, for regions with class labels.
            num_hidden_layers: how many of the first layers are kept. Default: all.

        Raises:
            CheckpointError: a folder that is not a BERT model, or that holds pickled weights only.
            OptionError: more layers than there are, or not exactly one of region features and labels.
        """
        if isinstance(encoder, BertConfig):
            source, config = None, encoder
        else:
            _check_folder(encoder, "bert")
            source, _ = load_model(BertModel.from_pretrained, encoder, start=True)
            config = cast(BertConfig, source.config)
        layers = config.num_hidden_layers if num_hidden_layers is None else num_hidden_layers
        if not 1 <= layers <= config.num_hidden_layers:
            raise OptionError(
                f"num_hidden_layers: the encoder has {config.num_hidden_layers} layers, asked for {layers}"
            )
        values = {key: value for key, value in config.to_dict().items() if key not in ("model_type", "architectures")}
        values |= {
            "num_hidden_layers": layers,
            "region_feature_size": region_feature_size,
            "region_labels": None if region_labels is None else list(region_labels),
        }
        model = cls(RegionRetrieverConfig(**values))
        if source is not None:
            shared = model.state_dict().keys() & source.state_dict().keys()
            model.load_state_dict({key: source.state_dict()[key] for key in shared}, strict=False)
        return model

    @classmethod
    def from_pretrained(cls, folder: str | Path, *args: Any, **kwargs: Any) -> RegionRetriever:  # type: ignore[override]
        """A saved retriever, from a local folder and safetensors only.

        Raises:
            CheckpointError: a folder that is no saved retriever, lacks a weight, or holds pickled weights only.
        """
        _check_folder(folder, cls.config_class.model_type)
        read = super().from_pretrained
        return load_model(lambda path, **options: read(path, *args, **options), folder, **kwargs)[0]

    def load_uniter(self, state_dict: Mapping[str, Tensor]) -> None:
        """Take over the weights of a UNITER checkpoint, pre-trained or fine-tuned for retrieval.

        If the checkpoint has no ranking head, the row "match" of its image-text matching head becomes the ranking head,
        as in UNITER. The class vectors of a model with region labels stay as they are: UNITER has none. Names in the
        checkpoint may begin with ``module.``, ``model.``, ``uniter.`` or ``bert.``, and a LayerNorm's weights may be
        called gamma and beta, as in TensorFlow.

        Raises:
            CheckpointError: names the weights that are missing or have another shape.
        """
        weights = {_own_name(key): value for key, value in state_dict.items()}
        for part in ("weight", "bias"):
            if f"rank_output.{part}" not in weights and f"itm_output.{part}" in weights:
                weights[f"rank_output.{part}"] = weights[f"itm_output.{part}"][1:2]
        own = {key: value for key, value in self.state_dict().items() if not key.endswith("label_embeddings.weight")}
        missing = [key for key in own if key not in weights]
        if missing:
            has = first_few(sorted(state_dict)) or "nothing"
            raise CheckpointError(f"no UNITER checkpoint of this size: it lacks {first_few(missing)}; it has {has}")
        other = [
            f"{key} {tuple(weights[key].shape)} instead of {tuple(own[key].shape)}"
            for key in own
            if weights[key].shape != own[key].shape
        ]
        if other:
            raise CheckpointError(f"a UNITER checkpoint of another size: it has {first_few(other)}")
        self.load_state_dict({key: weights[key] for key in own}, strict=False)

    @torch.no_grad()
    def init_labels(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Start the vector of each region class from the mean word embedding of its name (our choice)."""
        if not self.config.region_labels:
            raise OptionError("init_labels: this model reads region features")
        for row, name in zip(self.img_embeddings.label_embeddings.weight, self.config.region_labels, strict=True):
            pieces = tokenizer(name, add_special_tokens=False, return_tensors="pt").input_ids[0].long()
            if len(pieces):
                row.copy_(self.embeddings.word_embeddings.weight[pieces].mean(0))


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """The additive mask ``(B, 1, 1, S)``: 0 where there is a token, else the least number of ``dtype``."""
    additive = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    return additive.masked_fill(~mask, torch.finfo(dtype).min)[:, None, None]


def _own_name(key: str) -> str:
    """The retriever's name for a weight that a checkpoint calls ``key``."""
    for prefix in PREFIXES:
        key = key.removeprefix(prefix)
    for old, new in ((".gamma", ".weight"), (".beta", ".bias")):
        key = f"{key.removesuffix(old)}{new}" if key.endswith(old) else key
    return key


def _check_folder(folder: str | Path, model_type: str) -> None:
    own_type = read_config(folder)["model_type"]
    if own_type != model_type:
        raise CheckpointError(f"{folder}: model_type is {own_type!r}, it must be {model_type!r}")
    check_weights(folder)
