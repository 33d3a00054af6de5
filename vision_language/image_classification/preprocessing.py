"""What an image goes through before the network: size, crop and normalisation, in Hugging Face's own file."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from PIL import Image

from fairseq_ext.training.errors import CheckpointError
from fairseq_ext.training.files import read_json, write_json
from vision_language.image_classification.transforms import Transform, resized_for

__all__ = ["Preprocessing"]

PREPROCESSOR = "preprocessor_config.json"


@dataclass(frozen=True)
class Preprocessing:
    """What turns pictures, pixels in [0, 1], into the input of a network.

    Args:
        mean, std: of each channel.
        size: height and width.
        resized: as of :class:`~vision_language.image_classification.transforms.Transform`. Default: 0, no crop.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: int
    resized: int | tuple[int, int] = 0

    def transform(self, augment: str = "none") -> Transform:
        """What happens to training images, by ``augment``, and to test images."""
        return Transform(self.size, augment, self.resized)

    def after(self, augment: str) -> Self:
        """That of test images after a training with ``augment``."""
        return replace(self, resized=resized_for(augment, self.size))

    def of_size(self, size: int) -> Self:
        """The same with images of another size, and as much less of them where they are cropped."""
        old = self.resized
        scaled = [round(side * size / self.size) for side in (old if isinstance(old, tuple) else (old,))]
        return replace(self, size=size, resized=(scaled[0], scaled[1]) if len(scaled) == 2 else scaled[0])

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``preprocessor_config.json`` as Hugging Face's image processors do."""
        square = {"height": self.size, "width": self.size}
        resized: Any = {"shortest_edge": self.resized} if self.resized else square
        if isinstance(self.resized, tuple):
            resized = dict(zip(("height", "width"), self.resized, strict=True))
        content = {
            "do_resize": True,
            "size": resized,
            "resample": int(Image.Resampling.BILINEAR),
            "do_center_crop": bool(self.resized),
            "crop_size": square,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
        }
        write_json(Path(folder) / PREPROCESSOR, content)

    @classmethod
    def read(cls, folder: str | Path, config: Any) -> Preprocessing:
        """Of a model's folder; without the file, no normalisation and the size of the configuration.

        Raises:
            CheckpointError: a file that does not fit its model, or asks for what is not done here.
        """
        path, channels = Path(folder) / PREPROCESSOR, getattr(config, "num_channels", 3)
        content = read_json(path) if path.is_file() else {}
        if not isinstance(content, dict):
            raise CheckpointError(f"{path}: expected names and values")
        for name in ("do_flip_channel_order", "rescale_offset"):
            if content.get(name):
                raise CheckpointError(f"{path}: {name} is not done here")
        mean, std = content.get("image_mean", [0.0] * channels), content.get("image_std", [1.0] * channels)
        if not content.get("do_normalize", True):
            mean, std = [0.0] * channels, [1.0] * channels
        factor = content.get("rescale_factor", 1 / 255) if content.get("do_rescale", True) else 1
        lists = isinstance(mean, list) and isinstance(std, list) and len(mean) == len(std) == channels
        if not lists or not all(map(_is_number, [*mean, *std, factor])) or min(*std, factor) <= 0:
            raise CheckpointError(f"{path}: mean, deviation and rescale_factor must be numbers for {channels} channels")
        scale = 255 * factor
        mean, std = (tuple(value / scale for value in values) for values in (mean, std))
        return cls(mean, std, *_sizes(path, content, getattr(config, "image_size", 224)))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _sizes(path: Path, content: dict[str, Any], default: Any) -> tuple[int, int | tuple[int, int]]:
    """Size and resized of a :class:`Preprocessing`."""

    def sides(name: str, value: Any) -> tuple[int, ...]:
        """Height and width, or the shorter side."""
        given = value if isinstance(value, dict) else {"shortest_edge": value}
        given = {key: side for key, side in given.items() if side is not None}
        found = tuple(given[key] for key in ("height", "width", "shortest_edge") if key in given)
        fits = set(given) in ({"height", "width"}, {"shortest_edge"})
        if not fits or not all(type(side) is int and side > 0 for side in found):
            raise CheckpointError(f"{path}: {name} must be height and width, or shortest_edge, above 0, got {value}")
        return found

    size = sides("size", content.get("size", default))
    crop = sides("crop_size", content.get("crop_size", content.get("size"))) if content.get("do_center_crop") else ()
    share = content.get("crop_pct")
    if share is not None and not (_is_number(share) and 0 < share <= 1):
        raise CheckpointError(f"{path}: crop_pct must be above 0 and at most 1, got {share}")
    if not crop and share and len(size) == 1 and size[0] < 384:  # as ConvNeXT's
        crop, size = size, (int(size[0] / share),)
    if len({*(crop or size)}) > 1:
        raise CheckpointError(f"{path}: images must be as high as wide, got {' x '.join(map(str, crop or size))}")
    if crop and min(size) < crop[0]:
        raise CheckpointError(f"{path}: crop_size {crop[0]} is more than size {min(size)}")
    if not crop:
        return size[0], 0
    return crop[0], size[0] if len(size) == 1 else (size[0], size[1])
