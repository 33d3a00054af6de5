"""An image as SVG: its pixels, and the regions that a model saw."""

from __future__ import annotations

import base64
import importlib.util
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np

from fairseq_ext.regions.names import image_key
from fairseq_ext.training.errors import OptionError
from fairseq_ext.training.images import is_image_file, open_image

__all__ = ["draw_image", "embedded", "find_images"]

LONGEST = 480
"""Of an embedded file, in pixels."""


def find_images(folder: str | Path, image_ids: Sequence[str]) -> dict[str, Path]:
    """The file of each image: the one in ``folder`` or below that is named by its identifier.

    Args:
        folder: folder of images.
        image_ids: identifiers of the images; the file of ``391895`` may be ``COCO_val2014_000000391895.jpg``.

    Raises:
        OptionError: no such folder, or an image with no file or several.
    """
    if importlib.util.find_spec("PIL") is None:
        raise OptionError("--image-folder: needs Pillow: pip install pillow")
    of_image: dict[str, list[Path]] = {image_id: [] for image_id in image_ids}
    for path in sorted(Path(folder).rglob("*")):
        if is_image_file(path):
            for key in {path.stem, image_key(path.name)} & of_image.keys():
                of_image[key].append(path)
    for image_id, paths in of_image.items():
        if len(paths) != 1:
            files = " and ".join(map(str, paths[:2])) or f"none in {folder}"
            raise OptionError(f"--image-folder: expected one file of image {image_id}, found {files}")
    return {image_id: paths[0] for image_id, paths in of_image.items()}


def embedded(path: Path) -> str:
    """An image, shrunk, as an address that holds it: ``data:image/jpeg;base64,...``.

    Args:
        path: path of the image.

    Raises:
        DataError: the image cannot be read.
    """
    with open_image(path) as image:
        from PIL import Image

        shrunk = image.convert("RGBA")
        shrunk.thumbnail((LONGEST, LONGEST))
        opaque = Image.new("RGBA", shrunk.size, "white")
        opaque.alpha_composite(shrunk)
        file = io.BytesIO()
        opaque.convert("RGB").save(file, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def draw_image(
    size: tuple[float, float], boxes: np.ndarray, names: Sequence[str], hues: Sequence[float], href: str = ""
) -> str:
    """SVG of an image; its ``rect`` elements are the regions, in their order.

    Args:
        size: width and height.
        boxes: ``(R, 4)``, x1, y1, x2, y2.
        names: names of the regions; an empty name is not written.
        hues: R hues, as angles.
        href: address of the image. Default: the regions alone.
    """
    width, height = size
    letters = max(width, height) / 28
    parts = [f'<image href="{href}" width="{width:g}" height="{height:g}" preserveAspectRatio="none"/>' if href else ""]
    for (left, top, right, bottom), name, hue in zip(boxes.tolist(), names, hues, strict=True):
        place = f'x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" height="{bottom - top:.1f}"'
        label = f'<text x="{left:.1f}" y="{top + letters:.1f}">{escape(name)}</text>' if name else ""
        parts.append(f'<g style="--hue:{hue:.0f}"><rect {place}/>{label}</g>')
    kind = "" if any(names) else ' class="grid"'
    return f'<svg{kind} viewBox="0 0 {width:g} {height:g}" font-size="{letters:.1f}">{"".join(parts)}</svg>'
