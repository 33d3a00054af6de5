"""Features from pixels: turns a folder of images into one npz of grids.

An image is put in the middle of a grey square and shrunk or enlarged to the input size of the network; its colours are
normalised as in the network's training (EfficientNet-Lite0: from -1 to 1).
"""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from fairseq_ext.captions.networks import LITE0, Network, load_network, network_files
from fairseq_ext.captions.projection import Projection
from fairseq_ext.regions.names import image_key
from fairseq_ext.regions.region_files import read_records
from fairseq_ext.training.arrays import load_npz, read_array, write_npz
from fairseq_ext.training.errors import DataError, OptionError
from fairseq_ext.training.files import read_json, replacing, write_json, writing_to
from fairseq_ext.training.flags import Device
from fairseq_ext.training.images import ENDINGS, is_image_file, open_image
from fairseq_ext.training.options import option
from fairseq_ext.training.progress import progress
from fairseq_ext.training.runs import torch_device
from fairseq_ext.training.settings import digest, files_digest

__all__ = ["ExtractOptions", "Extractor", "extract", "image_files", "projected"]

GREY = (128, 128, 128)


@dataclass(frozen=True, kw_only=True)
class ExtractOptions(Device):
    """Images, and the network that sees them."""

    image_folder: str = option(help="folder of images, also in its subfolders", positional=True)
    out: str = option(help="npz file to write", positional=True)
    network: str = option(
        LITE0, f"network that sees the images: {LITE0}, or a folder of a vision model of transformers"
    )
    size: int = option(224, "side of the square that the network sees, in pixels", least=32)
    batch_size: int = option(32, "images at a time", least=1)
    pca: int = option(
        0,
        "keep this many principal components of the vectors, and write them to a file beside OUT; 0: keep the vectors",
        least=0,
    )
    pca_images: str = option("", "train.jsonl whose images the components are computed of (default: all images)")
    pca_file: str = option("", "file with the components of an earlier extraction, in place of new ones")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.pca:
            self.refuse_idle("without --pca", "pca_images")
        elif self.pca_file:
            raise OptionError(f"--pca {self.pca}: has no effect with --pca-file {self.pca_file}")
        if Path(self.out).suffix != ".npz":
            raise OptionError(f"OUT must end in .npz, got {self.out}")


def extract(options: ExtractOptions) -> str:
    """Features from pixels, for a folder of images with captions and nothing else.

    What a killed run has extracted is in OUT.parts and is not extracted again.

    Returns:
        A line of what was written: ``features`` ``(N, rows, columns, D)`` of float16, the images' ``names`` and
        ``sizes``, ``padded`` and ``extractor``: the name of the network, and a checksum of what decides the features of
        an image.

    Raises:
        OptionError: no image, or ``OUT.parts`` of other images or options.
        DataError: a file that is no image, or two of one name.
    """
    out = Path(options.out)
    images = image_files(Path(options.image_folder))
    extractor = Extractor(options.network, options.size, torch_device(options.device))
    fitted = _fitted(options, images)
    projection = Projection.load(Path(options.pca_file)) if options.pca_file else None
    if out.is_dir():
        raise OptionError(f"OUT: {out} is a folder, must be a file")
    with writing_to(out.parent, "OUT"):
        parts = Path(f"{out}.parts")
        files = _extract(extractor, images, parts, options.batch_size)
        if options.pca:
            features = zip(images, _features(files), strict=True)
            projection = Projection.fit((array for image, array in features if image in fitted), options.pca)
            projection.save(out.with_suffix(".pca.npz"))
        shape = _write(out, files, images, projection, replace(extractor, projection=projection).name)
        shutil.rmtree(parts)
    kept = f", {projection.explained:.0%} of the variance" if projection else ""
    return f"{out}: features {' x '.join(map(str, shape))}{kept}"


@dataclass(frozen=True)
class Extractor:
    """Features of images, a batch at a time.

    Args:
        network: :data:`~fairseq_ext.captions.networks.LITE0`, or a folder of a vision model of transformers.
        size: side of the square that the network sees, in pixels.
        device: where the network is.
        projection: components that :attr:`name` covers; a call does not project. Default: None.
    """

    network: str
    size: int
    device: torch.device
    projection: Projection | None = None

    @property
    def name(self) -> str:
        """The name of the network, and a checksum of what decides the features of an image."""
        components = [self.projection.mean, self.projection.components] if self.projection else []
        checksum = digest(files_digest(network_files(self.network)), self.size, *components)
        return f"{Path(self.network).name} {checksum[:12]}"

    @cached_property
    def _loaded(self) -> Network:
        return load_network(self.network, self.device)

    def __call__(self, images: Sequence[Path]) -> tuple[np.ndarray, np.ndarray]:
        """The network's features ``(B, rows, columns, D)`` of float16, and the images' widths and heights ``(B, 2)``.

        Raises:
            DataError: a file that is no image, or a feature that float16 does not hold.
        """
        squares, sizes = zip(*(_square(path, self.size) for path in images), strict=True)
        pixels = torch.from_numpy(np.stack(squares)).to(self.device)
        features = self._loaded(pixels).to("cpu", torch.float16).numpy()
        if not np.isfinite(features).all():
            raise DataError(
                f"one of the {len(images)} images from {images[0]} on has features beyond the range of float16"
            )
        return features, np.array(sizes)


def projected(features: np.ndarray, projection: Projection | None) -> np.ndarray:
    """The features of an image as ``features`` of OUT has them: projected where there are components, in float16."""
    return (projection(features) if projection else features).astype("<f2")


def image_files(folder: Path, option: str = "IMAGE_FOLDER") -> list[Path]:
    """The images in a folder and below it, in the order of their paths.

    Args:
        folder: the folder.
        option: the option that named it, for messages. Default: ``IMAGE_FOLDER``.

    Raises:
        OptionError: no folder, or no image in it.
        DataError: two images of one name.
    """
    if not folder.is_dir():
        raise OptionError(f"{option}: {folder} is not a folder")
    images: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if is_image_file(path):
            other = images.setdefault(image_key(path.name), path)
            if other != path:
                raise DataError(f"{path} and {other} have the same name")
    if not images:
        raise OptionError(f"{option}: no image in {folder} ({', '.join(ENDINGS)})")
    return list(images.values())


def _fitted(options: ExtractOptions, images: Sequence[Path]) -> set[Path]:
    """The images that the principal components are fitted on."""
    if not options.pca_images:
        return set(images)
    records = read_records(Path(options.pca_images), None, False, need_boxes=False, language=None)
    names = {image_key(record.file or record.image_id) for record in records}
    fitted = {path for path in images if image_key(path.name) in names}
    if not fitted:
        raise DataError(f"--pca-images {options.pca_images}: names none of the images, such as {images[0].name}")
    return fitted


def _extract(extractor: Extractor, images: Sequence[Path], folder: Path, batch_size: int) -> list[Path]:
    """Features and sizes of the images, one npz per batch."""
    names = [[path.name, path.stat().st_size] for path in images]
    settings = {"of": digest(names, extractor.name, batch_size)}
    record = folder / "settings.json"
    if record.is_file() and read_json(record) != settings:
        raise OptionError(
            f"OUT: {folder} was extracted from other images or with other options; remove it or name another file"
        )
    starts = range(0, len(images), batch_size)
    files = [folder / f"{start:09}.npz" for start in starts]
    if all(file.is_file() for file in files):
        return files
    with progress(total=len(images), desc="features", unit=" images") as bar:
        for start, file in zip(starts, files, strict=True):
            batch = images[start : start + batch_size]
            if not file.is_file():
                features, sizes = extractor(batch)
                folder.mkdir(exist_ok=True)
                write_json(record, settings)
                write_npz(file, {"features": features, "sizes": sizes})
            bar.update(len(batch))
    return files


def _square(path: Path, size: int) -> tuple[np.ndarray, tuple[int, int]]:
    """An image as bytes ``(size, size, 3)``, and its width and height."""
    with open_image(path) as file:
        from PIL import Image, ImageOps

        image = ImageOps.exif_transpose(file).convert("RGBA")
    padded = ImageOps.pad(image, (size, size), Image.Resampling.BICUBIC, color=(*GREY, 255))
    square = Image.new("RGBA", (size, size), (*GREY, 255))
    square.alpha_composite(padded)
    return np.asarray(square.convert("RGB")), image.size


def _features(files: Sequence[Path]) -> Iterator[np.ndarray]:
    for file in files:
        yield from read_array(file)


def _write(
    out: Path, files: Sequence[Path], images: Sequence[Path], projection: Projection | None, extractor: str
) -> tuple[int, ...]:
    """Write the npz, an image at a time, and return the shape of its features."""
    first = next(_features(files))
    size = len(projection.components) if projection else first.shape[-1]
    shape = (len(images), *first.shape[:-1], size)
    form = {"descr": "<f2", "fortran_order": False, "shape": shape}
    with replacing(out) as partial, zipfile.ZipFile(partial, "w") as archive:
        with archive.open("features.npy", "w", force_zip64=True) as stream:
            np.lib.format.write_array_header_1_0(stream, form)
            for array in progress(_features(files), "writing", total=len(images), unit=" images"):
                stream.write(projected(array, projection).tobytes())
        others = {
            "names": np.array([path.name for path in images]),
            "sizes": np.concatenate([load_npz(file, "sizes")["sizes"] for file in files]),
            "padded": np.array(True),
            "extractor": np.array(extractor),
        }
        for name, array in others.items():
            with archive.open(f"{name}.npy", "w") as stream:
                np.lib.format.write_array(stream, array, allow_pickle=False)
    return shape
