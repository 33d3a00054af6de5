"""Images with labels, in memory or as files that are decoded when they are needed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from PIL import Image, ImageOps

from fairseq_ext.training.errors import DataError, OptionError
from fairseq_ext.training.images import open_image
from fairseq_ext.training.settings import digest

__all__ = ["ImageFiles", "ImageSet"]

HEAD = 2**16


class ImageFiles(Sequence[np.ndarray]):
    """Image files as arrays ``(H, W)`` or ``(H, W, 3)``, upright by their EXIF data, decoded when they are needed.

    Args:
        paths: paths of the files.
        grey: whether an image has one channel instead of three.
    """

    def __init__(self, paths: Sequence[Path], grey: bool) -> None:
        self.paths, self.grey = list(paths), grey

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Any) -> Any:
        if not isinstance(index, (int, np.integer)):
            return ImageFiles([self.paths[i] for i in index], self.grey)
        with open_image(self.paths[index]) as image:
            upright = ImageOps.exif_transpose(image)
            return np.asarray(_of_bytes(upright, self.paths[index]).convert("L" if self.grey else "RGB"))

    def digest(self) -> str:
        """A digest of the files' names, sizes and first 64 KiB: reading all of a large set would take too long."""
        sha = hashlib.sha256()
        for path in self.paths:
            with open(path, "rb") as file:
                sha.update(f"{path.parent.name}/{path.name} {path.stat().st_size}".encode() + file.read(HEAD))
        return digest(sha.hexdigest(), self.grey)


def _of_bytes(image: Image.Image, path: Path) -> Image.Image:
    """An image of 8 bits; Pillow alone would turn all values above 255 of a 16-bit grey image into white."""
    if image.mode in ("I", "F"):
        scale = f"numbers without a scale (mode {image.mode} of Pillow), not of 8 or 16 bits"
        raise DataError(f"{path}: its pixels are {scale}")
    if not image.mode.startswith("I;16"):
        return image
    return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))


@dataclass(frozen=True)
class ImageSet:
    """Images, their labels, and the names of the classes.

    Args:
        images: uint8 arrays ``(H, W)`` or ``(H, W, 3)`` by number: one array of all images, or :class:`ImageFiles`.
        labels: class number of each image, ``(N)``, int64.
        classes: name of each class.
        origin: where the images are from, for messages.
    """

    images: Any
    labels: np.ndarray
    classes: tuple[str, ...]
    origin: str

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def channels(self) -> int:
        """Number of channels, 1 or 3."""
        return 1 if self.images[0].ndim == 2 else 3

    @property
    def counts(self) -> list[int]:
        """Number of images of each class."""
        return np.bincount(self.labels, minlength=len(self.classes)).tolist()

    def subset(self, indices: Any) -> Self:
        """The images with the given numbers, in that order."""
        indices = np.asarray(indices)
        return replace(self, images=self.images[indices], labels=self.labels[indices])

    def digest(self) -> str:
        """A digest of everything that a training sees."""
        return digest(self.pixel_digest, self.labels, list(self.classes))

    @cached_property
    def pixel_digest(self) -> str:
        """A digest of the images alone, computed once."""
        return self.images.digest() if isinstance(self.images, ImageFiles) else digest(self.images)

    def named_as(self, classes: Sequence[str], owner: str) -> Self:
        """The images with labels that are class numbers of a model; classes are matched by their names.

        Classes of arrays are called by their numbers. Where the model's classes have real names, such a number is the
        place among them.

        Args:
            classes: names of the model's classes.
            owner: the model, for messages.

        Raises:
            OptionError: an image has a class that the model does not know, or whose name two of its classes have.
        """
        if self.classes == tuple(classes):
            return self
        used = [name for name, count in zip(self.classes, self.counts, strict=True) if count]
        known = {name: number for number, name in enumerate(classes)}
        if all(name.isdecimal() for name in used) and not any(name.isdecimal() for name in classes):
            known = {name: int(name) for name in used if int(name) < len(classes)}
        if missing := next((name for name in used if name not in known), None):
            listed = ", ".join(classes[:10]) + (", ..." if len(classes) > 10 else "")
            raise OptionError(f"--data: {self.origin} has a class {missing}, {owner} knows {listed}")
        if twice := next((name for name in used if list(classes).count(name) > 1), None):
            raise OptionError(f"--data: {self.origin} has a class {twice}, and {owner} has two of that name")
        places = np.array([known.get(name, -1) for name in self.classes], dtype=np.int64)
        return replace(self, labels=places[self.labels], classes=tuple(classes))
