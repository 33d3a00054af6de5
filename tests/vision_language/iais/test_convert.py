"""Published forms of captions, boxes and features become folders that training reads; bad ones are named."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest

from fairseq_ext.regions.caption_files import read_captions
from fairseq_ext.regions.feature_files import read_feature_tsv, read_npz
from fairseq_ext.regions.json_files import read_karpathy
from fairseq_ext.regions.names import image_key
from fairseq_ext.training.errors import DataError, OptionError
from vision_language.iais import convert as conversion
from vision_language.iais.__main__ import main
from vision_language.iais.data import read_splits

IDS = (1, 22, 333, 4444)
SPLIT_OF = dict(zip(IDS, ("train", "restval", "val", "test"), strict=True))
BOXES = np.array([[7, 7, 7, 9], [0, 0, 50, 40], [10, 5, 120, 90]], dtype=np.float32)
"""The first has no size; the third reaches out of an image of 100 x 80."""
FEATURES = np.arange(12, dtype=np.float32).reshape(3, 4)


def convert(out, **options):
    """:func:`vision_language.iais.convert.convert` of paths."""
    for name in ("captions", "instances", "features"):
        options[name] = tuple(map(str, options.get(name, ())))
    return conversion.convert(conversion.ConvertOptions(out=str(out), **options))


def dump(path, value):
    path.write_text(json.dumps(value))
    return path


@pytest.fixture
def karpathy(tmp_path):
    images = [
        {
            "cocoid": number,
            "filename": f"COCO_val2014_{number:012}.jpg",
            "split": split,
            "sentences": [{"raw": f"A dog {number}."}, {"raw": " ... "}],
        }
        for number, split in SPLIT_OF.items()
    ]
    return dump(tmp_path / "dataset_coco.json", {"images": images})


@pytest.fixture
def coco_captions(tmp_path):
    annotations = [{"image_id": n, "caption": f"{word} {n}\n"} for n in IDS for word in ("cat", "dog")]
    return dump(tmp_path / "captions.json", {"annotations": annotations})


@pytest.fixture
def instances(tmp_path):
    sides = BOXES.copy()
    sides[:, 2:] -= sides[:, :2]
    annotations = [
        {"image_id": n, "bbox": box, "category_id": category}
        for n in IDS
        for box, category in zip(sides.tolist(), (3, 90, 3), strict=True)
    ]
    annotations.append({"image_id": 1, "bbox": [0, 0, 9, 9], "category_id": 3, "iscrowd": 1})
    return dump(
        tmp_path / "instances.json",
        {
            "images": [{"id": n, "width": 100, "height": 80} for n in (*IDS, 55555)],
            "annotations": annotations,
            "categories": [{"id": 90, "name": "toothbrush"}, {"id": 3, "name": "car"}],
        },
    )


def encoded(array):
    return base64.b64encode(np.asarray(array, dtype="<f4").tobytes()).decode()


def tsv(path, ids=IDS, confidence=None):
    rows = []
    for number in ids:
        row = [str(number), "100", "80", "3", encoded(BOXES), encoded(FEATURES + number)]
        if confidence is not None:
            objects = encoded(np.zeros(3))
            row = [row[0], "80", "100", objects, encoded(confidence), objects, objects, *row[3:]]
        rows.append("\t".join(row))
    path.write_text("\n".join(rows) + "\n")
    return path


def uniter_folder(folder, ids=IDS):
    folder.mkdir()
    fractions = np.concatenate([BOXES / [100, 80, 100, 80], np.zeros((3, 2))], 1).astype(np.float16)
    for number in ids:
        np.savez(
            folder / f"flickr30k_{number:012}.npz",
            features=(FEATURES + number).astype(np.float16),
            norm_bb=fractions,
            conf=np.array([[0.5], [0.3], [0.9]], dtype=np.float16),
        )
    return folder


@pytest.mark.parametrize(
    "name",
    [
        391895,
        "391895",
        "COCO_val2014_000000391895.jpg",
        "coco_val2014_000000391895.npz",
        "flickr30k_000000391895.npz",
        "COCO_val2014_000000391895.jpg.npz",
        "a/b/391895.JPG",
        "x\\391895",
    ],
)
def test_image_keys(name):
    assert image_key(name) == "391895"
    assert image_key("a/cat.png") == "cat"


def test_names_that_end_in_equal_digits_are_different_images(tmp_path):
    names = ["1001773457_577c3a7d70.jpg", "1012212859_01547e3f70.jpg", "cat_1.jpg", "dog_1.jpg", "1.jpg"]
    path = tmp_path / "Flickr8k.token.txt"
    path.write_text("".join(f"{name}#0\tcaption of {name}\n" for name in names))
    assert read_captions(path) == {name.removesuffix(".jpg"): [f"caption of {name}"] for name in names}


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


class TestCaptionFiles:
    def test_coco(self, coco_captions):
        assert read_captions(coco_captions)["22"] == ["cat 22", "dog 22"]

    def test_flickr_tokens(self, tmp_path):
        path = tmp_path / "results.token"
        path.write_text("100.jpg#0\tA dog .\n100.jpg#1\tTwo dogs .\n7.jpg#0\tA cat .\n")
        assert read_captions(path) == {"100": ["A dog .", "Two dogs ."], "7": ["A cat ."]}

    @pytest.mark.parametrize(
        "text",
        [
            'image,caption\n100.jpg,A dog .\n100.jpg,"Two, or more"\n',
            "\n\nimage\tcaption\n100.jpg\tA dog .\n\n100.jpg\tTwo, or more\n",
            "image_name| comment_number| comment\n100.jpg| 0| A dog .\n100.jpg| 1| Two, or more\n",
        ],
    )
    def test_csv(self, tmp_path, text):
        path = tmp_path / "captions.csv"
        path.write_text(text)
        assert read_captions(path) == {"100": ["A dog .", "Two, or more"]}

    def test_csv_is_read_as_csv(self, tmp_path):
        path = tmp_path / "captions.csv"
        path.write_text('\ufeff"image","split","caption"\r\n1.jpg,test,"Two, ""or"" \r\n more"\r\n2.jpg,test,A\r\n')
        assert read_captions(path) == {"1": ['Two, "or" more'], "2": ["A"]}

    ROWS = tuple(f"{number}.jpg| 0| A dog ." for number in range(1, 21))

    @pytest.mark.parametrize("broken", ["2199200615.jpg| 4   A dog runs across the grass .", "3.jpg| 0| a | b", "9"])
    def test_a_broken_row_is_skipped_and_told(self, tmp_path, caplog, broken):
        path = tmp_path / "results.csv"
        path.write_text("\n".join(["image_name| comment_number| comment", *self.ROWS[:9], broken, *self.ROWS[9:]]))
        assert read_captions(path) == {str(number): ["A dog ."] for number in range(1, 21)}
        assert [record.getMessage().partition(": ")[2][:-2] for record in caplog.records] == [
            f"{path}:11: {1 + broken.count('|')} columns, the header has"
        ]

    def test_a_quote_that_swallows_lines_is_no_single_broken_row(self, tmp_path):
        path = tmp_path / "results.csv"
        rows = [f"{number}.jpg|A dog" for number in range(30)]
        path.write_text("\n".join(["image|caption", *rows[:9], '9.jpg|"A', *rows[10:]]))
        with pytest.raises(DataError, match=r"results.csv:11: unexpected end of data; 21 lines are broken"):
            read_captions(path)

    def test_many_broken_lines_are_refused(self, tmp_path, caplog):
        path = tmp_path / "results.token"
        lines = [f"{number}.jpg#0\tA dog" for number in range(30)]
        path.write_text("\n".join(lines + ["no tab"] * 10))
        assert len(read_captions(path)) == 30 and len(caplog.records) == 10
        path.write_text("\n".join(lines + ["no tab"] * 11))
        with pytest.raises(DataError, match=r"results.token:31: a line is .*; 11 lines are broken"):
            read_captions(path)

    @pytest.mark.parametrize(
        ("name", "text", "message"),
        [
            ("a.json", "{", "a.json: not a JSON file"),
            ("a.json", "[]", "a.json: no list 'annotations'"),
            ("a.json", '{"annotations": [{"image_id": 1}]}', "a.json: annotation 0: no 'caption'"),
            ("a.token", "1.jpg#0\tA dog\n1.jpg A cat\n", "a.token:2: a line is IMAGE.jpg#NUMBER TAB caption"),
            ("a.csv", "picture,caption\n1.jpg,A dog\n", "a.csv:1: neither IMAGE.jpg#0 TAB caption nor a csv header"),
            ("a.csv", "image|caption\n1.jpg\n", "a.csv:2: 1 columns, the header has 2"),
            ("a.csv", "", "a.csv: neither"),
        ],
    )
    def test_refused(self, tmp_path, name, text, message):
        path = tmp_path / name
        path.write_text(text)
        with pytest.raises(DataError) as error:
            read_captions(path)
        assert message in str(error.value) and "\n" not in str(error.value)


def test_karpathy_of_flickr(tmp_path):
    image = {"filename": "100.jpg", "split": "val", "sentences": [{"raw": "A dog."}]}
    assert read_karpathy(dump(tmp_path / "a.json", {"images": [image]})) == ({"100": "valid"}, {"100": ["A dog."]})
    with pytest.raises(DataError, match=r"a.json: image 0: split 'dev' is not one of train, restval, val, test"):
        read_karpathy(dump(tmp_path / "a.json", {"images": [image | {"split": "dev"}]}))
    with pytest.raises(DataError, match=r"a.json: image 0: sentence: no 'raw'"):
        read_karpathy(dump(tmp_path / "a.json", {"images": [image | {"sentences": [3]}]}))


def detectron_folder(folder, ids=IDS, turned=False):
    """What bottom-up-attention.pytorch writes, its pickled ``info`` too."""
    folder.mkdir()
    for number in ids:
        features = FEATURES + number
        np.savez(
            folder / f"COCO_val2014_{number:012}.jpg.npz",
            x=features.T if turned else features,
            bbox=BOXES,
            num_bbox=3,
            image_h=80,
            image_w=100,
            info=np.array({"objects_conf": [1]}, dtype=object),
        )
    return folder


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
