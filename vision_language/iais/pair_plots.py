"""The figures of one caption and its image: their maps before and after training, and the curves of the training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from fairseq_ext.training.errors import OptionError
from fairseq_ext.training.files import writing_to
from fairseq_ext.training.options import option
from fairseq_ext.training.runs import torch_device
from vision_language.iais.alignment import mirrored_maps
from vision_language.iais.blocks import AttentionBlocks
from vision_language.iais.data import Collator, Image, RegionData
from vision_language.iais.encoder import ModelOptions, load
from vision_language.iais.hook import IAISHook
from vision_language.iais.model import RegionRetriever
from vision_language.iais.options import MIRRORS
from vision_language.iais.plot import distinct_names, draw_alignment, draw_history, draw_self_attention, read_history
from vision_language.iais.search import check_query, region_names

__all__ = ["PlotOptions", "draw_pair", "maps_of"]


@dataclass(frozen=True, kw_only=True)
class PlotOptions(ModelOptions):
    """The trained model, and the pair that is drawn."""

    image: str = option("", "id of the image (default: the first)")
    query: str = option("", "text of the pair (default: the image's first caption)")
    before: str = option("", "folder of the model to compare with (default: initial, beside the folder of the model)")
    mirror: str = option("singular", "how the mirror is made", MIRRORS)
    out: str = option("", "folder of the figures (default: the one above the model's)")


def draw_pair(options: PlotOptions) -> list[Path]:
    """Draw the pair of ``options``.

    Returns:
        The paths of ``alignment.png``, ``words.png``, ``regions.png`` and, where the ``results.json`` of the model's
        training lies above the training's folder, ``history.png``.

    Raises:
        OptionError: no such image, a text without words, or a folder that cannot be written.
        DataError: the data does not fit the model, or ``results.json`` is damaged.
    """
    run, device = Path(options.model).parent, torch_device(options.device)
    model, collator, data = options.load(device)
    before, _ = load(options.before or run / "initial", device)
    data.check_model(model.config)
    image = find_image(data, options.image)
    caption = caption_of(image, options.query)
    results = run.parent / "results.json"
    history = read_history(results, run.name) if results.exists() else []
    names = region_names(data, image)
    words = collator.tokenizer.convert_ids_to_tokens(collator.texts([caption])["input_ids"][0, 1:-1].tolist())
    maps = [maps_of(of_model, collator, caption, image) for of_model in (before, model)]
    own, mirrors = (
        [(blocks.ll, blocks.vv) for blocks in maps],
        [mirrored_maps(blocks, options.mirror) for blocks in maps],
    )
    with writing_to(options.out or run) as out:
        paths = [out / f"{name}.png" for name in ("alignment", "words", "regions", *(["history"] if history else []))]
        size = (image.width, image.height)
        draw_alignment(words, names, maps[1].lv[0], paths[0], size=size, boxes=image.boxes, title=caption)
        for side, (labels, path) in enumerate(((words, paths[1]), (distinct_names(names), paths[2]))):
            first, last = ((map_[side][0], mirror[side][0]) for map_, mirror in zip(own, mirrors, strict=True))
            draw_self_attention(first, last, labels, path, title=caption)
        if history:
            draw_history(history, paths[3])
    return paths


def find_image(data: RegionData, image_id: str) -> Image:
    """The image with the given id; the first image where the id is empty.

    Raises:
        OptionError: no such image.
    """
    for image in data.images:
        if image_id in ("", str(image.image_id)):
            return image
    raise OptionError(f"--image: none of the {len(data.images)} images has the id {image_id}")


def caption_of(image: Image, query: str) -> str:
    """The text of a pair with ``image``: the query or, where that is empty, the image's first caption.

    Raises:
        OptionError: there is neither, or the query has no words.
    """
    if query:
        check_query(query)
    elif not image.captions:
        raise OptionError(f"--query: image {image.image_id} has no caption to draw; give one")
    return query or image.captions[0]


@torch.inference_mode()
def maps_of(model: RegionRetriever, collator: Collator, caption: str, image: Image) -> AttentionBlocks:
    """The attention maps of a caption and an image, by a model that is in evaluation mode."""
    batch = {name: value.to(model.device) for name, value in collator([(caption, image)]).items()}
    with IAISHook(model) as hook:
        model(**batch)
        return hook.blocks(*model.positions(batch["attention_mask"], batch["region_mask"]))
