"""The options of ``captioning_transformer_ext``, and what is refused beside a data set of images."""

# No `from __future__ import annotations` here: fairseq reads the field types of the dataclass.
import logging
from dataclasses import dataclass
from typing import Any

from fairseq.dataclass import FairseqDataclass
from omegaconf import II

from fairseq_ext.captions.store import Preparation
from fairseq_ext.models.config import TransformerExtConfig
from fairseq_ext.models.stock_options import refuse_unless
from fairseq_ext.training.options import check_fields, flag, option

__all__ = ["CaptioningTransformerExtConfig", "VisualOptions", "check_visual_options", "visual_arguments"]

logger = logging.getLogger(__name__)

GEOMETRIES = {"g7": 7, "g5": 5, "none": 0}
POSITIONS = ("geometry", "learned", "sinusoid", "none")

# fairseq's options for a source of words
WITHOUT_WORDS = {
    "share_all_embeddings": "an image has no words to share embeddings with, --share-decoder-input-output-embed does",
    "merge_src_tgt_embed": "an image has no words to share embeddings with, --share-decoder-input-output-embed does",
    "encoder_embed_path": "an image has no words",
    "encoder_learned_pos": "an image has no word positions, a grid has --visual-position learned",
    "no_token_positional_embeddings": "would take the positions of the caption's words, an image has none of these",
    "no_cross_attention": "captions would not depend on the image",
    "cross_self_attention": "captions would not be separated from the image",
}


@dataclass
class VisualOptions(FairseqDataclass):
    """How images are embedded (:class:`~fairseq_ext.modules.visual.VisualEmbedding`)."""

    visual_geometry: str = option(
        "g7",
        f"numbers that say where a box or cell lies: {', '.join(GEOMETRIES)}; g7 = corners, width, height and area "
        "(UNITER), g5 = corners and area",
        tuple(GEOMETRIES),
    )
    visual_position: str = option(
        "geometry",
        f"positions of the cells of a grid: {', '.join(POSITIONS)}; geometry = the cells as boxes, with "
        "--visual-geometry",
        POSITIONS,
    )
    visual_dropout: float = option(
        0.0, "dropout on embedded feature vectors (ImageCaptioning.pytorch: 0.5)", least=0, below=1
    )
    visual_classes: bool = option(False, "add a vector of its class to a region that has a feature vector as well")


@dataclass
class CaptioningTransformerExtConfig(VisualOptions, TransformerExtConfig):
    """The options of ``transformer_ext`` and :class:`VisualOptions`."""

    # the task's options of the same name, so that both have one value
    max_source_positions: int = II("task.max_source_positions")
    max_target_positions: int = II("task.max_target_positions")


def visual_arguments(cfg: Any, data: Preparation) -> dict[str, Any]:
    """The arguments of :class:`~fairseq_ext.modules.visual.VisualEmbedding` beside its width and dropout."""
    position = cfg.visual_position if data.kind == "grid" else "geometry"
    table = {"grid": data.grid, "position": position} if position in ("learned", "sinusoid") else {}
    return {
        "feature_dim": data.feature_dim,
        "num_classes": data.num_classes if data.kind == "classes" or cfg.visual_classes else 0,
        "numbers": GEOMETRIES[cfg.visual_geometry] if position == "geometry" else 0,
        **table,
    }


def check_visual_options(cfg: Any, data: Preparation) -> None:
    """Refuses options that do nothing, or cannot work, with these images; warns of those that depend on their order.

    Args:
        cfg: nested config carrying :class:`VisualOptions` and :class:`~fairseq_ext.models.ext_options.ExtOptions`.
        data: preparation of the images.

    Raises:
        OptionError: one line that names the option.
    """
    check_fields(cfg, VisualOptions)
    for name, reason in WITHOUT_WORDS.items():
        refuse_unless(not getattr(cfg, name), f"{flag(name)}: not with captioning_transformer_ext, {reason}")
    position = cfg.visual_position
    if data.kind == "grid":
        refuse_unless(
            position == "geometry" or cfg.visual_geometry == VisualOptions.visual_geometry,
            f"--visual-geometry {cfg.visual_geometry}: has no effect with --visual-position {position}",
        )
        refuse_unless(
            position != "geometry" or cfg.visual_geometry != "none",
            "--visual-geometry none: the cells of a grid would have no positions, which --visual-position none says",
        )
        refuse_unless(
            position != "sinusoid" or cfg.encoder.embed_dim % 4 == 0,
            f"--visual-position sinusoid: --encoder-embed-dim {cfg.encoder.embed_dim} is not a multiple of 4",
        )
    else:
        refuse_unless(
            position == VisualOptions.visual_position,
            f"--visual-position {position}: is for images on a grid, these are {data.kind}",
        )
    refuse_unless(
        data.feature_dim or not cfg.visual_dropout,
        f"--visual-dropout {cfg.visual_dropout}: has no effect on {data.kind} without feature vectors",
    )
    if cfg.visual_classes:
        refuse_unless(
            data.feature_dim, f"--visual-classes: has no effect on {data.kind}, which are classes alone already"
        )
        refuse_unless(data.num_classes, f"--visual-classes: these {data.kind} have no classes")
    if cfg.block == "muse" and data.kind != "grid":
        logger.warning(
            "--block muse: its convolution reads neighbours in the order of the file, which regions do not have; "
            "--block muse-simple does without"
        )
