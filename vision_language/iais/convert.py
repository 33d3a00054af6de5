"""Published captions, boxes and features to the region format that training reads."""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from fairseq_ext.training.errors import DataError, OptionError
from fairseq_ext.training.files import replacing, writing_to
from vision_language.iais.data import SPLITS
from vision_language.iais.sources import (
    Regions,
    read_captions,
    read_feature_tsv,
    read_instances,
    read_karpathy,
    read_npz,
)

__all__ = ["add_options", "convert"]

DRAW = {"valid": 500, "test": 500, "seed": 0}


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of :func:`convert` for a command line."""
    parser.add_argument("--out", required=True, help="folder of the region format; it must not hold one yet")
    parser.add_argument(
        "--captions",
        nargs="+",
        default=[],
        metavar="FILE",
        help="COCO captions json, Flickr30k token file, or csv [those in --splits]",
    )
    regions = parser.add_mutually_exclusive_group(required=True)
    regions.add_argument(
        "--instances", nargs="+", default=[], metavar="FILE", help="COCO instances json: boxes with class labels"
    )
    regions.add_argument(
        "--features",
        nargs="+",
        default=[],
        metavar="PATH",
        help="bottom-up-attention tsv files, or folders of npz files with features, norm_bb and conf, or x, bbox, "
        "image_w and image_h",
    )
    parser.add_argument("--splits", metavar="FILE", help="Karpathy's dataset_flickr30k.json or dataset_coco.json")
    for name, default in DRAW.items():
        help = "of that draw" if name == "seed" else f"{name} images, drawn where no --splits"
        parser.add_argument(f"--{name}", type=int, help=f"{help} [{default}]")


def convert(
    out: str | Path,
    captions: Sequence[str | Path] = (),
    instances: Sequence[str | Path] = (),
    features: Sequence[str | Path] = (),
    splits: str | Path | None = None,
    valid: int | None = None,
    test: int | None = None,
    seed: int | None = None,
) -> dict[str, int]:
    """Write a folder of the region format.

    Boxes are cut at the border of their image; those without size, images without boxes or without captions, and
    images that ``splits`` does not know are left out.

    Args:
        out: the folder. ``{train,valid,test}.jsonl`` are written last.
        captions, instances, features, splits: files, see ``python -m vision_language.iais convert --help``.
        valid, test, seed: how many images are drawn for validation and test where there is no ``splits``, and how.
            Default: 500, 500, 0.

    Returns:
        Images of each split, and the number of images ``left_out``.

    Raises:
        OptionError: nothing to convert, a draw beside ``splits``, or a folder that holds splits already.
        DataError: a bad file, one with a number that is not finite, or images that captions and splits do not know.
    """
    out = Path(out)
    if bool(instances) == bool(features):
        raise OptionError("convert: expected either --instances or --features")
    if not captions and splits is None:
        raise OptionError("convert: captions come from --captions or from --splits, got neither")
    draw = {name: value for name, value in zip(DRAW, (valid, test, seed), strict=True) if value is not None}
    for name, value in draw.items() if splits else ():
        raise OptionError(f"--{name} {value}: has no effect with --splits")
    if present := [path.name for split in SPLITS for path in out.glob(f"{split}.jsonl*")]:
        raise OptionError(f"--out: {out} already holds {present[0]}: choose another folder, or delete it")
    known, texts = read_karpathy(splits) if splits else ({}, {})
    if captions:
        texts = {}
        for path in captions:
            for key, found in read_captions(path).items():
                texts.setdefault(key, []).extend(found)
    texts = {key: [text for text in found if any(map(str.isalnum, text))] for key, found in texts.items()}
    wanted = known if splits else texts
    names, sources = _label_sources(instances) if instances else (None, _feature_sources(features))

    with writing_to(out):
        if features:
            (out / "features").mkdir(exist_ok=True)
        lines: dict[str, str] = {}
        left_out, unmatched = 0, None
        for regions in tqdm(sources, unit=" images"):
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
        chosen = {key: known[key] for key in lines} if splits else _drawn(sorted(lines), **DRAW | draw)
        counts = {split: sum(found == split for found in chosen.values()) for split in SPLITS}
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


def _feature_sources(paths: Sequence[str | Path]) -> Iterator[Regions]:
    for path in map(Path, paths):
        if path.is_dir():
            files = sorted(path.glob("*.npz"))
            if not files:
                raise DataError(f"{path}: no npz file in it")
            yield from map(read_npz, files)
        else:
            yield from read_feature_tsv(path)


def _line(regions: Regions, captions: list[str], out: Path) -> str | None:
    """The line of an image, its features written beside; None where it has no box or no caption."""
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
        _save_features(out / "features" / f"{image_id}.npy", regions.features[kept])
    return json.dumps({**value, "captions": captions}, ensure_ascii=False)


def _save_features(path: Path, features: np.ndarray) -> None:
    with replacing(path) as partial, open(partial, "wb") as file:
        np.save(file, features)


def _drawn(keys: list[str], valid: int, test: int, seed: int) -> dict[str, str]:
    if min(valid, test) < 1 or valid + test >= len(keys):
        raise OptionError(
            f"--valid and --test must be at least 1 and leave some of the {len(keys)} images, got {valid} and {test}"
        )
    shuffled = random.Random(seed).sample(keys, len(keys))
    held_out = {**dict.fromkeys(shuffled[:valid], "valid"), **dict.fromkeys(shuffled[valid : valid + test], "test")}
    return {key: held_out.get(key, "train") for key in keys}


def _write(path: Path, lines: Iterable[str]) -> None:
    with replacing(path) as partial, open(partial, "w", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in lines)
