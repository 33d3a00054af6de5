"""Image files: recognised by their names, and refused by name where they cannot be read."""

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
    """Whether ``path`` is a file whose name has one of the ``ENDINGS``, in capitals or not."""
    return path.suffix.lower() in ENDINGS and path.is_file()


@contextlib.contextmanager
def open_image(path: str | Path) -> Iterator[Image]:
    """``PIL.Image.open`` as a context; read the pixels inside it, so that their errors are caught too.

    Raises:
        OptionError: Pillow is not installed.
        DataError: names the file; for any error inside but an :class:`~fairseq_ext.training.errors.InputError`.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise OptionError(f"{path}: images need Pillow: pip install pillow") from error
    try:
        with Image.open(path) as image:
            yield image
    except InputError:
        raise
    except Exception as error:  # damaged files make Pillow raise many types
        raise DataError(f"{path}: cannot be read as an image: {first_line(error)}") from error
