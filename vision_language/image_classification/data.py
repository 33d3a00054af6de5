"""The data of a training and its test: the splits of a folder, their long-tailed version, and batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from fairseq_ext.training.errors import DataError, OptionError
from fairseq_ext.training.options import SPLITS
from vision_language.image_classification.image_files import read_split
from vision_language.image_classification.image_set import ImageFiles, ImageSet
from vision_language.image_classification.long_tail import long_tail_counts, long_tail_subset
from vision_language.image_classification.options import DataOptions
from vision_language.image_classification.transforms import Transform

__all__ = ["Batches", "in_channels", "mean_and_std", "pixels_on", "read_data"]


def read_data(options: DataOptions) -> dict[str, ImageSet]:
    """Training, validation and test images; a long tail is made before validation images are held out.

    Raises:
        OptionError: ``--data`` holds no images, a tail that the classes do not allow, or an option that does nothing.
        DataError: no training or test split, files that cannot be used, or splits that do not fit each other.
    """
    read = {split: read_split(options.data, split) for split in SPLITS}
    if read["train"] is None or read["test"] is None:
        missing = "train" if read["train"] is None else "test"
        raise DataError(f"{options.data}: there is no {missing} split in it")
    classes = max((images.classes for images in read.values() if images), key=len)
    # Numbered classes of a split may end before the last one.
    splits = {split: replace(images, classes=classes) for split, images in read.items() if images}
    if len(classes) < 2 or sum(count > 0 for count in splits["train"].counts) < 2:
        raise DataError(f"{splits['train'].origin}: its images are of one class")
    if options.long_tail:
        splits["train"] = _long_tailed(splits["train"], options)
    if "valid" in splits:
        reason = f"with --data {options.data}, which has validation images"
        options.refuse_idle(reason, "valid_fraction", *(() if options.long_tail else ("subset_seed",)))
    elif options.valid_fraction:
        splits |= _held_out(splits["train"], options.valid_fraction, options.subset_seed)
    if empty := [name for name, count in zip(classes, splits["train"].counts, strict=True) if not count]:
        raise DataError(f"{splits['train'].origin}: class {empty[0]} has no training image")
    return splits


def _long_tailed(images: ImageSet, options: DataOptions) -> ImageSet:
    largest = min(options.largest_class or min(images.counts), *images.counts)
    if options.largest_class > largest:
        raise OptionError(f"--largest-class {options.largest_class}: the smallest class has {largest} images")
    try:
        counts = long_tail_counts(len(images.classes), largest, options.imbalance_factor, options.long_tail)
    except ValueError as error:
        raise OptionError(f"--imbalance-factor {options.imbalance_factor:g}: {error}") from error
    return images.subset(long_tail_subset(torch.from_numpy(images.labels), counts, options.subset_seed))


def _held_out(images: ImageSet, fraction: float, seed: int) -> dict[str, ImageSet]:
    """Training and validation images: the same share of each class is held out, at least one image, but never all."""
    generator = np.random.default_rng(seed)
    valid: list[np.ndarray] = []
    for label, count in enumerate(images.counts):
        size = min(max(1, round(fraction * count)), count - 1)
        valid.append(generator.permutation(np.flatnonzero(images.labels == label))[: max(size, 0)])
    chosen = np.sort(np.concatenate(valid))
    if not len(chosen):
        raise DataError(f"{images.origin}: its classes have one image each, none can be held out")
    rest = np.setdiff1d(np.arange(len(images)), chosen)
    return {"train": images.subset(rest), "valid": images.subset(chosen)}


def in_channels(images: ImageSet, channels: int) -> ImageSet:
    """The images in grey (1) or colours (3)."""
    if images.channels == channels:
        return images
    if isinstance(images.images, ImageFiles):
        return replace(images, images=ImageFiles(images.images.paths, grey=channels == 1))
    if channels == 3:
        return replace(images, images=np.repeat(images.images[..., None], 3, axis=-1))
    # The weights of ITU-R 601-2, as in Pillow.
    grey = images.images @ np.array([0.299, 0.587, 0.114])
    return replace(images, images=grey.round().astype(np.uint8))


def mean_and_std(images: ImageSet) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel, of pixels in [0, 1].

    Fewer than 20,000 images are all used. Of more, every n-th one is, n being the largest step that leaves 10,000.
    """
    step = max(1, len(images) // 10_000)
    pixels = [images.images[i].reshape(-1, images.channels) for i in range(0, len(images), step)]
    sums = np.array([[values.sum(0), np.square(values, dtype=np.float64).sum(0)] for values in pixels]).sum(0) / 255
    count = sum(len(values) for values in pixels)
    mean = sums[0] / count
    std = np.sqrt(np.maximum(sums[1] / 255 / count - mean**2, 0))
    if not std.all():
        raise DataError(f"{images.origin}: every pixel of a channel is the same")
    return mean.tolist(), std.tolist()


class Batches(Dataset[tuple[Tensor, Tensor]]):
    """Batches of bytes ``(N, channels, size, size)``, for :func:`pixels_on`, and labels, from lists of image numbers.

    Args:
        images: the images that the numbers stand for.
        transform: brings images to one size, and augments training images.
        batches: the image numbers of each batch.
        augmented: seed and epoch of training images. Default: None, test images.
    """

    def __init__(
        self,
        images: ImageSet,
        transform: Transform,
        batches: Sequence[np.ndarray],
        augmented: tuple[int, int] | None = None,
    ) -> None:
        self.images, self.transform, self.batches, self.augmented = images, transform, batches, augmented

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        numbers = self.batches[index]
        pixels = np.stack([self._image(int(number)) for number in numbers])
        pixels = pixels[:, None] if pixels.ndim == 3 else pixels.transpose(0, 3, 1, 2)
        return torch.from_numpy(pixels.copy()), torch.from_numpy(self.images.labels[numbers])

    def _image(self, number: int) -> np.ndarray:
        image = self.images.images[number]
        if self.augmented is None:
            return self.transform.test(image)
        return self.transform.train(image, np.random.default_rng([*self.augmented, number]))


def pixels_on(device: torch.device, images: Tensor) -> Tensor:
    """Images of bytes as pixels in [0, 1] on a device, in float32.

    Workers, and the way to the device, carry bytes: a quarter of the pixels.
    """
    # CUDA multiplies by the reciprocal of a Python number, which rounds otherwise than the CPU's division.
    return images.to(device).float() / torch.tensor(255.0, device=device)
