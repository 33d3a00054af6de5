"""A made-up set of images for a try without data: ten shapes, at random places and with noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from fairseq_ext.training.arrays import write_npz
from fairseq_ext.training.files import writing_to
from fairseq_ext.training.options import OptionSet, option, seed_option

__all__ = ["SHAPES", "SyntheticOptions", "synthesize"]

SIDE = 28
SHAPES = ("disc", "ring", "square", "frame", "triangle", "cross", "plus", "bar", "post", "arc")


@dataclass(frozen=True, kw_only=True)
class SyntheticOptions(OptionSet):
    """The made-up images."""

    out: str = option("runs/images_data", "folder to write")
    images: int = option(2000, "images of training and test set together, a fifth of them in the latter", least=50)
    noise: float = option(0.25, "standard deviation of the noise, pixels in [0, 1]", least=0)
    unknown: bool = option(False, "draw letters in the place of the shapes: the other set of an OOD test")
    seed: int = seed_option(0, "seed of all that is drawn")


def synthesize(options: SyntheticOptions) -> str:
    """Write ``train.npz`` and ``test.npz``; equal options give equal files.

    Raises:
        OptionError: a folder that cannot be written.
    """
    generator = np.random.default_rng(options.seed)
    labels = generator.permutation(np.arange(options.images) % len(SHAPES))
    pixels = np.stack([_image(label, options, generator) for label in labels])
    held_out = options.images // 5
    with writing_to(options.out) as out:
        for split, part in (("train", slice(held_out, None)), ("test", slice(held_out))):
            write_npz(out / f"{split}.npz", {"x": pixels[part], "y": labels[part]}, compress=True)
    return f"{options.images - held_out} and {held_out} images of {len(SHAPES)} classes: {options.out}"


def _image(label: int, options: SyntheticOptions, generator: np.random.Generator) -> np.ndarray:
    canvas = Image.new("L", (SIDE, SIDE))
    draw = ImageDraw.Draw(canvas)
    size = int(generator.integers(9, 17))
    left, top = (int(place) for place in generator.integers(1, SIDE - size - 1, size=2))
    _shape(draw, SHAPES[label], (left, top, left + size, top + size), options.unknown)
    noisy = np.asarray(canvas) / 255 * generator.uniform(0.6, 1) + generator.normal(0, options.noise, (SIDE, SIDE))
    return (noisy.clip(0, 1) * 255).astype(np.uint8)


def _shape(draw: ImageDraw.ImageDraw, shape: str, box: tuple[int, int, int, int], unknown: bool) -> None:
    left, top, right, bottom = box
    middle, centre = (left + right) / 2, (top + bottom) / 2
    if unknown:  # zigzags that no class has
        points = [(left + (right - left) * i / 4, top if i % 2 else bottom) for i in range(5)]
        turned = [(y - top + left, x - left + top) for x, y in points]
        draw.line(turned if shape in SHAPES[::2] else points, 255, 2)
    elif shape in ("disc", "ring"):
        draw.ellipse(box, 255 if shape == "disc" else None, 255, 2)
    elif shape in ("square", "frame"):
        draw.rectangle(box, 255 if shape == "square" else None, 255, 2)
    elif shape == "triangle":
        draw.polygon([(left, bottom), (right, bottom), (middle, top)], 255)
    elif shape == "arc":
        draw.arc(box, 180, 360, 255, 3)
    else:
        across: dict[str, list[tuple[float, ...]]] = {
            "cross": [(left, top, right, bottom), (left, bottom, right, top)],
            "plus": [(middle, top, middle, bottom), (left, centre, right, centre)],
            "bar": [(left, centre, right, centre)],
            "post": [(middle, top, middle, bottom)],
        }
        for line in across[shape]:
            draw.line(line, 255, 3)
