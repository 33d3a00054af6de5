"""Writes a prepared split image by image, so that its features are never all in memory."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fairseq_ext.regions.boxes import Regions
from fairseq_ext.training.arrays import write_npz
from fairseq_ext.training.errors import DataError

__all__ = ["SplitWriter"]


class SplitWriter:
    """The files of one split, in the form that :mod:`fairseq_ext.captions.store` describes.

    Args:
        folder: the folder that is being prepared.
        name: ``train``, ``valid`` or ``test``.
        dtype: dtype of the features, ``float16`` or ``float32``.
        vocabulary_size: size of the dictionary, which decides how wide the token ids are.

    Attributes:
        feature_dim: size of the vectors; 0 without vectors.
        rows, captions: numbers of those written so far.
        most: largest number of regions of an image so far.
    """

    def __init__(self, folder: Path, name: str, dtype: str, vocabulary_size: int) -> None:
        # An import of seconds, which other commands do without.
        from fairseq.data import indexed_dataset

        self.folder, self.name, self.dtype = folder, name, np.dtype(dtype)
        self._captions = indexed_dataset.make_builder(str(self._path("captions.bin")), "mmap", vocabulary_size)
        self._references = gzip.GzipFile(self._path("references.jsonl.gz"), "wb", mtime=0)
        self._features = open(self._path("features.npy"), "wb")
        self.feature_dim = 0
        self.rows = self.captions = self.most = 0
        self._images: dict[str, list[Any]] = {"image_ids": [], "sizes": [], "boxes": [], "labels": []}
        self._lengths: dict[str, list[int]] = {"offsets": [0], "caption_offsets": [0]}

    def _path(self, ending: str) -> Path:
        return self.folder / f"{self.name}.{ending}"

    def __len__(self) -> int:
        return len(self._images["image_ids"])

    def add(self, regions: Regions, captions: Sequence[str], targets: Sequence[torch.Tensor]) -> None:
        """Write one image.

        Args:
            regions: regions of the image, with its id as their key.
            captions: captions as people wrote them.
            targets: token ids of the captions that a model learns, each with the end of sentence.

        Raises:
            DataError: numbers beyond the range of ``dtype``.
        """
        if regions.features is not None:
            self._add_features(regions)
        self.rows += len(regions.boxes)
        self.captions += len(targets)
        self.most = max(self.most, len(regions.boxes))
        self._images["image_ids"].append(regions.key)
        self._images["sizes"].append((regions.width, regions.height))
        self._images["boxes"].append(regions.boxes.astype(np.float32))
        if regions.labels is not None:
            self._images["labels"].append(regions.labels)
        for target in targets:
            self._captions.add_item(target)
        self._lengths["offsets"].append(self.rows)
        self._lengths["caption_offsets"].append(self.captions)
        line = {"image_id": regions.key, "captions": list(captions)}
        self._references.write(f"{json.dumps(line, ensure_ascii=False)}\n".encode())

    def _add_features(self, regions: Regions) -> None:
        features = regions.features
        assert features is not None
        if not self.feature_dim:
            self.feature_dim = features.shape[1]
            self._write_header(0)
        with np.errstate(over="ignore"):  # refused below
            stored = np.ascontiguousarray(features, dtype=self.dtype)
        if not np.isfinite(stored).all():
            largest = np.abs(features).max()
            raise DataError(
                f"{regions.origin}: a feature of image {regions.key} is {largest:g}, beyond {self.dtype}: "
                "--feature-dtype float32"
            )
        self._features.write(stored.tobytes())

    def _write_header(self, rows: int) -> None:
        # NumPy pads the header so that the first axis may grow in place.
        form = {"descr": self.dtype.str, "fortran_order": False, "shape": (rows, self.feature_dim)}
        np.lib.format.write_array_header_1_0(self._features, form)

    def close(self) -> None:
        """Write the parts that are known only at the end."""
        self._captions.finalize(str(self._path("captions.idx")))
        self._references.close()
        if self.feature_dim:
            self._features.seek(0)
            self._write_header(self.rows)
        self._features.close()
        if not self.feature_dim:
            self._path("features.npy").unlink()
        arrays: dict[str, Any] = {
            "image_ids": np.array(self._images["image_ids"], dtype=str),
            "sizes": np.array(self._images["sizes"], dtype=np.float32).reshape(-1, 2),
            "boxes": np.concatenate([np.zeros((0, 4), np.float32), *self._images["boxes"]]),
            "labels": np.concatenate([np.zeros(0, np.int64), *self._images["labels"]]),
            **{name: np.array(lengths, dtype=np.int64) for name, lengths in self._lengths.items()},
        }
        write_npz(self._path("images.npz"), arrays, compress=True)
