"""The images of a split that fit a query best, and the maps of one caption and its image as pictures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from fairseq_ext.training.errors import OptionError
from vision_language.iais.data import Collator, Image, RegionData, read_regions, read_splits
from vision_language.iais.evaluate import score_matrix
from vision_language.iais.hook import IAISHook
from vision_language.iais.maps import AttentionBlocks
from vision_language.iais.model import RegionRetriever

__all__ = ["caption_of", "find_image", "maps_of", "read_split", "region_names", "search"]


def read_split(path: str | Path, split: str | None = None, max_regions: int = 100) -> RegionData:
    """A split of a folder, by default test, or a file alone, whose images need no captions then.

    Raises:
        OptionError: a split of a file.
    """
    if not Path(path).is_file():
        return read_splits(path, max_regions=max_regions)[split or "test"]
    if split is not None:
        raise OptionError(f"--split {split}: has no effect with --data {path}, a file")
    return read_regions(path, max_regions=max_regions, need_captions=False)


def check_query(query: str) -> None:
    """Refuse a text without words."""
    if not any(map(str.isalnum, query)):
        raise OptionError(f"--query: no word in {query!r}")


def search(
    model: RegionRetriever, data: RegionData, collator: Collator, query: str, count: int = 5, batch_size: int = 64
) -> list[tuple[float, Image]]:
    """The ``count`` images with the highest scores for ``query``, best first.

    Raises:
        OptionError: a query without words.
    """
    check_query(query)
    images = [replace(image, captions=() if number else (query,)) for number, image in enumerate(data.images)]
    asked = RegionData(images, data.labels, data.feature_size)
    scores, order = score_matrix(model, asked, collator, batch_size, progress=False)[0].sort(
        descending=True, stable=True
    )
    best = zip(scores[:count].tolist(), order[:count].tolist(), strict=True)
    return [(score, data.images[number]) for score, number in best]


def find_image(data: RegionData, image_id: str | None) -> Image:
    """The image of that id; the first where it is None.

    Raises:
        OptionError: no such image.
    """
    for image in data.images:
        if image_id is None or str(image.image_id) == image_id:
            return image
    raise OptionError(f"--image: none of the {len(data.images)} images has the id {image_id}")


def caption_of(image: Image, query: str | None) -> str:
    """The text of a pair with ``image``: the query, or where it is None the first caption.

    Raises:
        OptionError: neither, or a query without words.
    """
    if query is not None:
        check_query(query)
        return query
    if not image.captions:
        raise OptionError(f"--query: image {image.image_id} has no caption to draw; give one")
    return image.captions[0]


def region_names(data: RegionData, image: Image) -> list[str]:
    """The class of every region; a number where regions have features alone."""
    if data.labels is None or image.labels is None:
        return [str(number) for number in range(1, len(image.boxes) + 1)]
    return [data.labels[label] for label in image.labels.tolist()]


@torch.inference_mode()
def maps_of(
    model: RegionRetriever, tokenizer: PreTrainedTokenizerBase, collator: Collator, caption: str, image: Image
) -> tuple[list[str], AttentionBlocks]:
    """The word pieces of a caption and the maps of its pair with an image; the model is in evaluation mode."""
    batch = {name: value.to(model.device) for name, value in collator([(caption, image)]).items()}
    with IAISHook(model) as hook:
        model(**batch)
        blocks = hook.blocks(*model.positions(batch["attention_mask"], batch["region_mask"]))
    return list(tokenizer.convert_ids_to_tokens(batch["input_ids"][0, 1:-1].tolist())), blocks
