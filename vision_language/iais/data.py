"""Images given as regions, with captions, and batches of them for the model."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fairseq_ext.modules.visual import box_geometry
from fairseq_ext.regions.region_files import FeatureFiles, category_names, read_records, split_file
from fairseq_ext.training.arrays import read_array
from fairseq_ext.training.errors import DataError, OptionError
from fairseq_ext.training.options import SPLITS
from fairseq_ext.training.progress import progress
from fairseq_ext.training.settings import digest

__all__ = ["Collator", "Image", "RegionData", "read_regions", "read_splits"]

MIN_REGIONS = 10


@dataclass(frozen=True, eq=False)
class Image:
    """The V regions of an image that the model sees, and the captions of the image.

    Attributes:
        boxes: boxes of the regions in pixels, ``(V, 4)``.
        geometry: ``(V, 7)``, see :func:`~fairseq_ext.modules.visual.box_geometry`.
        labels: class numbers of the regions, ``(V,)``, where the data has them.
        origin: file and line of the image, for messages.
        rows: numbers of the V regions among those of the file.
        stored_features: the features of all regions of the file, or the path of the file that holds them.
    """

    image_id: int | str
    width: float
    height: float
    captions: tuple[str, ...]
    boxes: Tensor
    geometry: Tensor
    labels: Tensor | None
    origin: str
    rows: np.ndarray
    stored_features: Path | np.ndarray | None = None

    def features(self) -> Tensor:
        """The features of the regions, ``(V, D)`` float32; where they lie in a file, each call reads the file.

        Raises:
            DataError: there are no features, fewer than when the data was read, or one is not a finite number.
        """
        stored = self.stored_features
        if stored is None:
            raise DataError(f"{self.origin}: image {self.image_id} has no features")
        array = read_array(stored) if isinstance(stored, Path) else stored
        if array.ndim != 2 or array.shape[0] <= self.rows.max():
            raise DataError(f"{stored}: features {array.shape} are not those of image {self.image_id} any more")
        features = torch.from_numpy(array[self.rows].astype(np.float32))
        if not features.isfinite().all():
            raise DataError(f"{self.origin}: a feature of image {self.image_id} is not a finite number")
        return features


class RegionData(torch.utils.data.Dataset):
    """Images and their captions; item t is caption t with the image it belongs to, ``(caption, Image)``.

    Attributes:
        images: the images.
        captions: the captions of all images, image by image.
        text_to_image: ``(captions,)``, the number of each caption's image.
        labels: class names, where regions have labels.
        feature_size: length of a region's features, D; 0 where regions have none.
    """

    def __init__(self, images: Sequence[Image], labels: Sequence[str] | None = None, feature_size: int = 0) -> None:
        self.images = list(images)
        self.captions = [caption for image in self.images for caption in image.captions]
        counts = torch.tensor([len(image.captions) for image in self.images], dtype=torch.long)
        self.text_to_image = torch.arange(len(self.images)).repeat_interleave(counts)
        self.first_text = (counts.cumsum(0) - counts).tolist()
        self.labels = None if labels is None else list(labels)
        self.feature_size = feature_size

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, text: int) -> tuple[str, Image]:
        return self.captions[text], self.images[int(self.text_to_image[text])]

    def texts_of(self, image: int) -> range:
        """The numbers of an image's captions."""
        return range(self.first_text[image], self.first_text[image] + len(self.images[image].captions))

    def pairs(self, indices: Sequence[tuple[int, int]]) -> list[tuple[str, Image]]:
        """Items for the collator of pairs ``(caption number, image number)``, matched or not."""
        return [(self.captions[text], self.images[image]) for text, image in indices]

    def digest(self, accelerator: Accelerator | None = None) -> str:
        """SHA-256 of everything in the split that a model sees; reads every feature.

        Args:
            accelerator: the processes, each of which reads a share of the images. Default: one process.

        Raises:
            DataError: a feature is not a finite number, or a file is damaged; in all processes.
        """
        rank, world = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
        own: list[str] | DataError
        try:
            share = progress(self.images[rank::world], "features", unit=" images", leave=False)
            own = [self._digest_of(image) for image in share]
        except DataError as error:
            if world == 1:
                raise
            own = error  # no process waits for one that has ended
        parts = [""] * len(self.images)
        for number, part in enumerate(gather_object([own]) if world > 1 else [own]):
            if isinstance(part, DataError):
                raise part
            parts[number::world] = part
        return digest(digest(self.labels, self.feature_size), *parts)

    def _digest_of(self, image: Image) -> str:
        contents = (image.geometry, image.labels, image.features() if self.feature_size else None)
        return digest(str(image.image_id), image.captions, *contents)

    def check_model(self, config: Any) -> None:
        """Refuse a model, given its ``config``, that was made for other regions.

        Raises:
            DataError: class names or feature size differ.
        """
        origin = Path(self.images[0].origin.rpartition(":")[0])
        if config.region_labels:
            if self.labels is None:
                raise DataError(f"{origin}: no categories.txt beside it; the model reads region labels")
            if self.labels != list(config.region_labels):
                raise DataError(f"{origin.parent / 'categories.txt'}: not the {len(config.region_labels)} of the model")
        elif self.feature_size != config.region_feature_size:
            own = f"features have {self.feature_size} numbers" if self.feature_size else "regions have no features"
            raise DataError(f"{origin}: {own}; the model reads {config.region_feature_size}")


class Collator:
    """Turns captions and images into keyword arguments of :class:`~vision_language.iais.model.RegionRetriever`.

    Args:
        tokenizer: a fast or slow Hugging Face tokenizer that frames a text by [CLS] and [SEP].
        max_text_length: longer captions are cut to this many word pieces; None cuts to as many as the tokenizer's
            model can read. Default 60 (UNITER leaves longer captions out in training and cuts none in evaluation).

    Example:
        >>> loader = DataLoader(data, batch_size=32, collate_fn=Collator(tokenizer))
    """

    def __init__(self, tokenizer: Any, max_text_length: int | None = 60) -> None:
        if max_text_length is not None and max_text_length < 1:
            raise OptionError(f"max_text_length must be at least 1, got {max_text_length}")
        if tokenizer.cls_token_id is None or tokenizer.sep_token_id is None or tokenizer.pad_token_id is None:
            raise OptionError("the tokenizer must have the tokens [CLS], [SEP] and [PAD] of BERT")
        self.tokenizer = tokenizer
        longest = min(tokenizer.model_max_length, sys.maxsize)  # a tokenizer without a limit says 10^30
        self.max_length = longest if max_text_length is None else min(max_text_length + 2, longest)

    def __call__(self, items: Sequence[tuple[str, Image]]) -> dict[str, Tensor]:
        captions, images = zip(*items, strict=True)
        return {**self.texts(captions), **self.regions(images)}

    def texts(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """``input_ids`` and ``attention_mask`` ``(B, T)`` of captions."""
        encoded = self.tokenizer(list(captions), truncation=True, max_length=self.max_length)["input_ids"]
        padding = self.tokenizer.pad_token_id
        ids = pad_sequence([torch.tensor(pieces) for pieces in encoded], batch_first=True, padding_value=padding)
        lengths = torch.tensor([len(pieces) for pieces in encoded])
        return {"input_ids": ids, "attention_mask": torch.arange(ids.size(1)) < lengths[:, None]}

    def regions(self, images: Sequence[Image]) -> dict[str, Tensor]:
        """``region_boxes (B, V, 7)``, ``region_mask (B, V)``, and ``region_features`` or ``region_labels``."""
        boxes = pad_sequence([image.geometry for image in images], batch_first=True)
        lengths = torch.tensor([len(image.geometry) for image in images])
        batch = {"region_boxes": boxes, "region_mask": torch.arange(boxes.size(1)) < lengths[:, None]}
        if images[0].stored_features is not None:
            batch["region_features"] = pad_sequence([image.features() for image in images], batch_first=True)
        if images[0].labels is not None:
            labels = [image.labels for image in images if image.labels is not None]
            batch["region_labels"] = pad_sequence(labels, batch_first=True)
        return batch


def read_splits(folder: str | Path, **options: Any) -> dict[str, RegionData]:
    """``train``, ``valid`` and ``test`` of a folder with ``{train,valid,test}.jsonl`` or ``.jsonl.gz``.

    Args:
        folder: the folder.
        **options: options of :func:`read_regions`.

    Raises:
        OptionError: no such folder.
        DataError: a missing or bad file, an image in two places, or splits with features of different sizes.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise OptionError(f"--data: {folder} is not a folder")
    splits = {split: read_regions(split_file(folder, split), **options) for split in SPLITS}
    seen: dict[str, str] = {}
    for data in splits.values():
        for image in data.images:
            before = seen.setdefault(str(image.image_id), image.origin)
            if before != image.origin:
                raise DataError(f"{image.origin}: image_id {image.image_id} is also at {before}")
    sizes = {split: data.feature_size for split, data in splits.items()}
    if len(set(sizes.values())) > 1:
        raise DataError(f"{folder}: the splits have features of different sizes: {sizes}")
    return splits


def read_regions(
    path: str | Path,
    min_regions: int | None = None,
    max_regions: int = 100,
    confidence_threshold: float = 0.2,
    need_captions: bool = True,
) -> RegionData:
    """The images of one file.

    Where boxes have a confidence, they are sorted by it, and those above the threshold are kept, but at least
    ``min_regions`` (if the image has so many) and at most ``max_regions``. Where they have none, the first
    ``max_regions`` are kept. All defaults are UNITER's.

    Args:
        path: a ``.jsonl`` or ``.jsonl.gz`` file.
        min_regions: fewest regions of an image. Default 10, or ``max_regions`` where that is less.
        max_regions: most regions of an image. Default 100.
        confidence_threshold: regions with more confidence are kept. Default 0.2.
        need_captions: whether images without captions are refused. Default True.

    Raises:
        DataError: a bad line, or no image in the file; names the file.
    """
    path = Path(path)
    min_regions = min(MIN_REGIONS, max_regions) if min_regions is None else min_regions
    if not 1 <= min_regions <= max_regions:
        raise OptionError(f"min_regions must be from 1 to max_regions, got {min_regions} and {max_regions}")
    labels = category_names(path.parent)
    files = FeatureFiles(path.parent)
    images = []
    for record in read_records(path, None if labels is None else len(labels), need_captions):
        rows = np.arange(len(record.boxes))
        count = len(rows)
        if record.confidence is not None:
            rows = np.argsort(-record.confidence, kind="stable")
            count = max(int((record.confidence > confidence_threshold).sum()), min_regions)
        rows = rows[: min(count, max_regions)]
        boxes = torch.from_numpy(record.boxes[rows])
        images.append(
            Image(
                record.image_id,
                record.width,
                record.height,
                record.captions,
                boxes.float(),
                box_geometry(boxes, record.width, record.height).float(),
                None if record.labels is None else torch.from_numpy(record.labels[rows]),
                record.origin,
                rows,
                files.find(record),
            )
        )
    if not images:
        raise DataError(f"{path}: no image in it")
    return RegionData(images, labels, files.size)
