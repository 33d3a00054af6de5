"""A folder of prepared images and captions, which ``fairseq-ext captions prepare`` writes and the task reads.

::

    captioning.json           the Preparation below
    prepare.json              what was prepared, for people
    checksums.json            of all these files, see :mod:`~fairseq_ext.captions.checksums`
    dict.txt                  fairseq's dictionary of the training captions
    categories.txt            class names, a line each, where boxes have classes
    sentencepiece.bpe.model   with --sentencepiece
    SPLIT.features.npy        (rows, D), the regions of all images one after the other; mapped, never read whole
    SPLIT.images.npz          image_ids (N,), offsets (N + 1,), sizes (N, 2), boxes (rows, 4), labels (rows,),
                              caption_offsets (N + 1,)
    SPLIT.captions.{bin,idx}  fairseq's mapped token ids with the end of sentence: all captions of a training split,
                              the first of each image elsewhere
    SPLIT.references.jsonl.gz {"image_id": ..., "captions": [...]} one line per image, as they were written

Image i has the rows ``offsets[i]:offsets[i + 1]`` and the captions ``caption_offsets[i]:caption_offsets[i + 1]``.
"""

from __future__ import annotations

import functools
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from fairseq_ext.captions.checksums import check_files
from fairseq_ext.training.arrays import load_npz
from fairseq_ext.training.errors import DataError, choose
from fairseq_ext.training.files import read_json, read_json_lines, write_json
from fairseq_ext.training.options import SPLITS

__all__ = ["KINDS", "Preparation", "Split", "split_sizes"]

VERSION = 1
KINDS = ("regions", "grid", "classes")
FILE = "captioning.json"


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """How a folder was prepared: this decides the shapes of a model's parameters, which no option of the task does.

    Attributes:
        kind: ``regions`` (vectors and boxes), ``grid`` (vectors of equal cells) or ``classes`` (boxes with classes).
        feature_dim: size of a vector; 0 without vectors.
        grid: rows and columns; empty without a grid.
        num_classes: number of classes of boxes; 0 without classes.
        max_regions: the largest number of regions of an image.
        tokenizer: ``word`` or ``sentencepiece``.
        lowercase: whether captions were lower-cased.
        min_count: rarer words are unknown.
        language: language of the captions, if the source has several.
        fingerprint: digest of sources and options.
        extractor: name and checksum of the network that made the vectors; empty if their file does not say.
    """

    kind: str
    feature_dim: int = 0
    grid: tuple[int, ...] = ()
    num_classes: int = 0
    max_regions: int
    tokenizer: str = "word"
    lowercase: bool = True
    min_count: int = 1
    language: str = ""
    fingerprint: str = ""
    extractor: str = ""
    version: int = VERSION

    @classmethod
    def load(cls, folder: str | Path) -> Preparation:
        """Read ``captioning.json``, and check the files that all splits share.

        Raises:
            DataError: a file is missing, damaged, of another preparation or of another version.
        """
        path = Path(folder) / FILE
        if not path.is_file():
            raise DataError(f"{folder}: no {FILE} in it; `fairseq-ext captions prepare` makes such a folder")
        value = read_json(path)
        version = value.get("version") if isinstance(value, dict) else None
        if version != VERSION:
            raise DataError(f"{path}: version {version!r}, this release reads {VERSION}: prepare the data again")
        names = {item.name for item in fields(cls)}
        if names != value.keys():
            raise DataError(f"{path}: {', '.join(sorted(names ^ value.keys()))} missing or not known")
        choose(f"{path}: kind", value["kind"], KINDS)
        check_files(Path(folder))
        return cls(**{**value, "grid": tuple(value["grid"])})

    def check_extractor(self, other: str, origin: str, what: str) -> None:
        """Compare the extractor of these vectors with that of others; one that is not recorded fits any.

        Args:
            other: name and checksum of the other extractor.
            origin, what: words for this and the other extractor in the message.

        Raises:
            DataError: they differ.
        """
        if self.extractor and other and self.extractor.split()[-1] != other.split()[-1]:
            raise DataError(f"{origin} features of {self.extractor}, but {what} {other}")

    def save(self, folder: str | Path) -> None:
        """Write ``captioning.json``."""
        write_json(Path(folder) / FILE, asdict(self))


def split_sizes(folder: str | Path) -> dict[str, int]:
    """How many images each split of a prepared folder has."""
    sizes = {}
    for name in SPLITS:
        if (path := Path(folder) / f"{name}.images.npz").is_file():
            sizes[name] = len(load_npz(path, "image_ids")["image_ids"])
    return sizes


class Split:
    """The images of one split.

    Args:
        folder: folder of prepared data.
        name: ``train``, ``valid`` or ``test``.
        preparation: preparation of the folder.

    Attributes:
        image_ids: ``(N,)`` texts.
        offsets, caption_offsets: ``(N + 1,)`` int64.
        sizes: ``(N, 2)`` width and height in pixels.
        boxes: ``(rows, 4)`` float32, x1, y1, x2, y2 in pixels.
        labels: ``(rows,)`` int64, or None without classes.

    Raises:
        DataError: files that are missing, damaged, or of another preparation.
    """

    def __init__(self, folder: str | Path, name: str, preparation: Preparation) -> None:
        self.folder, self.name, self.preparation = Path(folder), name, preparation
        check_files(self.folder, name)
        arrays = load_npz(self._path("images.npz"))
        self.image_ids, self.sizes, self.boxes = arrays["image_ids"], arrays["sizes"], arrays["boxes"]
        self.offsets, self.caption_offsets = arrays["offsets"], arrays["caption_offsets"]
        self.labels = arrays["labels"] if preparation.num_classes else None

    def __len__(self) -> int:
        return len(self.image_ids)

    def _path(self, ending: str) -> Path:
        return self.folder / f"{self.name}.{ending}"

    @functools.cached_property
    def features(self) -> np.ndarray | None:
        """``(rows, D)`` on the disk, or None without vectors."""
        if not self.preparation.feature_dim:
            return None
        return np.load(self._path("features.npy"), mmap_mode="r", allow_pickle=False)

    def __getstate__(self) -> dict[str, Any]:
        # A memory-mapped array would be sent to another process as a copy of the whole file.
        return {name: value for name, value in self.__dict__.items() if name != "features"}

    def rows(self, image: int) -> slice:
        """The rows of an image in ``features``, ``boxes`` and ``labels``."""
        return slice(int(self.offsets[image]), int(self.offsets[image + 1]))

    @functools.cached_property
    def references(self) -> list[list[str]]:
        """The captions of each image, as people wrote them."""
        return [value["captions"] for value, _ in read_json_lines(self._path("references.jsonl.gz"))]
