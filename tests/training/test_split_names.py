"""A validation set is found by each of its usual names, in every form of data, and never passed over."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fairseq_ext.captions.sources import region_source
from fairseq_ext.training.errors import DataError
from fairseq_ext.training.options import SPLIT_NAMES, SPLITS, find_split
from graph.label_graph.data import read_splits as read_reviews
from tests.helpers import ROOT
from tests.test_floors import SOURCES
from vision_language.iais.data import read_splits as read_regions
from vision_language.image_classification.image_files import read_split as read_images
from vision_language.muka.data import read_splits as read_texts


def lines(folder: Path, name: str, number: int) -> None:
    (folder / f"{name}.tsv").write_text("".join(f"{label}\tword {number}\n" for label in "ab" * number))


def region_lines(folder: Path, name: str, number: int) -> None:
    image = {"width": 9, "height": 9, "boxes": [[0, 0, 5, 5]], "captions": ["a dog"]}
    rows = [json.dumps({"image_id": f"{name}{row}", **image}) for row in range(number)]
    (folder / f"{name}.jsonl").write_text("\n".join(rows))


def arrays(folder: Path, name: str, number: int) -> None:
    np.savez(folder / f"{name}.npz", x=np.zeros((number, 4, 4), np.uint8), y=np.arange(number) % 2)


def one_archive(folder: Path, name: str, number: int) -> None:
    path = folder / "all.npz"
    with np.load(path) if path.exists() else np.load(_empty(folder)) as archive:
        before = dict(archive)
    np.savez(path, **before, **{f"x_{name}": np.zeros((number, 4, 4), np.uint8), f"y_{name}": np.arange(number) % 2})


def _empty(folder: Path) -> Path:
    path = folder.parent / "empty.npz"
    np.savez(path)
    return path


def image_files(folder: Path, name: str, number: int) -> None:
    for row in range(number):
        place = folder / name / "ab"[row % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4)).save(place / f"{row}.png")


def images(folder: Path) -> int:
    return len(read_images(folder, "valid"))


FORMS = {
    "muka": (lines, lambda folder: len(read_texts(folder)["valid"]) // 2),
    "label_graph": (lines, lambda folder: len(read_reviews(folder)["valid"]) // 2),
    "images npz": (arrays, images),
    "images of one npz": (one_archive, images),
    "images": (image_files, images),
    "iais": (region_lines, lambda folder: len(read_regions(folder)["valid"].images)),
    "captions": (region_lines, lambda folder: list(region_source(folder).split_of.values()).count("valid")),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", SPLIT_NAMES["valid"])
def test_the_validation_set_has_any_of_its_names(tmp_path, form, name):
    write, count = FORMS[form]
    folder = tmp_path / "data"
    folder.mkdir()
    for split, number in (("train", 40), (name, 7), ("test", 3)):
        write(folder, split, number)
    assert count(folder) == 7
    other = next(each for each in SPLIT_NAMES["valid"] if each != name)
    write(folder, other, 5)
    with pytest.raises(DataError, match=r"both \S+ and \S+ could be the valid set$") as refusal:
        count(folder)
    assert name in str(refusal.value) and other in str(refusal.value)


def test_a_split_is_found_by_its_names_alone():
    assert tuple(SPLIT_NAMES) == SPLITS
    assert find_split("here", "train", lambda name: [f"{name}.txt"]) == "train.txt"
    assert find_split("here", "valid", lambda name: {name} & {"dev", "train"}) == "dev"
    assert find_split("here", "test", lambda name: []) is None


def test_no_other_file_lists_the_names():
    """But for Karpathy's, whose file has its own."""
    listing = set()
    for path in SOURCES:
        constants = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
        listing |= {path.relative_to(ROOT).as_posix()} if constants & {"val", "dev"} else set()
    assert listing == {"fairseq_ext/training/options.py", "fairseq_ext/regions/json_files.py"}
