"""Bad input of a preparation: one line that names it, and nothing that looks like a prepared folder."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fairseq_ext.captions.prepare import PrepareOptions, prepare
from fairseq_ext.training.errors import InputError
from tests.captions.images import COLUMNS, ROWS, write_captioned


def lines(change: Callable[[list[dict]], None], split: str = "train") -> Callable[[Path], None]:
    """A change to the images of a split."""

    def apply(folder: Path) -> None:
        path = folder / f"{split}.jsonl"
        images = [json.loads(line) for line in path.read_text().splitlines()]
        change(images)
        path.write_text("".join(json.dumps(image) + "\n" for image in images))

    return apply


def first(**values) -> Callable[[Path], None]:
    return lines(lambda images: images[0].update(values))


def without(key: str) -> Callable[[Path], None]:
    return lines(lambda images: images[0].pop(key))


def vectors(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    """A change to the vectors of image 2."""

    def apply(folder: Path) -> None:
        path = folder / "features" / "2.npy"
        np.save(path, change(np.load(path)))

    return apply


def content(name: str, data: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(data) and None


def cut(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-40]) and None


def archive(**arrays) -> Callable[[Path], None]:
    """Other arrays in the archive of grids."""

    def apply(folder: Path) -> None:
        with np.load(folder / "grid_features.npz") as old:
            kept = dict(old)
        new = {name: change(kept[name]) if callable(change) else change for name, change in arrays.items()}
        np.savez(folder / "grid_features.npz", **kept | new)

    return apply


def renamed(names: np.ndarray) -> np.ndarray:
    return np.array([f"x{name}" for name in names])


def spoiled(value: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda array: np.where(np.arange(array.size).reshape(array.shape) == 1, value, array).astype(array.dtype)


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4\n"
NOTHING: dict = {}
GRID = {"grid": (ROWS, COLUMNS)}
IMAGES = {
    "no captions": (first(captions=[]), "1 images without captions: 1; --skip-missing"),
    "no captions of valid": (lines(lambda i: i[0].pop("captions"), "valid"), "without captions: 13"),
    "no word": (first(captions=["A dog.", " ... "]), "train.jsonl:1: a caption without words: ' ... '"),
    "captions no list": (first(captions="A dog"), "train.jsonl:1: captions must be a list"),
    "languages": (first(captions={"en": "A", "de": "B"}), "in 2 languages; --language chooses one: de, en"),
    "double id": (lines(lambda i: i[1].update(image_id=1)), "train.jsonl:2: image_id 1 is also at"),
    "leak": (lines(lambda i: i[0].update(image_id=1), "test"), "test.jsonl:1: image_id 1 is also at .*train.jsonl:1"),
    "zero regions": (first(boxes=[]), "train.jsonl:1: an image without regions"),
    "no width": (without("width"), "train.jsonl:1: no 'width'"),
    "turned box": (first(boxes=[[9, 0, 5, 5, 0]]), "train.jsonl:1: box .9, 0, 5, 5. has no size"),
    "flat box": (first(boxes=[[0, 5, 5, 5, 0]]), "train.jsonl:1: box .0, 5, 5, 5. has no size"),
    "box outside": (first(boxes=[[0, 0, 121.5, 5, 0]]), "box .0, 0, 121.5, 5. is not inside its image of 120 x 80"),
    "box beyond": (first(boxes=[[120, 0, 120.5, 5, 0]]), "is not inside its image of 120 x 80"),
    "fractions": (first(boxes=[[0, 0, 0.5, 0.5, 0]]), "is in fractions, expected pixels of its image of 120 x 80"),
    "pixels": (first(width=1, height=1), "is not inside its image of 1 x 1"),
    "class": (first(boxes=[[0, 0, 5, 5, 6]]), "label 6 is not one of the 6 in categories.txt"),
    "box of text": (first(boxes=["a"]), "train.jsonl:1: a box is"),
    "not JSON": (content("train.jsonl", b"{\n"), "train.jsonl:1: not a JSON value"),
    "empty split": (content("valid.jsonl", b""), "no image of valid"),
    "no split": (lambda f: (f / "valid.jsonl").unlink(), "there is no valid.jsonl or valid.jsonl.gz in it"),
}
VECTORS = {
    "no height": (first(height=0), "train.jsonl:1: height must be a number above 0, got 0"),
    "neither": (
        lambda f: [p.unlink() for p in (f / "features").iterdir()] and (f / "features").rmdir(),
        "image 1 has boxes, but neither vectors nor classes",
    ),
    "no features": (lambda f: (f / "features" / "2.npy").unlink(), "train.jsonl:2: missing feature file .*2.npy"),
    "rows": (vectors(lambda a: np.concatenate([a, a])), "train.jsonl:2: features of image 2 are float32"),
    "dimensions": (
        vectors(lambda a: a[:, 1:]),
        "train.jsonl:2: features of image 2 have 5 numbers, those before have 6",
    ),
    "whole numbers": (vectors(lambda a: a.astype(int)), "train.jsonl:2: features of image 2 are int64"),
    "nan": (vectors(spoiled(np.nan)), "train.jsonl:2: features of image 2 are not all finite"),
    "inf": (vectors(spoiled(np.inf)), "train.jsonl:2: features of image 2 are not all finite"),
    "overflow": (vectors(spoiled(-7e4)), "feature of image 2 is -?70000, beyond float16: --feature-dtype float32"),
    "pickle": (content("features/2.npy", pickle.dumps([1])), "2.npy: not an npy of numbers"),
    "lfs": (content("features/2.npy", LFS), "2.npy: .*Git LFS"),
    "truncated npy": (cut("features/2.npy"), "2.npy: not an npy of numbers"),
}
GRIDS = {
    "truncated npz": (cut("grid_features.npz"), "grid_features.npz: not an npz"),
    "lfs npz": (content("grid_features.npz", LFS), "grid_features.npz: .*Git LFS"),
    "objects": (archive(features=lambda a: a.astype(object)), "grid_features.npz: not an npz of number arrays"),
    "grid nan": (archive(features=spoiled(np.nan)), "features of image 1 are not all finite"),
    "image gone": (
        archive(features=lambda a: a[1:], names=lambda a: a[1:]),
        "1 captions without image: 1; --skip-missing",
    ),
    "captions gone": (lines(lambda i: i.pop(0)), "1 images without captions: 1; --skip-missing"),
    "other names": (archive(names=renamed), "captions of '1', regions of 'x1' .*grid_features.npz"),
    "names": (archive(names=lambda a: a[1:]), "grid_features.npz: features .* and 19 names"),
    "double name": (archive(names=lambda a: np.where(a == "1.jpg", "2.jpg", a)), "must have a name for each image"),
    "sizes": (archive(sizes=np.ones((3, 2))), "sizes .3, 2. of 20 images"),
    "one file": (first(image="2.jpg"), "train.jsonl:2: its file 2 is also that of .*train.jsonl:1"),
}
OPTIONS = {
    "no language": ("classes", {"language": "en"}, "captions in no named language|of no named language"),
    "other cells": ("grid", {"grid": (4, 4)}, "vectors .6, 6. are not of a grid of 4 x 4"),
    "no square": ("grid", NOTHING, "6 vectors without boxes; a grid that is not square"),
    "kind": ("classes", {"kind": "regions"}, "--kind regions: .* is of classes"),
    "kind of grids": ("classes", {"kind": "grid"}, "--kind grid: .* is of classes"),
    "rare words": ("classes", {"min_count": 1000}, "--min-count 1000: no word of the training captions"),
    "pieces": ("classes", {"sentencepiece": 9000, "min_count": 5}, "--sentencepiece 9000 is too large"),
    "idle count": ("classes", {"sentencepiece": 9}, "--min-count 1: has no effect with --sentencepiece 9"),
    "idle draw": ("classes", {"valid": 3}, "--valid 3: has no effect where the source has splits"),
    "idle dtype": ("classes", {"feature_dtype": "float32"}, "--feature-dtype float32: has no effect on classes"),
    "idle cut": ("grid", GRID | {"max_regions": 3}, "--max-regions 3: has no effect on grids"),
    "idle grid": ("classes", {"kind": "classes"} | GRID, "--grid 2 3: has no effect with --kind classes"),
    "grid of classes": ("classes", GRID, "--grid 2 3: has no effect on classes"),
    "bad grid": ("grid", {"grid": (2,)}, "--grid must be rows and columns, got 2"),
    "idle instances": (
        "classes",
        {"instances": ("x",)},
        "--instances x: has no effect with a SOURCE of the region format",
    ),
    "hdf5": ("grid", {"features": ("coco_detections.hdf5",)}, "coco_detections.hdf5: HDF5 is not read"),
    "absent folder": ("classes", {"source": ("nowhere",)}, "SOURCE: nowhere does not exist"),
    "absent vectors": ("grid", {"features": ("nowhere",)}, "nowhere: cannot be read"),
    "absent": ("classes", {"source": ("nowhere.jsonl",)}, "SOURCE: nowhere.jsonl does not exist"),
    "absent json": (
        "classes",
        {"source": ("nowhere.json",), "features": ("x",)},
        "SOURCE: nowhere.json does not exist",
    ),
    "no regions": ("classes", {"source": (__file__,)}, "either --features or --instances, got both or neither"),
}
CASES = {
    **{name: ("classes", change, NOTHING, message) for name, (change, message) in IMAGES.items()},
    **{name: ("regions", change, NOTHING, message) for name, (change, message) in VECTORS.items()},
    **{name: ("grid", change, GRID, message) for name, (change, message) in GRIDS.items()},
    **{name: (kind, None, options, message) for name, (kind, options, message) in OPTIONS.items()},
}


@pytest.mark.parametrize("case", CASES)
def test_one_line_and_nothing_written(tmp_path, case):
    kind, change, options, message = CASES[case]
    source = write_captioned(tmp_path / "source", kind)
    if change:
        change(source)
    before = sorted(tmp_path.rglob("*"))
    given = {"source": (str(source),), "data": str(tmp_path / "data"), "min_count": 1} | options
    with pytest.raises(InputError, match=message) as refusal:
        prepare(PrepareOptions(**given))
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 500
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_of_something_else_is_not_overwritten(tmp_path):
    source = write_captioned(tmp_path / "source", "classes", images=4)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "precious").write_text("")
    with pytest.raises(InputError, match=r"DATA: .*data already exists and is not an empty folder"):
        prepare(PrepareOptions(source=(str(source),), data=str(tmp_path / "data"), min_count=1))
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["precious"]
