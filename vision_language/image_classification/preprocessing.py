"""The preprocessing of an image: size, crop and normalisation, as Hugging Face's own file states them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from PIL import Image

from fairseq_ext.training.errors import CheckpointError
from fairseq_ext.training.files import read_json, write_json
from fairseq_ext.training.json_values import is_finite
from vision_language.image_classification.transforms import Transform, resized_for

__all__ = ["Preprocessing"]

PREPROCESSOR = "preprocessor_config.json"

KINDS: Mapping[str, Mapping[str, Any]] = {
    "ViT": {"default_to_square": True, "do_center_crop": False, "resample": 2},
    "Beit": {"default_to_square": True},
    "Bit": {"default_to_square": False, "do_center_crop": True, "resample": 3},
    "CLIP": {"default_to_square": False, "do_center_crop": True, "resample": 3},
    "ConvNext": {"default_to_square": False, "do_center_crop": False, "crop_pct": 224 / 256},
    "DeiT": {"default_to_square": True, "do_center_crop": True, "resample": 3},
    "EfficientNet": {"default_to_square": True, "rescale_offset": False, "include_top": True},
    "Levit": {"default_to_square": False, "do_center_crop": True},
    "MobileNetV1": {"default_to_square": False, "do_center_crop": True, "resample": 2},
    "MobileNetV2": {"default_to_square": False, "do_center_crop": True, "resample": 2},
    "MobileViT": {"default_to_square": False, "do_normalize": False, "do_flip_channel_order": True},
    "PoolFormer": {"default_to_square": False, "do_center_crop": True, "crop_pct": 0.9},
    "Pvt": {"default_to_square": True, "do_center_crop": False},
    "Segformer": {"default_to_square": True, "do_center_crop": False},
    "Siglip": {"do_center_crop": False, "resample": 3},
}
"""The image processors of transformers that are computed here, each with its defaults for fields that a file lacks.

A field whose default differs between versions of transformers has none here: the file must state it.
"""

COMMON = {"do_resize": True, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True}
"""Defaults of all of them for fields that a file lacks."""

COMPUTED = (*COMMON, *("size", "resample", "do_center_crop", "crop_size", "image_mean", "image_std"))

HARMLESS = (
    *("image_processor_type", "feature_extractor_type", "processor_class", "default_to_square", "do_convert_rgb"),
    *("do_reduce_labels", "reduce_labels", "data_format", "input_data_format", "return_tensors", "device"),
    *("disable_grouping", "pad_size", "_valid_processor_keys", "_valid_kwargs_names"),
)
"""Fields that change no pixel, or that are read elsewhere; any field that is not named here may only be false."""


@dataclass(frozen=True)
class Preprocessing:
    """What turns images into the input of a network: size, crop, and normalisation of pixels in [0, 1].

    Args:
        mean, std: mean and standard deviation of each channel.
        size: height and width of the input.
        resized: as in :class:`~vision_language.image_classification.transforms.Transform`. Default: 0, no crop.
        resample: Pillow's filter. Default: 2, bilinear.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: int
    resized: int | tuple[int, int] = 0
    resample: int = int(Image.Resampling.BILINEAR)

    def transform(self, augment: str = "none") -> Transform:
        """The transform of images; training images are augmented by ``augment``, test images are not."""
        return Transform(self.size, augment, self.resized, self.resample)

    def after(self, augment: str) -> Self:
        """The preprocessing of test images after a training with ``augment``."""
        return replace(self, resized=resized_for(augment, self.size))

    def of_size(self, size: int) -> Self:
        """The same preprocessing for another size; a crop keeps the same part of an image."""
        old = self.resized
        scaled = [round(side * size / self.size) for side in (old if isinstance(old, tuple) else (old,))]
        return replace(self, size=size, resized=(scaled[0], scaled[1]) if len(scaled) == 2 else scaled[0])

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``preprocessor_config.json``, with which Hugging Face's ``AutoImageProcessor`` does the same."""
        square = {"height": self.size, "width": self.size}
        resized: Any = {"shortest_edge": self.resized} if self.resized else square
        if isinstance(self.resized, tuple):
            resized = dict(zip(("height", "width"), self.resized, strict=True))
        content = {
            # In transformers 4 the processor of ViT does not crop.
            "image_processor_type": "CLIPImageProcessor" if self.resized else "ViTImageProcessor",
            "do_convert_rgb": len(self.mean) == 3,
            "do_resize": True,
            "size": resized,
            "resample": self.resample,
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
        """The preprocessing of a model's folder.

        Without ``preprocessor_config.json`` it does not normalise, and takes the size from the model's configuration.

        Raises:
            CheckpointError: a file that does not fit its model, or asks for something that is not done here.
        """
        path, channels = Path(folder) / PREPROCESSOR, getattr(config, "num_channels", 3)
        if not path.is_file():
            size = _sides(path, "image_size of the model", getattr(config, "image_size", 224), True)
            return cls((0.0,) * channels, (1.0,) * channels, _square(path, size))
        kind, fields = _fields(path)
        mean, std = _normalisation(path, fields, channels)
        return cls(mean, std, *_sizes(path, kind, fields), _resample(path, fields))


def _fields(path: Path) -> tuple[str, dict[str, Any]]:
    """The name in ``KINDS``, and all fields of the file, with the defaults of that image processor."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected names and values")
    content = {name: value for name, value in content.items() if value is not None}  # as Hugging Face reads null
    field = "feature_extractor_type" if "image_processor_type" not in content else "image_processor_type"
    given = content.get(field, "ViTImageProcessor")
    kind = str(given).removesuffix("Fast").removesuffix("Pil")
    kind = kind.removesuffix("ImageProcessor").removesuffix("FeatureExtractor")
    if kind not in KINDS:
        raise CheckpointError(f"{path}: {field} {given!r} is not done here, only those of {', '.join(KINDS)}")
    fields = {**COMMON, **KINDS[kind], **content}
    for name, value in fields.items():
        switch = name.startswith("do_") or name in ("rescale_offset", "include_top")
        if switch and not isinstance(value, bool):
            raise CheckpointError(f"{path}: {name} must be true or false, got {value!r}")
        own = name in KINDS[kind] and name in ("crop_pct", "rescale_offset", "include_top")
        if value is not False and name not in (*COMPUTED, *HARMLESS) and not own:
            raise CheckpointError(
                f"{path}: {name} is not done here for images of {kind}: it may be false, got {value!r}"
            )
    if not fields["do_resize"]:
        raise CheckpointError(f"{path}: do_resize must be true, got false: images are resized here")
    needed = ["size", "resample", "do_center_crop", *["crop_size"] * bool(fields.get("do_center_crop"))]
    needed += ["image_mean", "image_std"] if fields["do_normalize"] or fields.get("include_top") else []
    for name in needed:
        if name not in fields:
            raise CheckpointError(f"{path}: lacks {name}; what {kind}ImageProcessor takes instead is not known here")
    return kind, fields


def _normalisation(path: Path, fields: Mapping[str, Any], channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of pixels in [0, 1]."""
    mean, std = fields.get("image_mean", [0.0] * channels), fields.get("image_std", [1.0] * channels)
    factor = fields["rescale_factor"] if fields["do_rescale"] else 1
    lists = isinstance(mean, list) and isinstance(std, list) and len(mean) == len(std) == channels
    if not lists or not all(map(is_finite, [*mean, *std, factor])) or min(*std, factor) <= 0:
        raise CheckpointError(f"{path}: mean, deviation and rescale_factor must be numbers for {channels} channels")
    again = std if fields.get("include_top") else [1.0] * channels  # EfficientNet divides once more
    if not fields["do_normalize"]:
        mean, std = [0.0] * channels, [1.0] * channels
    offset = 1 if fields.get("rescale_offset") and fields["do_rescale"] else 0
    scale = 255 * factor
    return (
        tuple((value + offset) / scale for value in mean),
        tuple(value * more / scale for value, more in zip(std, again, strict=True)),
    )


def _resample(path: Path, fields: Mapping[str, Any]) -> int:
    filters = {int(item): item.name.lower() for item in Image.Resampling}
    if type(fields["resample"]) is not int or fields["resample"] not in filters:
        listed = ", ".join(f"{number} ({name})" for number, name in sorted(filters.items()))
        raise CheckpointError(f"{path}: resample must be one of {listed}, got {fields['resample']!r}")
    return fields["resample"]


def _sides(path: Path, name: str, value: Any, square: bool | None) -> tuple[int, ...]:
    """Height and width, or the shorter side alone; a plain number means the former where ``square`` is true."""
    given = value if isinstance(value, dict) else {"shortest_edge": value}
    if square and not isinstance(value, dict):
        given = {"height": value, "width": value}
    given = {key: side for key, side in given.items() if side is not None}
    found = tuple(given[key] for key in ("height", "width", "shortest_edge") if key in given)
    fits = set(given) in ({"height", "width"}, {"shortest_edge"}) and (square is not None or isinstance(value, dict))
    if not fits or not all(type(side) is int and side > 0 for side in found):
        raise CheckpointError(f"{path}: {name} must be height and width, or shortest_edge, above 0, got {value}")
    return found


def _square(path: Path, sides: tuple[int, ...]) -> int:
    if len(set(sides)) > 1:
        raise CheckpointError(f"{path}: images must be as high as wide, got {' x '.join(map(str, sides))}")
    return sides[0]


def _sizes(path: Path, kind: str, fields: Mapping[str, Any]) -> tuple[int, int | tuple[int, int]]:
    """``size`` and ``resized`` of a :class:`Preprocessing`."""
    size = _sides(path, "size", fields["size"], fields.get("default_to_square"))
    share = fields["crop_pct"] if kind in ("ConvNext", "PoolFormer") else 1
    if not (is_finite(share) and 0 < share <= 1):
        raise CheckpointError(f"{path}: crop_pct must be above 0 and at most 1, got {share}")
    if kind == "ConvNext":
        return _convnext(path, size, share, fields["do_center_crop"])
    if not fields["do_center_crop"]:
        if len(size) == 1 or kind == "PoolFormer":
            raise CheckpointError(
                f"{path}: do_center_crop must be true with size {fields['size']} of {kind}ImageProcessor, which leaves "
                "the shapes of images as they are, got false"
            )
        return _square(path, size), 0
    if kind == "PoolFormer":
        size = (int(_square(path, size) / share),)
    elif kind == "Levit" and len(size) == 1:
        size = (int(256 / 224 * size[0]),)
    crop = _square(path, _sides(path, "crop_size", fields["crop_size"], True))
    if min(size) < crop:
        raise CheckpointError(f"{path}: crop_size {crop} is more than size {min(size)}")
    return crop, size[0] if len(size) == 1 else (size[0], size[1])


def _convnext(path: Path, size: tuple[int, ...], share: float, crops: bool) -> tuple[int, int]:
    """``size`` and ``resized`` of ConvNeXt: it crops to sizes below 384, and resizes whole images to larger ones."""
    if len(size) > 1 or crops:
        found = "do_center_crop true" if crops else f"size {' x '.join(map(str, size))}"
        raise CheckpointError(f"{path}: ConvNextImageProcessor has a shortest_edge and no other crop, got {found}")
    return size[0], int(size[0] / share) if size[0] < 384 else 0
