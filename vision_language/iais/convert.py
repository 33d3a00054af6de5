"""Converts published captions, boxes and features to the region format that training reads."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fairseq_ext.regions.boxes import Regions
from fairseq_ext.regions.caption_files import read_captions
from fairseq_ext.regions.feature_files import Images, open_features
from fairseq_ext.regions.json_files import read_instances, read_karpathy, read_sizes
from fairseq_ext.regions.region_files import split_name
from fairseq_ext.regions.splits import drawn
from fairseq_ext.training.arrays import write_npy
from fairseq_ext.training.errors import DataError, OptionError
from fairseq_ext.training.files import replacing, writing_to
from fairseq_ext.training.options import SPLITS, OptionSet, option, seed_option
from fairseq_ext.training.progress import progress

__all__ = ["ConvertOptions", "convert"]


@dataclass(frozen=True, kw_only=True)
class ConvertOptions(OptionSet):
    """What is converted, and where to.

    Raises:
        OptionError: nothing to convert, or a draw beside ``split_file``.
    """

    out: str = option(help="folder of the region format; it must not hold one yet")
    captions: tuple[str, ...] = option(
        (), "COCO captions json, Flickr30k token file, or csv (default: the captions in --split-file)"
    )
    instances: tuple[str, ...] = option((), "COCO instances json: boxes with class labels")
    features: tuple[str, ...] = option(
        (),
        "vectors in place of --instances: bottom-up-attention tsv files, or folders of npz files: with features, "
        "norm_bb and conf; with x, bbox, image_w and image_h; or NAME_att with feat, beside NAME_box",
    )
    split_file: str = option("", "splits: Karpathy's dataset_flickr30k.json or dataset_coco.json")
    valid: int = option(500, "validation images, drawn where no --split-file", least=1)
    test: int = option(500, "test images, drawn where no --split-file", least=1)
    seed: int = seed_option(0, "seed of the draw of validation and test images")

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.instances) == bool(self.features):
            raise OptionError("convert: regions come from either --instances or --features, got both or neither")
        if not self.captions and not self.split_file:
            raise OptionError("convert: captions come from --captions or from --split-file, got neither")
        if self.split_file:
            self.refuse_idle(f"with --split-file {self.split_file}", "valid", "test", "seed")


def convert(options: ConvertOptions) -> dict[str, int]:
    """Write a folder of the region format; ``{train,valid,test}.jsonl`` are written last.

    Boxes are cut at the border of their image. Left out are boxes without size, images without boxes or without
    captions, and images that ``split_file`` does not name.

    Returns:
        The number of images of each split, and of those ``left_out``.

    Raises:
        OptionError: the folder holds splits already, or the draw leaves no image to train on.
        DataError: a bad file, a number that is not finite, captions and regions of different images, or an empty split.
    """
    out = Path(options.out)
    if present := [name for split in SPLITS if (name := split_name(out, split))]:
        raise OptionError(f"--out: {out} already holds {present[0]}: choose another folder, or delete it")
    split_of, texts = read_karpathy(options.split_file) if options.split_file else ({}, {})
    if options.captions:
        texts = {}
        for path in options.captions:
            for key, captions in read_captions(path).items():
                texts.setdefault(key, []).extend(captions)
    texts = {key: [text for text in captions if any(map(str.isalnum, text))] for key, captions in texts.items()}
    wanted = split_of if options.split_file else texts
    if options.instances:
        names, sources = _label_sources(options.instances)
    else:
        images = Images(read_sizes(options.captions))
        files = [open_features(path, images) for path in options.features]
        names, sources = None, (regions for file in files for regions in file.read())

    with writing_to(out):
        if options.features:
            (out / "features").mkdir(exist_ok=True)
        lines: dict[str, str] = {}
        left_out, unmatched = 0, None
        for regions in progress(sources, "images", unit=" images"):
            if regions.key in lines:
                raise DataError(f"image {regions.key} is in two of the files of --instances or --features")
            if regions.key not in wanted:
                unmatched = regions
            line = None if unmatched is regions else _line(regions, texts.get(regions.key, []), out)
            left_out += line is None
            if line is not None:
                lines[regions.key] = line
        if unmatched and not lines:
            raise DataError(
                f"convert: captions and regions are not of the same images: regions of {unmatched.key!r} "
                f"({unmatched.origin}), captions of {next(iter(wanted), 'none')!r}"
            )
        if options.split_file:
            chosen = {key: split_of[key] for key in lines}
        else:
            chosen = drawn(sorted(lines), options.valid, options.test, options.seed)
        counts = {split: list(chosen.values()).count(split) for split in SPLITS}
        if not all(counts.values()):
            raise DataError(f"convert: a split would be empty: {counts}; {left_out} images were left out")
        if names:
            _write(out / "categories.txt", names)
        for split in SPLITS:
            _write(out / f"{split}.jsonl", (line for key, line in lines.items() if chosen[key] == split))
    return {**counts, "left_out": left_out}


def _label_sources(paths: Sequence[str | Path]) -> tuple[list[str], Iterator[Regions]]:
    files = [read_instances(path) for path in paths]
    for path, (names, _) in zip(paths, files, strict=True):
        if names != files[0][0]:
            raise DataError(f"{path}: its categories are not those of {paths[0]}")
    return files[0][0], (regions for _, images in files for regions in images.values())


def _line(regions: Regions, captions: list[str], out: Path) -> str | None:
    """The line of an image in its split; its features are written to a file. None if it has no box or no caption."""
    limits = np.array([regions.width, regions.height, regions.width, regions.height], dtype=np.float64)
    boxes = np.round(regions.boxes.astype(np.float64).clip(0, limits), 6)
    kept = (boxes[:, 0] < boxes[:, 2]) & (boxes[:, 1] < boxes[:, 3])
    if not kept.any() or not captions:
        return None
    rows: list[Any] = boxes[kept].tolist()
    if regions.labels is not None:
        rows = [[*box, label] for box, label in zip(rows, regions.labels[kept].tolist(), strict=True)]
    image_id = int(regions.key) if regions.key.isdigit() else regions.key
    value = {"image_id": image_id, "width": regions.width, "height": regions.height, "boxes": rows}
    if regions.confidence is not None:
        value["confidence"] = regions.confidence[kept].clip(0, 1).round(6).tolist()
    if regions.features is not None:
        write_npy(out / "features" / f"{image_id}.npy", regions.features[kept])
    return json.dumps({**value, "captions": captions}, ensure_ascii=False)


def _write(path: Path, lines: Iterable[str]) -> None:
    with replacing(path) as partial, open(partial, "w", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in lines)
