"""Images with labels as users have them: idx files, CIFAR batches, ``.npz``, folders of images. Nothing is fetched.

===============  =====================================================================================================
idx              ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte``, ``t10k-...``, also ``.gz``, in the folder or
                 in ``raw`` or ``*/raw`` below it: MNIST, Fashion-MNIST, KMNIST, notMNIST
CIFAR batches    ``data_batch_1`` ... ``test_batch``, or ``train`` and ``test``: pickles, which may hold arrays only
``.npz``         ``SPLIT.npz`` with arrays ``x`` (uint8, ``(N, H, W)`` or ``(N, H, W, 3)``) and ``y``; or one file with
                 ``x_SPLIT`` and ``y_SPLIT``
images         ``SPLIT/CLASS/**/*.png`` (ImageFolder), or another of the endings of
                 :mod:`fairseq_ext.training.images`; grey of 16 bits is reduced to 8. Classes are sorted by name, or by
                 number where all names are numbers
===============  =====================================================================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from fairseq_ext.training.arrays import array_names, load_npz
from fairseq_ext.training.errors import DataError, OptionError
from fairseq_ext.training.images import ENDINGS, is_image_file, open_image
from fairseq_ext.training.options import SPLITS, find_split
from fairseq_ext.training.progress import warn
from vision_language.image_classification.binary_files import Splits, cifar_splits, idx_splits, numbered
from vision_language.image_classification.image_set import ImageFiles, ImageSet

__all__ = ["read_split", "read_unlabelled"]


def read_split(folder: str | Path, split: str) -> ImageSet | None:
    """One split of a data folder, or of one ``.npz`` file; None where it has only other splits.

    Args:
        folder: data in one of the forms above.
        split: ``train``, ``valid`` or ``test``; ``val``, ``dev`` and ``validation`` in the data are read as ``valid``.

    Raises:
        OptionError: no such folder, or nothing in one of the forms in it.
        DataError: a file that is missing, damaged, or does not fit the others.
    """
    folder = Path(folder)
    if not folder.exists():
        raise OptionError(f"--data: {folder} does not exist")
    for reader in (_npz, idx_splits, cifar_splits, _image_folders):
        present = {name: read for name, read in reader(folder).items() if read}
        if present:
            return _checked(present[split]()) if split in present else None
    raise OptionError(
        f"--data: {folder} holds no idx files, CIFAR batches, {{train,valid,test}}.npz, or images in "
        "{train,valid,test}/CLASS/"
    )


def read_unlabelled(path: str | Path, split: str = "test") -> ImageSet:
    """Images whose classes do not matter: a data folder's split, or all images below a folder.

    Raises:
        OptionError: no image there, or no such split.
        DataError: as :func:`read_split`.
    """
    path = Path(path)
    try:
        images = read_split(path, split)
    except OptionError:
        files = _images_below(path) if path.is_dir() else []
        if not files:
            raise
        return ImageSet(ImageFiles(files, _all_grey(files)), np.zeros(len(files), dtype=np.int64), ("",), str(path))
    if images is None:
        raise OptionError(f"{path}: has no {split} split")
    return images


def _checked(images: ImageSet) -> ImageSet:
    if not len(images):
        raise DataError(f"{images.origin}: there is no image in it")
    lowest, highest = int(images.labels.min()), int(images.labels.max())
    if lowest < 0 or highest >= len(images.classes):
        raise DataError(f"{images.origin}: labels from {lowest} to {highest}, of {len(images.classes)} classes")
    return images


def _npz(path: Path) -> Splits:
    if path.suffix == ".npz" and path.is_file():
        names = array_names(path)
        found = {s: find_split(path, s, lambda name: {f"x_{name}"} & set(names)) for s in SPLITS}
        return {s: partial(_from_npz, path, x, f"y_{x[2:]}") if x else None for s, x in found.items()}
    if single := sorted(path.glob("*.npz")) if path.is_dir() else []:
        files = {file.name for file in single}
        found = {s: find_split(path, s, lambda name: {f"{name}.npz"} & files) for s in SPLITS}
        if any(found.values()):
            return {s: partial(_from_npz, path / f, "x", "y") if f else None for s, f in found.items()}
        if len(single) == 1:
            return _npz(single[0])
    return {}


def _from_npz(path: Path, x: str, y: str) -> ImageSet:
    arrays = load_npz(path, x, y)
    for name in (x, y):
        if name not in arrays:
            raise DataError(f"{path}: has no array {name}, it has {', '.join(array_names(path)) or 'none'}")
    images, labels = arrays[x], arrays[y]
    if images.dtype != np.uint8 or not (images.ndim == 3 or (images.ndim == 4 and images.shape[3] in (1, 3))):
        form = f"{images.dtype} {images.shape}"
        raise DataError(f"{path}: {x} must be uint8 (N, H, W) or (N, H, W, 3), got {form}")
    if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
        raise DataError(f"{path}: {y} must be {len(images)} whole numbers, got {labels.dtype} {labels.shape}")
    images = images[..., 0] if images.shape[-1] == 1 and images.ndim == 4 else images
    return ImageSet(images, labels.astype(np.int64), numbered(labels, f"{path}: {y}"), str(path))


def _image_folders(folder: Path) -> Splits:
    found = {s: find_split(folder, s, lambda name: [name] if (folder / name).is_dir() else []) for s in SPLITS}
    places = {split: folder / name if name else None for split, name in found.items()}
    if not any(places.values()):
        return {}
    names = {p.name for place in places.values() if place for p in place.iterdir() if p.is_dir()}
    if not names:
        return {}
    numbers = all(name.isdecimal() for name in names)
    classes = tuple(sorted(names, key=lambda name: (int(name), name)) if numbers else sorted(names))
    return {s: partial(_from_folders, place, classes) if place else None for s, place in places.items()}


def _from_folders(place: Path, classes: tuple[str, ...]) -> ImageSet:
    files = [(file, label) for label, name in enumerate(classes) for file in _images_below(place / name)]
    if not files:
        raise DataError(f"{place}: no image in its folders ({', '.join(ENDINGS)})")
    paths = [file for file, _ in files]
    labels = np.array([label for _, label in files], dtype=np.int64)
    return ImageSet(ImageFiles(paths, _all_grey(paths)), labels, classes, str(place))


def _images_below(folder: Path) -> list[Path]:
    """The images in a folder and below it; a warning tells of other files, unless they are hidden."""
    files = sorted(path for path in folder.rglob("*") if not path.is_dir() and not path.name.startswith("."))
    images = list(filter(is_image_file, files))
    if others := len(files) - len(images):
        first = next(file for file in files if not is_image_file(file))
        warn(f"{folder}: {others} of {len(files)} files are left, such as {first.name}: none of {', '.join(ENDINGS)}")
    return images


def _all_grey(paths: Sequence[Path]) -> bool:
    """Whether no image has colours, according to the files' headers."""
    for path in paths:
        with open_image(path) as image:
            if image.mode not in ("1", "L", "LA") and not image.mode.startswith("I;16"):
                return False
    return True
