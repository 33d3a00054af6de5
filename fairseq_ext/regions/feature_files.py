"""Boxes and features as detectors and networks write them, read one image at a time.

==============================  ==================================================================================
``*.tsv``                       bottom-up attention: boxes and features as base64 of float32, 6 columns, LXMERT's 10
folder of ``*.npz``             bottom-up-attention.pytorch: ``x``, ``bbox`` (pixels), ``image_w``, ``image_h``
                                UNITER: ``features``, ``norm_bb`` (fractions), ``conf`` where there is one
``NAME_att/*.npz``              ImageCaptioning.pytorch: ``feat``, with boxes in ``NAME_box/*.npy``, or of a grid
folder of ``*.npy``, ``*.npz``  vectors of a grid, ``(h, w, D)`` or ``(h * w, D)``; in an npz the array ``features``
one ``*.npz``                   the grids of all images, ``features`` ``(N, h * w, D)`` or ``(N, h, w, D)``, their
                                ``names`` ``(N,)``; where there are, ``sizes`` ``(N, 2)``, ``padded``: whether the
                                grids are of the squares around the images, and ``extractor``: what made them
==============================  ==================================================================================

Arrays with other names are not looked at: some are pickled, and could run code. Images are matched across files by
:func:`~fairseq_ext.regions.names.image_key`.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fairseq_ext.regions.boxes import Regions, grid_cells
from fairseq_ext.regions.names import image_key
from fairseq_ext.training.arrays import load_npz, read_array, stream_npz
from fairseq_ext.training.errors import DataError
from fairseq_ext.training.files import read_lines

__all__ = ["FeatureSet", "Images", "boxes_folder", "open_features", "read_feature_tsv", "read_npz"]

Sizes = Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class Images:
    """The facts about images that files of vectors do not state themselves.

    Attributes:
        sizes: width and height of images by key, where another file has them.
        grid: rows and columns of each image's vectors, where they have no boxes and are of no square.
        padded: whether they are of the square around the image.
    """

    sizes: Sizes = field(default_factory=dict)
    grid: tuple[int, ...] = ()
    padded: bool = False


@dataclass(frozen=True)
class FeatureSet:
    """The regions of many images.

    Attributes:
        origin: for messages.
        keys: of its images; None where only reading all of it tells.
        regions: of the images whose keys a function accepts.
        extractor: what made the vectors; empty where the file does not say.
    """

    origin: str
    keys: Sequence[str] | None
    regions: Callable[[Callable[[str], bool]], Iterator[Regions]]
    extractor: str = ""

    def read(self, wanted: Container[str] | None = None) -> Iterator[Regions]:
        """The regions of the images that are wanted (default: all), one image after the other."""
        return self.regions(lambda key: wanted is None or key in wanted)


def open_features(path: str | Path, images: Images | None = None) -> FeatureSet:
    """The regions in a file or a folder of one of the forms at the top.

    Raises:
        DataError: no such file, or one of another form.
    """
    path, images = Path(path), images or Images()
    if path.suffix in (".h5", ".hdf5"):
        raise DataError(f"{path}: HDF5 is not read; write an npy or npz for each image")
    if path.is_dir():
        return _folder(path, images)
    if path.suffix == ".npz":
        return _archive(path, images)
    return FeatureSet(str(path), None, lambda wanted: (r for r in read_feature_tsv(path) if wanted(r.key)))


def _folder(path: Path, images: Images) -> FeatureSet:
    files: dict[str, Path] = {}
    for file in sorted(path.iterdir()):
        if file.suffix in (".npz", ".npy"):
            other = files.setdefault(image_key(file.name), file)
            if other != file:
                raise DataError(f"{path}: {other.name} and {file.name} are of one image")
    if not files:
        raise DataError(f"{path}: no npz or npy file in it")

    def read(wanted: Callable[[str], bool]) -> Iterator[Regions]:
        for key, file in files.items():
            if wanted(key):
                yield read_npz(file, images) if file.suffix == ".npz" else _of_vectors(file, read_array(file), images)

    return FeatureSet(str(path), list(files), read)


def _archive(path: Path, images: Images) -> FeatureSet:
    arrays = load_npz(path, "names", "sizes", "padded", "extractor")
    names = arrays.get("names", np.zeros(0)).reshape(-1).tolist()
    keys = [image_key(str(name)) for name in names]
    if not keys or len(set(keys)) != len(keys):
        raise DataError(f"{path}: array 'names' must have a name for each image, got {len(set(keys))} different ones")
    shape, _ = stream_npz(path, "features")
    if shape[0] != len(keys):
        raise DataError(f"{path}: features {shape} and {len(keys)} names")

    if "sizes" in arrays:
        sizes = _numbers(path, "sizes", arrays["sizes"])
        if sizes.shape != (len(keys), 2):
            raise DataError(f"{path}: sizes {sizes.shape} of {len(keys)} images")
        by_key = {key: (float(width), float(height)) for key, (width, height) in zip(keys, sizes, strict=True)}
        images = Images(by_key, images.grid, bool(arrays.get("padded", False)))

    def read(wanted: Callable[[str], bool]) -> Iterator[Regions]:
        for key, array in zip(keys, stream_npz(path, "features")[1], strict=True):
            if wanted(key):
                yield _grid(f"{path}: {key}", key, array, images)

    return FeatureSet(str(path), keys, read, str(arrays.get("extractor", "")))


def boxes_folder(folder: Path) -> Path:
    """Where the boxes of the vectors in ``NAME_att`` lie."""
    folder = folder.absolute()  # which has a name
    return folder.with_name(folder.name.removesuffix("_att") + "_box")


def _of_vectors(path: Path, array: np.ndarray, images: Images) -> Regions:
    """Vectors without boxes in the same file."""
    key, vectors = image_key(path.name), _numbers(path, "features", array)
    corners = boxes_folder(path.parent) / f"{path.stem}.npy"
    if images.grid or vectors.ndim == 3:
        return _grid(str(path), key, vectors, images)
    if not corners.parent.is_dir():
        raise DataError(f"{path}: vectors without boxes; a grid needs rows and columns (--grid), boxes {corners}")
    boxes = _numbers(corners, "boxes", read_array(corners))
    if vectors.ndim != 2 or boxes.shape != (len(vectors), 4):
        raise DataError(f"{corners}: boxes {boxes.shape} of vectors {vectors.shape}")
    if key not in images.sizes:
        raise DataError(f"{path}: no file says the size of image {key}; captions_*.json of COCO do")
    return Regions(key, *images.sizes[key], boxes.astype(np.float64), str(path), features=vectors)


def _grid(origin: str, key: str, vectors: np.ndarray, images: Images) -> Regions:
    shape, cells = images.grid, math.prod(vectors.shape[:-1])
    if not shape and vectors.ndim == 3:
        shape = vectors.shape[:2]
    if not shape and vectors.ndim == 2:
        side = math.isqrt(len(vectors))
        if side**2 != cells:
            raise DataError(
                f"{origin}: {cells} vectors without boxes; a grid that is not square needs rows and columns"
            )
        shape = (side, side)
    if len(shape) != 2 or math.prod(shape) != cells or (vectors.ndim == 3 and vectors.shape[:2] != tuple(shape)):
        raise DataError(f"{origin}: vectors {vectors.shape} are not of a grid of {' x '.join(map(str, shape))}")
    width, height = images.sizes.get(key, (1, 1))
    vectors = vectors.reshape(cells, vectors.shape[-1])
    rows, columns = map(int, shape)
    boxes = grid_cells(rows, columns, width, height, images.padded)
    return Regions(key, width, height, boxes, origin, features=vectors, grid=(rows, columns))


TSV_COLUMNS = {
    6: ("image_id", "width", "height", "num_boxes", "boxes", "features"),
    10: ("image_id", "height", "width", "", "confidence", "", "", "num_boxes", "boxes", "features"),
}
"""Bottom-up attention writes six columns, LXMERT ten."""


def read_feature_tsv(path: str | Path) -> Iterator[Regions]:
    """Images of a bottom-up-attention tsv: boxes and features as base64 of float32, six columns or LXMERT's ten."""
    origin = ""
    for line, origin in read_lines(path):
        values = line.split("\t")
        if len(values) not in TSV_COLUMNS:
            raise DataError(f"{origin}: {len(values)} columns; bottom-up attention has 6, LXMERT 10")
        row = dict(zip(TSV_COLUMNS[len(values)], values, strict=True))
        try:
            width, height, count = float(row["width"]), float(row["height"]), int(row["num_boxes"])
            boxes = _decoded(row["boxes"]).reshape(count, 4)
            features = _decoded(row["features"]).reshape(count, -1)
            confidence = _decoded(row["confidence"]).reshape(count) if "confidence" in row else None
        except (ValueError, binascii.Error) as error:
            raise DataError(f"{origin}: cannot be decoded: {error}") from error
        yield Regions(image_key(row["image_id"]), width, height, boxes, origin, None, confidence, features)
    if not origin:
        raise DataError(f"{path}: no image in it")


def _decoded(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text, validate=True), dtype="<f4")


def read_npz(path: str | Path, images: Images | None = None) -> Regions:
    """An image of a feature archive, of one of the forms at the top.

    UNITER's hold no image size, so boxes stay fractions of an image of 1 x 1. A transposed ``x``, as in older archives
    of bottom-up-attention.pytorch, is turned; their confidence lies in a pickled ``info``.
    """
    path, images = Path(path), images or Images()
    arrays = load_npz(path, "features", "norm_bb", "conf", "x", "bbox", "image_w", "image_h", "feat")
    if "x" in arrays:
        return _detectron(path, arrays)
    for name in ("feat", "features"):
        if name in arrays and "norm_bb" not in arrays:
            return _of_vectors(path, arrays[name], images)
    for name in ("features", "norm_bb"):
        if name not in arrays or arrays[name].ndim != 2 or len(arrays[name]) != len(arrays["features"]):
            raise DataError(f"{path}: no array {name!r} with a row for each region")
    confidence = _numbers(path, "conf", arrays["conf"]).reshape(-1).astype(np.float64) if "conf" in arrays else None
    boxes = _numbers(path, "norm_bb", arrays["norm_bb"])[:, :4].astype(np.float64)
    if boxes.shape[1] != 4 or (confidence is not None and len(confidence) != len(boxes)):
        raise DataError(f"{path}: norm_bb must have four columns or more, conf a number for each region")
    features = _numbers(path, "features", arrays["features"])
    return Regions(image_key(path.name), 1, 1, boxes, str(path), None, confidence, features)


def _detectron(path: Path, arrays: dict[str, np.ndarray]) -> Regions:
    for name, dimensions in (("x", 2), ("bbox", 2), ("image_w", 0), ("image_h", 0)):
        if name not in arrays or arrays[name].squeeze().ndim > dimensions or arrays[name].ndim < dimensions:
            raise DataError(f"{path}: no array {name!r} of {dimensions} dimensions")
        _numbers(path, name, arrays[name])
    features, boxes = arrays["x"], arrays["bbox"]
    if len(features) != len(boxes):
        features = features.T
    if boxes.shape[1] != 4 or len(features) != len(boxes):
        raise DataError(f"{path}: x {arrays['x'].shape} and bbox {boxes.shape} must have a row for each region")
    width, height = (float(arrays[name].item()) for name in ("image_w", "image_h"))
    features = np.ascontiguousarray(features, dtype=np.float32)
    return Regions(image_key(path.name), width, height, boxes.astype(np.float64), str(path), features=features)


def _numbers(path: Path, name: str, array: np.ndarray) -> np.ndarray:
    if array.dtype.kind not in "fiu" or (name in ("x", "features", "feat") and array.dtype.kind != "f"):
        raise DataError(f"{path}: array {name!r} is of {array.dtype}, not of numbers")
    return array
