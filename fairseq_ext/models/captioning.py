"""``captioning_transformer_ext``: a ``transformer_ext`` that reads an image and writes its caption."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from fairseq import hub_utils
from fairseq.models import register_model
from fairseq.modules import FairseqDropout
from torch import Tensor

from fairseq_ext.captions.store import Preparation
from fairseq_ext.models.attention import NotExportable
from fairseq_ext.models.captioning_hub import CaptioningHubInterface
from fairseq_ext.models.captioning_options import (
    CaptioningTransformerExtConfig,
    check_visual_options,
    visual_arguments,
)
from fairseq_ext.models.check_options import check_options
from fairseq_ext.models.config import add_options, legacy_arguments, nested_config
from fairseq_ext.models.stock_options import check_stock_options, check_task, check_translation_options, refuse_unless
from fairseq_ext.models.transformer import CrossViewEncoder, TransformerExtEncoder, TransformerExtModel
from fairseq_ext.modules.visual import VisualEmbedding
from fairseq_ext.training.weights import check_finite

__all__ = ["CaptioningTransformerExtModel", "CrossViewImageEncoder", "ImageEncoder"]

PAD, SPECIAL_SYMBOLS = 1, 4  # fairseq's: a region of class c is the token c + 4


class _ImageInput(NotExportable):
    """An encoder of images, with a :class:`~fairseq_ext.modules.visual.VisualEmbedding` before its layers.

    ``src_tokens`` says which regions there are, so that the parts of fairseq that read it still work: padding, or class
    + 4, or the unknown word where the images have feature vectors.

    Args:
        cfg: nested config carrying :class:`~fairseq_ext.models.captioning_options.VisualOptions`.
        data: preparation of the images.
    """

    option = "--arch captioning_transformer_ext"

    def __init__(self, cfg: Any, data: Preparation) -> None:
        super().__init__(cfg, None, SimpleNamespace(embedding_dim=cfg.encoder.embed_dim, padding_idx=PAD))
        # an image has neither words nor their positions, and its embedding has the scale it needs
        self.embed_tokens, self.embed_positions, self.embed_scale = None, None, 1.0
        self.kind = data.kind
        self.visual = VisualEmbedding(cfg.encoder.embed_dim, **visual_arguments(cfg, data))
        # fairseq's dropout, which --retain-dropout reaches
        self.visual.dropout = FairseqDropout(cfg.visual_dropout, module_name="VisualEmbedding")

    def forward(
        self,
        src_tokens: Tensor,
        src_lengths: Tensor | None = None,
        return_all_hiddens: bool = False,
        token_embeddings: Tensor | None = None,
        features: Tensor | None = None,
        geometry: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> dict[str, list[Tensor]]:
        """As fairseq's ``TransformerEncoderBase.forward``, of images.

        Args:
            src_tokens: ``(B, R)``.
            src_lengths, return_all_hiddens: as in fairseq.
            token_embeddings: ``(B, R, E)``, in place of the embedding of the other arguments.
            features, geometry, labels: ``(B, R, D)``, ``(B, R, 7)`` and ``(B, R)``.
        """
        if token_embeddings is None:
            if self.kind == "classes":
                labels = (src_tokens - SPECIAL_SYMBOLS).clamp(min=0)
            token_embeddings = self.visual(features, geometry, labels)
        return super().forward(src_tokens, src_lengths, return_all_hiddens, token_embeddings)


class ImageEncoder(_ImageInput, TransformerExtEncoder):
    """:class:`~fairseq_ext.models.transformer.TransformerExtEncoder` of images."""


class CrossViewImageEncoder(_ImageInput, CrossViewEncoder):
    """:class:`~fairseq_ext.models.transformer.CrossViewEncoder` of images."""


@register_model("captioning_transformer_ext", dataclass=CaptioningTransformerExtConfig)
class CaptioningTransformerExtModel(TransformerExtModel):
    """Transformer from regions, grids or classes to captions, with the options of ``transformer_ext``.

    The task's ``preparation`` says what an image is, and the options how it is embedded.
    """

    @classmethod
    def add_args(cls, parser: Any) -> None:
        add_options(parser, CaptioningTransformerExtConfig)

    @classmethod
    def build_model(cls, cfg: Any, task: Any) -> CaptioningTransformerExtModel:
        check_task(task, "captioning_transformer_ext", ("captioning",))
        data = getattr(task, "preparation", None)
        refuse_unless(
            data is not None, f"captioning_transformer_ext: needs --task captioning, got {type(task).__name__}"
        )
        nested = nested_config(cfg, CaptioningTransformerExtConfig)
        check_visual_options(nested, data)
        check_options(nested, encoder=nested.encoder, decoder=nested.decoder, cross_attention=True)
        check_stock_options(nested, encoder=nested.encoder, decoder=nested.decoder)
        words = task.target_dictionary
        check_translation_options(nested, None, words)
        nested.checkpoint_activations |= nested.offload_activations
        encoder = (ImageEncoder if nested.cross_view == "none" else CrossViewImageEncoder)(nested, data)
        decoder = nested.decoder
        embed_tokens = cls.build_embedding(nested, words, decoder.embed_dim, decoder.embed_path)
        model = cls(nested, encoder, cls.build_decoder(nested, words, embed_tokens))
        model.configure(nested, legacy_arguments(cfg, CaptioningTransformerExtConfig))
        return model

    @classmethod
    def from_pretrained(
        cls, model_name_or_path: str, checkpoint_file: str = "model.pt", data_name_or_path: str = ".", **kwargs: Any
    ) -> CaptioningHubInterface:
        """As in fairseq, but the object that is returned captions images; weights that are not finite are refused.

        Args:
            model_name_or_path: folder of the checkpoint.
            checkpoint_file: name of the checkpoint.
            data_name_or_path: folder of prepared images and captions.
            **kwargs: options that replace those of the checkpoint.
        """
        parts = hub_utils.from_pretrained(model_name_or_path, checkpoint_file, data_name_or_path, **kwargs)
        for name, model in zip(checkpoint_file.split(os.pathsep), parts["models"], strict=True):
            check_finite(model.state_dict(), Path(model_name_or_path, name))
        return CaptioningHubInterface(parts["args"], parts["task"], parts["models"])

    def forward(
        self,
        src_tokens: Tensor,
        src_lengths: Tensor | None,
        prev_output_tokens: Tensor,
        features: Tensor | None = None,
        geometry: Tensor | None = None,
        labels: Tensor | None = None,
        return_all_hiddens: bool = True,
        features_only: bool = False,
        alignment_layer: int | None = None,
        alignment_heads: int | None = None,
    ) -> tuple[Tensor, dict[str, list[Tensor | None]]]:
        """As in fairseq's ``TransformerModelBase``, with the inputs of :meth:`ImageEncoder.forward` for images."""
        encoder_out = self.encoder(
            src_tokens, src_lengths, return_all_hiddens, features=features, geometry=geometry, labels=labels
        )
        return self.decoder(
            prev_output_tokens,
            encoder_out=encoder_out,
            features_only=features_only,
            alignment_layer=alignment_layer,
            alignment_heads=alignment_heads,
            src_lengths=src_lengths,
            return_all_hiddens=return_all_hiddens,
        )
