"""Published forms of captions, boxes and features become folders that training reads; bad ones are named."""

from __future__ import annotations

import json

import numpy as np
import pytest

from fairseq_ext.training.errors import DataError, OptionError
from tests.regions.files import (
    FEATURES,
    IDS,
    coco_captions_file,
    detectron_folder,
    dump,
    instances_file,
    karpathy_file,
    tsv,
    uniter_folder,
    vectors_folder,
)
from vision_language.iais import convert as conversion
from vision_language.iais.__main__ import main
from vision_language.iais.data import read_splits


@pytest.fixture
def karpathy(tmp_path):
    return karpathy_file(tmp_path)


@pytest.fixture
def coco_captions(tmp_path):
    return coco_captions_file(tmp_path)


@pytest.fixture
def instances(tmp_path):
    return instances_file(tmp_path)


def convert(out, **options):
    """:func:`vision_language.iais.convert.convert` of paths."""
    for name in ("captions", "instances", "features"):
        options[name] = tuple(map(str, options.get(name, ())))
    return conversion.convert(conversion.ConvertOptions(out=str(out), **options))


class TestConvert:
    def test_coco(self, tmp_path, karpathy, coco_captions, instances):
        counts = convert(tmp_path / "out", captions=[coco_captions], instances=[instances], split_file=str(karpathy))
        assert counts == {"train": 2, "valid": 1, "test": 1, "left_out": 1}
        splits = read_splits(tmp_path / "out")
        assert splits["train"].labels == ["car", "toothbrush"]
        assert [(image.image_id, len(image.boxes)) for image in splits["train"].images] == [(1, 2), (22, 2)]
        assert splits["test"].captions == ["cat 4444", "dog 4444"]
        image = splits["valid"].images[0]
        assert image.boxes.tolist() == [[0, 0, 50, 40], [10, 5, 100, 80]] and image.labels.tolist() == [1, 0]

    def test_captions_of_the_splits_alone(self, tmp_path, karpathy, instances):
        convert(tmp_path / "out", instances=[instances], split_file=str(karpathy))
        assert read_splits(tmp_path / "out")["train"].captions == ["A dog 1.", "A dog 22."]

    @pytest.mark.parametrize("confidence", [None, [0.5, 0.3, 0.9]])
    def test_bottom_up_tsv(self, tmp_path, karpathy, confidence):
        source = tsv(tmp_path / "a.tsv", confidence=confidence)
        convert(tmp_path / "out", features=[source], split_file=str(karpathy))
        data = read_splits(tmp_path / "out", min_regions=1, confidence_threshold=0.0)["train"]
        assert data.labels is None and data.feature_size == 4
        order = [0, 1] if confidence is None else [1, 0]
        image = data.images[1]
        assert image.boxes.tolist() == np.array([[0, 0, 50, 40], [10, 5, 100, 80]])[order].tolist()
        assert image.features().tolist() == (FEATURES + 22)[1:][order].tolist()

    def test_uniter_archives(self, tmp_path, karpathy):
        convert(tmp_path / "out", features=[uniter_folder(tmp_path / "npz")], split_file=str(karpathy))
        image = read_splits(tmp_path / "out")["valid"].images[0]
        assert image.geometry[1].tolist() == pytest.approx([0, 0, 0.5, 0.5, 0.5, 0.5, 0.25], abs=1e-3)
        assert image.features().tolist() == (FEATURES + 333)[[2, 1]].tolist()

    def test_vectors_and_boxes_in_two_folders(self, tmp_path, karpathy, coco_captions):
        folder = vectors_folder(tmp_path / "cocobu")
        convert(tmp_path / "out", captions=[coco_captions], features=[folder], split_file=str(karpathy))
        image = read_splits(tmp_path / "out")["valid"].images[0]
        assert image.boxes.tolist() == [[0, 0, 50, 40], [10, 5, 100, 80]] and (image.width, image.height) == (100, 80)

    def test_drawn_splits(self, tmp_path, coco_captions, instances):
        def drawn(name, **options):
            convert(tmp_path / name, captions=[coco_captions], instances=[instances], valid=1, test=1, **options)
            return [[image.image_id for image in data.images] for data in read_splits(tmp_path / name).values()]

        first = drawn("a")
        assert sorted(first[0] + first[1] + first[2]) == list(IDS) and [len(part) for part in first] == [2, 1, 1]
        assert drawn("b") == first != drawn("c", seed=1)
        with pytest.raises(OptionError, match=r"--valid and --test must leave some of the 4 images, got 2 and 2"):
            convert(tmp_path / "d", captions=[coco_captions], instances=[instances], valid=2, test=2)

    def test_a_killed_conversion_goes_on(self, tmp_path, karpathy):
        out = tmp_path / "out"
        lines = tsv(tmp_path / "a.tsv").read_text().splitlines()
        (tmp_path / "a.tsv").write_text("\n".join([*lines[:2], "damaged"]))
        with pytest.raises(DataError, match=r"a.tsv:3: 1 columns"):
            convert(out, features=[tmp_path / "a.tsv"], split_file=str(karpathy))
        assert sorted(path.name for path in out.rglob("*.*")) == ["1.npy", "22.npy"]
        np.save(out / "features" / "1.npy", FEATURES[1:] * 0)  # of another detector, perhaps, or damaged
        convert(out, features=[tsv(tmp_path / "a.tsv")], split_file=str(karpathy))
        assert np.load(out / "features" / "1.npy").tolist() == (FEATURES + 1)[1:].tolist()
        assert len(read_splits(out)["train"].images) == 2
        with pytest.raises(OptionError, match=r"--out: .* already holds train.jsonl"):
            convert(out, features=[tmp_path / "a.tsv"], split_file=str(karpathy))

    def test_refused(self, tmp_path, karpathy, coco_captions, instances):
        out = tmp_path / "out"
        with pytest.raises(OptionError, match="either --instances or --features"):
            convert(out, captions=[coco_captions])
        with pytest.raises(OptionError, match="captions come from --captions or from --split-file"):
            convert(out, instances=[instances])
        with pytest.raises(DataError, match="image 1 is in two of the files"):
            convert(out, instances=[instances, instances], split_file=str(karpathy))
        with pytest.raises(DataError, match="a split would be empty"):
            convert(out, features=[tsv(tmp_path / "b.tsv", ids=IDS[:3])], split_file=str(karpathy))
        other = json.loads(instances.read_text()) | {"categories": [{"id": 3, "name": "van"}, {"id": 90, "name": "x"}]}
        with pytest.raises(DataError, match=r"other.json: its categories are not those of .*instances.json"):
            convert(out, instances=[instances, dump(tmp_path / "other.json", other)], split_file=str(karpathy))
        with pytest.raises(DataError, match=r"empty: no npz or npy file in it"):
            (tmp_path / "empty").mkdir()
            convert(out, features=[tmp_path / "empty"], split_file=str(karpathy))
        (tmp_path / "file").write_text("")
        with pytest.raises(OptionError, match="--out: cannot write"):
            convert(tmp_path / "file" / "out", instances=[instances], split_file=str(karpathy))
        assert not list(out.glob("*.jsonl"))


class TestCommand:
    def test_converts(self, tmp_path, karpathy, instances, capsys):
        main(["convert", "--out", str(tmp_path / "out"), "--instances", str(instances), "--split-file", str(karpathy)])
        assert capsys.readouterr().out
        assert len(read_splits(tmp_path / "out")["test"].images) == 1

    def test_bad_input_is_one_line(self, tmp_path, instances, capsys):
        with pytest.raises(SystemExit) as error:
            main(["convert", "--out", str(tmp_path / "out"), "--instances", str(instances), "--captions", "nowhere"])
        assert str(error.value).startswith("nowhere: cannot be read") and "\n" not in str(error.value)
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("turned", [False, True])
def test_bottom_up_attention_pytorch(tmp_path, karpathy, turned):
    convert(tmp_path / "out", features=[detectron_folder(tmp_path / "npz", turned=turned)], split_file=str(karpathy))
    image = read_splits(tmp_path / "out")["train"].images[1]
    assert (image.width, image.height) == (100, 80)
    assert image.boxes.tolist() == [[0, 0, 50, 40], [10, 5, 100, 80]]
    assert image.features().tolist() == (FEATURES + 22)[1:].tolist()


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["x", "bbox", "image_w", "features", "norm_bb", "conf"])
def test_numbers_that_are_not_finite_are_refused(tmp_path, karpathy, name, value):
    make = detectron_folder if name in ("x", "bbox", "image_w") else uniter_folder
    path = next(make(tmp_path / "npz").glob(f"*{22:012}*"))
    with np.load(path) as archive:
        arrays = {key: archive[key] for key in archive.files if key != "info"}
    arrays[name] = arrays[name].astype(float)
    arrays[name][(-1, 0)[: arrays[name].ndim]] = value
    np.savez(path, **arrays)
    with pytest.raises(DataError) as error:
        convert(tmp_path / "out", features=[tmp_path / "npz"], split_file=str(karpathy))
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)
    assert not list((tmp_path / "out").glob("*.jsonl"))


def test_numbers_of_a_tsv_that_are_not_finite(tmp_path, karpathy):
    path = tsv(tmp_path / "a.tsv", confidence=[0.5, np.nan, 0.9])
    with pytest.raises(DataError, match=r"a.tsv:1: confidence of image 1 are not all finite numbers"):
        convert(tmp_path / "out", features=[path], split_file=str(karpathy))


def test_captions_of_other_images_are_shown_beside_the_regions(tmp_path, instances):
    path = tmp_path / "a.token"
    path.write_text("cat.jpg#0\tA cat .\n")
    with pytest.raises(DataError, match=r"regions of '55555' \(.*instances.json: image 4\), captions of 'cat'$"):
        convert(tmp_path / "out", captions=[path], instances=[instances])
