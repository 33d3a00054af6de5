"""Boxes and features as others publish them; broken files are named."""

from __future__ import annotations

import numpy as np
import pytest

from fairseq_ext.regions.feature_files import Images, open_features, read_feature_tsv, read_npz
from fairseq_ext.training.errors import DataError
from tests.regions.files import BOXES, FEATURES, IDS, grids_archive, grids_folder, tsv, vectors_folder


@pytest.mark.parametrize("column", [3, 4, 5])
def test_a_damaged_tsv(tmp_path, column):
    path = tsv(tmp_path / "a.tsv")
    row = path.read_text().splitlines()[0].split("\t")
    row[column] = row[column][:-5] + "x"
    path.write_text("\t".join(row))
    with pytest.raises(DataError, match=r"a.tsv:1: cannot be decoded") as error:
        list(read_feature_tsv(path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm_bb": np.zeros((2, 6))}, "no array 'norm_bb' with a row for each region"),
        ({"features": np.zeros(3)}, "no array 'features' with a row for each region"),
        ({"norm_bb": np.zeros((3, 3))}, "norm_bb must have four columns or more"),
        ({"conf": np.zeros(2)}, "conf a number for each region"),
        ({"features": np.zeros((3, 4), int)}, "array 'features' is of int64, not of numbers"),
        ({"conf": np.array(["a", "b", "c"])}, "array 'conf' is of <U1, not of numbers"),
        ({"x": FEATURES}, "no array 'bbox' of 2 dimensions"),
        ({"x": FEATURES, "bbox": BOXES, "image_w": 9}, "no array 'image_h' of 0 dimensions"),
        (
            {"x": FEATURES, "bbox": BOXES[:2], "image_w": 9, "image_h": 9},
            r"x \(3, 4\) and bbox \(2, 4\) must have a row",
        ),
    ],
)
def test_a_bad_archive(tmp_path, change, message):
    arrays = {"features": FEATURES, "norm_bb": np.zeros((3, 6)), "conf": np.zeros(3)} | change
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=message):
        read_npz(tmp_path / "a.npz")


SIZES = dict.fromkeys(map(str, IDS), (100.0, 80.0))


def test_vectors_in_one_folder_and_boxes_in_another(tmp_path):
    folder = vectors_folder(tmp_path / "cocobu")
    read = {regions.key: regions for regions in open_features(folder, Images(SIZES)).read({"22", "333"})}
    assert read.keys() == {"22", "333"} and (read["22"].width, read["22"].height) == (100, 80)
    assert read["22"].boxes.tolist() == BOXES.tolist() and read["22"].features.tolist() == (FEATURES + 22).tolist()
    with pytest.raises(DataError, match=r"cocobu_att/1.npz: no file says the size of image 1"):
        list(open_features(folder).read())
    np.save(tmp_path / "cocobu_box" / "1.npy", BOXES[:2])
    with pytest.raises(DataError, match=r"cocobu_box/1.npy: boxes \(2, 4\) of vectors \(3, 4\)"):
        list(open_features(folder, Images(SIZES)).read())
    folder.rename(tmp_path / "alone_att")
    with pytest.raises(DataError, match=r"alone_att/1.npz: vectors without boxes; a grid needs rows and columns"):
        list(open_features(tmp_path / "alone_att", Images(SIZES)).read())
    (regions,) = open_features(tmp_path / "alone_att", Images(SIZES, (3, 1))).read({"22"})
    assert regions.grid == (3, 1) and regions.boxes[1].tolist() == pytest.approx([0, 80 / 3, 100, 160 / 3])


@pytest.mark.parametrize("make", [grids_folder, grids_archive])
def test_grids(tmp_path, make):
    features = open_features(make(tmp_path / "grids"), Images({"1": (30, 10)}, (1, 3)))
    assert features.keys == [str(number) for number in IDS] or sorted(features.keys) == sorted(map(str, IDS))
    read = {regions.key: regions for regions in features.read()}
    assert read["333"].features.tolist() == (FEATURES + 333).tolist() and read["333"].grid == (1, 3)
    assert read["1"].boxes.tolist() == [[0, 0, 10, 10], [10, 0, 20, 10], [20, 0, 30, 10]]
    assert (read["22"].width, read["22"].height) == (1, 1)
    with pytest.raises(DataError, match=r"grid of 3 x 1|are not of a grid of 2 x 2"):
        list(open_features(features.origin, Images({}, (2, 2))).read())


def test_an_archive_is_not_read_as_a_whole(tmp_path):
    path = grids_archive(tmp_path / "grids")
    rows = open_features(path, Images({}, (1, 3))).read()
    next(rows)
    path.write_bytes(path.read_bytes()[:-300])  # after the first image nothing but that was read
    rows.close()
    with pytest.raises(DataError, match=r"grids.npz: not an npz"):
        open_features(path)


def test_cells_of_a_padded_image_reach_out_of_it(tmp_path):
    arrays = {"features": np.zeros((1, 2, 2, 5)), "names": ["a.jpg"], "sizes": [[40, 20]], "padded": True}
    np.savez(tmp_path / "a.npz", **arrays)
    (regions,) = open_features(tmp_path / "a.npz").read()
    assert regions.boxes.tolist() == [[0, -10, 20, 10], [20, -10, 40, 10], [0, 10, 20, 30], [20, 10, 40, 30]]


def test_forms_that_are_not_read(tmp_path):
    with pytest.raises(DataError, match=r"coco_detections.hdf5: HDF5 is not read"):
        open_features(tmp_path / "coco_detections.hdf5")
    folder = grids_folder(tmp_path / "grids")
    (folder / "COCO_val2014_000000000001.npz").write_bytes(b"")
    with pytest.raises(DataError, match=r"1.npy and COCO_val2014_000000000001.npz are|001.npz and 1.npy are"):
        open_features(folder)
