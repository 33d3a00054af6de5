"""Transforms of an image before the network sees it: from bytes to bytes, by Pillow and NumPy.

All chance comes from the generator that is passed in. What an epoch sees of an image so depends only on the seed, the
epoch and the image's number: neither on batches, nor on workers, nor on where a training was resumed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

__all__ = ["AUGMENTATIONS", "Transform", "centre_crop", "pad_crop", "random_resized_crop", "resize", "resized_for"]

AUGMENTATIONS = ("none", "pad-crop", "resized-crop")


@dataclass(frozen=True)
class Transform:
    """How training and test images are brought to one size.

    ================  ================================================================================================
    ``none``          training images as they are, resized where they have another size
    ``pad-crop``      :func:`pad_crop` by 4 pixels and a horizontal flip in half of the cases (CIFAR)
    ``resized-crop``  :func:`random_resized_crop` and the flip (ImageNet)
    ================  ================================================================================================

    Args:
        size: height and width of the result.
        augment: augmentation of training images, one of ``AUGMENTATIONS``.
        resized: the size to which test images are resized before the square of ``size`` at their centre is cut out:
            the length of the shorter side, or height and width; 0: the whole image is resized to ``size``, nothing is
            cut. See :func:`resized_for`.
        resample: Pillow's filter, for training and test images. Default: 2, bilinear.
    """

    size: int
    augment: str = "none"
    resized: int | tuple[int, int] = 0
    resample: int = Image.Resampling.BILINEAR

    def train(self, image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """A training image ``(H, W)`` or ``(H, W, 3)`` as the network sees it, with augmentation."""
        if self.augment == "none":
            return resize(image, (self.size, self.size), self.resample)
        if self.augment == "pad-crop":
            image = pad_crop(resize(image, (self.size, self.size), self.resample), 4, generator)
        else:
            image = random_resized_crop(image, self.size, generator, self.resample)
        return np.ascontiguousarray(image[:, ::-1]) if generator.random() < 0.5 else image

    def test(self, image: np.ndarray) -> np.ndarray:
        """A test image as the network sees it, without augmentation."""
        shorter, (height, width) = self.resized, image.shape[:2]
        if isinstance(shorter, tuple):
            return centre_crop(resize(image, shorter, self.resample), self.size)
        if not shorter:
            return resize(image, (self.size, self.size), self.resample)
        scaled = (
            (shorter, int(shorter * width / height)) if height <= width else (int(shorter * height / width), shorter)
        )
        return centre_crop(resize(image, scaled, self.resample), self.size)


def resized_for(augment: str, size: int) -> int:
    """The shorter side of test images before the centre is cut out: 8/7 of ``size`` with resized-crop, else 0.

    Args:
        augment: augmentation of the training images.
        size: height and width that the network sees.
    """
    return round(size * 8 / 7) if augment == "resized-crop" else 0


def resize(image: np.ndarray, size: tuple[int, int], resample: int = Image.Resampling.BILINEAR) -> np.ndarray:
    """The image resized by Pillow, with antialiasing.

    Args:
        image: ``(H, W)`` or ``(H, W, 3)``.
        size: height and width of the result.
        resample: Pillow's filter. Default: 2, bilinear.
    """
    if image.shape[:2] == size:
        return image
    return np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling(resample)))


def centre_crop(image: np.ndarray, size: int) -> np.ndarray:
    """The square in the middle; where an odd number of pixels is cut off, fewer go above and to the left.

    Hugging Face's ``AutoImageProcessor`` reads the folders of models, so both must crop alike. The paper's code crops
    by torchvision, which rounds half of the pixels to an even number: where 3, 7, ... pixels are cut off, its square
    begins one pixel further.

    Args:
        image: ``(H, W)`` or ``(H, W, 3)``, no side shorter than ``size``.
        size: height and width of the square.
    """
    top, left = ((side - size) // 2 for side in image.shape[:2])
    return image[top : top + size, left : left + size]


def pad_crop(image: np.ndarray, padding: int, generator: np.random.Generator) -> np.ndarray:
    """A random crop of the image's own size, after a frame of zeros was put around the image.

    Args:
        image: ``(H, W)`` or ``(H, W, 3)``.
        padding: width of the frame.
        generator: draws the place of the crop.
    """
    height, width = image.shape[:2]
    padded = np.pad(image, [(padding, padding), (padding, padding)] + [(0, 0)] * (image.ndim - 2))
    top, left = generator.integers(0, 2 * padding + 1, size=2)
    return padded[top : top + height, left : left + width]


def random_resized_crop(
    image: np.ndarray, size: int, generator: np.random.Generator, resample: int = Image.Resampling.BILINEAR
) -> np.ndarray:
    """A random part with 8 to 100 % of the area and a ratio of sides from 3/4 to 4/3, resized to a square.

    If ten drawn parts do not fit into the image, it is the largest part at the centre with such a ratio.

    Args:
        image: ``(H, W)`` or ``(H, W, 3)``.
        size: height and width of the result.
        generator: draws the part.
        resample: Pillow's filter. Default: 2, bilinear.
    """
    height, width = image.shape[:2]
    for _ in range(10):
        area = height * width * generator.uniform(0.08, 1)
        ratio = math.exp(generator.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            top, left = generator.integers(0, height - h + 1), generator.integers(0, width - w + 1)
            break
    else:
        w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
        top, left = (height - h) // 2, (width - w) // 2
    return resize(image[top : top + h, left : left + w], (size, size), resample)
