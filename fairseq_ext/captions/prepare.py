"""Turns images and captions into the folder that the task ``captioning`` reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fairseq_ext.captions.checksums import write_checksums
from fairseq_ext.captions.matching import match, read_regions
from fairseq_ext.captions.sources import Source, published_source, region_source
from fairseq_ext.captions.store import FILE, KINDS, VERSION, Preparation
from fairseq_ext.captions.vocabulary import Vocabulary
from fairseq_ext.captions.writer import SplitWriter
from fairseq_ext.regions.boxes import Regions
from fairseq_ext.regions.feature_files import boxes_folder
from fairseq_ext.regions.splits import drawn
from fairseq_ext.training.errors import DataError, OptionError
from fairseq_ext.training.files import read_json, staged_folder, write_json
from fairseq_ext.training.options import SPLITS, OptionSet, option, seed_option
from fairseq_ext.training.progress import progress
from fairseq_ext.training.settings import digest

__all__ = ["PrepareOptions", "prepare"]

RECORD = "prepare.json"
READ = ("*.jsonl", "*.jsonl.gz", "*.npz", "*.npy", "features/*", "categories.txt")
"""Of folders that are named."""


@dataclass(frozen=True, kw_only=True)
class PrepareOptions(OptionSet):
    """What is prepared, and where to.

    Raises:
        OptionError: options that do not go together.
    """

    source: tuple[str, ...] = option(
        help="images with captions: a folder of the region format ({train,valid,test}.jsonl) or one such file; "
        "Karpathy's dataset_coco.json; COCO's captions_*.json, a Flickr30k token file or a csv, one or several",
        positional=True,
    )
    data: str = option(help="folder to make", positional=True, written=True)
    features: tuple[str, ...] = option(
        (),
        "vectors: bottom-up-attention tsv files, folders of an npz or npy for each image, or npz files of all grids "
        "(default: those beside the region format)",
    )
    instances: tuple[str, ...] = option((), "COCO instances json in place of vectors: boxes with classes")
    split_file: str = option("", "Karpathy's dataset_coco.json, for the splits of other captions")
    kind: str = option("", "what a model sees, where the source has several (default: vectors)", ("", *KINDS))
    grid: tuple[int, ...] = option((), "rows and columns of a grid (default: that of a square)")
    max_regions: int = option(
        100,
        "most regions of an image; of more, the most confident are kept, or the first where there is no confidence",
        least=1,
    )
    feature_dtype: str = option("float16", "number format of the vectors", ("float16", "float32"))
    language: str = option("", "language of the captions, where the source has several")
    min_count: int = option(
        5, "fewest occurrences of a word in the training captions; rarer words are unknown", least=1
    )
    sentencepiece: int = option(0, "size of a SentencePiece vocabulary, in place of words; 0: words", least=0)
    skip_missing: bool = option(False, "leave out images without captions and captions without image, and count them")
    valid: int = option(500, "validation images, drawn where the source has no splits", least=1)
    test: int = option(500, "test images, drawn where the source has no splits", least=1)
    seed: int = seed_option(0, "seed of the draw of validation and test images")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.grid and (len(self.grid) != 2 or min(self.grid) < 1):
            raise OptionError(f"--grid must be rows and columns, got {' '.join(map(str, self.grid))}")
        if self.kind in ("regions", "classes"):
            self.refuse_idle(f"with --kind {self.kind}", "grid")
        if self.kind == "grid":
            self.refuse_idle("with --kind grid", "max_regions", "instances")
        if self.kind == "classes":
            self.refuse_idle("with --kind classes", "features", "feature_dtype")
        if self.sentencepiece:
            self.refuse_idle(f"with --sentencepiece {self.sentencepiece}", "min_count")

    @property
    def is_region_format(self) -> bool:
        """Whether ``source`` is, not captions alone."""
        return any(Path(path).is_dir() or path.endswith((".jsonl", ".jsonl.gz")) for path in self.source)

    def fingerprint(self) -> str:
        """A digest of the options and of the names, sizes and dates of all files that are read."""
        settings = {name: value for name, value in self.as_dict().items() if name != "data"}
        places = {role: settings.pop(role) for role in ("source", "features", "instances")}
        places["splits"] = (settings.pop("split_file"),)
        places["boxes"] = tuple(boxes_folder(Path(path)) for path in self.features)
        if self.is_region_format:
            places["beside"] = tuple(path if path.is_dir() else path.parent for path in map(Path, self.source))
        files = {}
        for role, paths in places.items():
            for path in map(Path, paths):
                for file in [path, *(file for pattern in READ for file in path.glob(pattern))]:
                    if file.is_file():
                        status = file.stat()
                        files[f"{role} {path.name} {file.name}"] = [status.st_size, status.st_mtime_ns]
        return digest(VERSION, settings, files)

    def read(self) -> Source:
        """The source as it is; its splits may not be drawn yet.

        Raises:
            OptionError: no such source, or options that do not fit its form.
            DataError: a bad file.
        """
        paths = [Path(path) for path in self.source]
        for path in paths:
            if not path.exists():
                raise OptionError(f"SOURCE: {path} does not exist")
        self._check_form()
        if self.is_region_format:
            return region_source(paths[0], self.features, self.kind, self.grid, self.language)
        return published_source(paths, self.split_file, self.features, self.instances, self.grid)

    def _check_form(self) -> None:
        if self.is_region_format:
            self.refuse_idle("with a SOURCE of the region format", "instances", "split_file")
            if len(self.source) > 1:
                raise OptionError(f"SOURCE: one of the region format, got {len(self.source)}")
        else:
            self.refuse_idle("with a SOURCE of captions in one language", "language")
            if bool(self.features) == bool(self.instances):
                raise OptionError("regions come from either --features or --instances, got both or neither")
            if self.instances:
                self.refuse_idle("with --instances", "grid", "feature_dtype")


def prepare(options: PrepareOptions) -> dict[str, Any]:
    """Images and captions to a folder that fairseq-train reads.

    It appears when all of it is written; nothing is done where it is of the same files and options.

    Returns:
        What was prepared, as :mod:`fairseq_ext.captions.store` describes it: images and captions of each split, words,
        what was left out or cut; also in ``prepare.json``.

    Raises:
        OptionError: options that do not fit the source, or a folder that holds anything else.
        DataError: a bad file, images without captions or captions without image, an image that is in two splits.
    """
    folder, fingerprint = Path(options.data), options.fingerprint()
    if (folder / FILE).is_file():
        if Preparation.load(folder).fingerprint == fingerprint:
            return read_json(folder / RECORD)
        raise OptionError(f"DATA: {folder} is of other files or options: remove it or name another")
    source = options.read()
    left_out = source.left_out
    source = match(source, options.skip_missing, left_out)
    if source.split_of:
        options.refuse_idle("where the source has splits", "valid", "test", "seed")
    else:
        source = replace(source, split_of=drawn(sorted(source.captions), options.valid, options.test, options.seed))
    with staged_folder(folder, "DATA") as stage:
        images = read_regions(source, options.skip_missing, left_out)
        record = _write(images, source, options, stage, fingerprint)
        record |= {"left_out": dict(left_out), "settings": options.as_dict()}
        write_json(stage / RECORD, record)
        write_checksums(stage)
    return read_json(folder / RECORD)


def _write(
    images: Iterator[Regions], source: Source, options: PrepareOptions, folder: Path, fingerprint: str
) -> dict[str, Any]:
    train = [text for key, texts in source.captions.items() if source.split_of[key] == "train" for text in texts]
    vocabulary = Vocabulary(train, options.min_count, options.sentencepiece, folder)
    size = len(vocabulary.dictionary)
    writers = {split: SplitWriter(folder, split, options.feature_dtype, size) for split in SPLITS}
    first: Regions | None = None
    cut: Counter[str] = Counter(images=0, regions=0)
    for regions in progress(images, "images", total=len(source.captions), unit=" images"):
        first = first or regions
        _check_kind(regions, first, options)
        kept = regions if regions.grid else regions.inside().cut(options.max_regions)
        cut["images"] += len(kept.boxes) < len(regions.boxes)
        cut["regions"] += len(regions.boxes) - len(kept.boxes)
        split, captions = source.split_of[regions.key], source.captions[regions.key]
        targets = captions if split == "train" else captions[:1]
        kept = replace(kept, key=source.image_ids.get(regions.key, regions.key))
        writers[split].add(kept, captions, [vocabulary.encode(caption) for caption in targets])
    for split, writer in writers.items():
        if not len(writer):
            raise DataError(f"{', '.join(options.source)}: no image of {split} with captions and regions")
        writer.close()
    assert first is not None
    vocabulary.save(folder)
    if source.categories:
        (folder / "categories.txt").write_text("\n".join(source.categories) + "\n", encoding="utf-8")
    preparation = Preparation(
        kind=_kind(first),
        feature_dim=writers["train"].feature_dim,
        grid=first.grid,
        num_classes=len(source.categories or ()),
        max_regions=max(writer.most for writer in writers.values()),
        tokenizer="sentencepiece" if options.sentencepiece else "word",
        min_count=1 if options.sentencepiece else options.min_count,
        language=options.language,
        fingerprint=fingerprint,
        extractor=_extractor(source),
    )
    preparation.save(folder)
    return {
        "kind": preparation.kind,
        "images": {split: len(writer) for split, writer in writers.items()},
        "captions": {split: writer.captions for split, writer in writers.items()},
        "words": vocabulary.size,
        "coverage": round(vocabulary.coverage, 4),
        "cut": dict(cut),
    }


def _extractor(source: Source) -> str:
    """The extractor that made the vectors of all files."""
    first = source.files[0]
    for file in source.files:
        if file.extractor and first.extractor and file.extractor != first.extractor:
            two = f"{file.origin} are of {file.extractor}, those of {first.origin} of {first.extractor}"
            raise DataError(f"features of different networks: those of {two}")
    return first.extractor if all(file.extractor for file in source.files) else ""


def _kind(regions: Regions) -> str:
    if regions.grid:
        return "grid"
    if regions.features is not None:
        return "regions"
    if regions.labels is not None:
        return "classes"
    raise DataError(f"{regions.origin}: image {regions.key} has boxes, but neither vectors nor classes")


def _check_kind(regions: Regions, first: Regions, options: PrepareOptions) -> None:
    kind, wanted = _kind(regions), _kind(first)
    if options.kind not in ("", kind):
        raise OptionError(f"--kind {options.kind}: {regions.origin} is of {kind}")
    sizes = [0 if image.features is None else image.features.shape[1] for image in (regions, first)]
    if sizes[0] != sizes[1]:
        raise DataError(f"{regions.origin}: vectors of {sizes[0]} numbers, those of {first.origin} have {sizes[1]}")
    if (kind, regions.grid) != (wanted, first.grid):
        forms = [" ".join([kind, *map(str, grid)]) for kind, grid in ((kind, regions.grid), (wanted, first.grid))]
        raise DataError(f"{regions.origin} is of {forms[0]}, {first.origin} of {forms[1]}")
    if kind == "grid":
        options.refuse_idle("on grids", "max_regions")
    else:
        options.refuse_idle(f"on {kind}", "grid")
    if kind == "classes":
        options.refuse_idle("on classes", "feature_dtype")
