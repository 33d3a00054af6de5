"""Picture files: recognised by their names, and refused by name where they cannot be read."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from fairseq_ext.training.errors import DataError, InputError, OptionError, first_line

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["ENDINGS", "is_image_file", "open_image"]

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")


def is_image_file(path: Path) -> bool:
    """Whether it is a file of one of the ``ENDINGS``, in capitals or not."""
    return path.suffix.lower() in ENDINGS and path.is_file()


@contextlib.contextmanager
def open_image(path: str | Path) -> Iterator[Image]:
    """``PIL.Image.open``; pixels that are asked for inside are read inside.

    Raises:
        OptionError: without Pillow.
        DataError: names the file, where anything but an :class:`~fairseq_ext.training.errors.InputError` is raised
            inside.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise OptionError(f"{path}: pictures need Pillow: pip install pillow") from error
    try:
        with Image.open(path) as picture:
            yield picture
    except InputError:
        raise
    except Exception as error:  # damaged files make Pillow raise many types
        raise DataError(f"{path}: cannot be read as a picture: {first_line(error)}") from error
