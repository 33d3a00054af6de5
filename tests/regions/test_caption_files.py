"""Captions and splits as others publish them; broken files are named."""

from __future__ import annotations

from collections import Counter

import pytest

from fairseq_ext.regions.caption_files import read_captions
from fairseq_ext.regions.json_files import read_instances, read_karpathy, read_sizes
from fairseq_ext.regions.names import image_key
from fairseq_ext.training.errors import DataError
from tests.regions.files import coco_captions_file, dump, instances_file


@pytest.fixture
def coco_captions(tmp_path):
    return coco_captions_file(tmp_path)


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
    def test_a_broken_row_is_skipped_and_told(self, tmp_path, capsys, broken):
        path = tmp_path / "results.csv"
        path.write_text("\n".join(["image_name| comment_number| comment", *self.ROWS[:9], broken, *self.ROWS[9:]]))
        assert read_captions(path) == {str(number): ["A dog ."] for number in range(1, 21)}
        reason = f"{1 + broken.count('|')} columns, the header has 3"
        assert capsys.readouterr().err == f"warning: skipped: {path}:11: {reason}\n"

    def test_a_quote_that_swallows_lines_is_no_single_broken_row(self, tmp_path):
        path = tmp_path / "results.csv"
        rows = [f"{number}.jpg|A dog" for number in range(30)]
        path.write_text("\n".join(["image|caption", *rows[:9], '9.jpg|"A', *rows[10:]]))
        with pytest.raises(DataError, match=r"results.csv:11: unexpected end of data; 21 lines are broken"):
            read_captions(path)

    def test_many_broken_lines_are_refused(self, tmp_path, capsys):
        path = tmp_path / "results.token"
        lines = [f"{number}.jpg#0\tA dog" for number in range(30)]
        path.write_text("\n".join(lines + ["no tab"] * 10))
        left_out: Counter[str] = Counter()
        assert len(read_captions(path, left_out)) == 30 and left_out == {"broken lines of captions": 10}
        assert capsys.readouterr().err.count("warning: skipped: ") == 10
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
            ("a.csv", "photo,caption\n1.jpg,A dog\n", "a.csv:1: neither IMAGE.jpg#0 TAB caption nor a csv header"),
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


def test_sizes_are_those_of_coco(tmp_path, coco_captions):
    assert read_sizes([coco_captions, tmp_path / "a.csv"])["4444"] == (100, 80)
    assert read_sizes([dump(tmp_path / "a.json", {"images": [{"id": 1}, 3]}), dump(tmp_path / "b.json", [])]) == {}


def test_an_image_of_two_splits_is_a_leak(tmp_path):
    images = [{"cocoid": 7, "split": split, "sentences": [{"raw": "A"}]} for split in ("train", "test")]
    with pytest.raises(DataError, match=r"a.json: image 1: 7 is there before, as train"):
        read_karpathy(dump(tmp_path / "a.json", {"images": images}))


def test_boxes_around_crowds_or_nothing_are_left_out(tmp_path):
    names, images = read_instances(instances_file(tmp_path))
    assert names == ["car", "toothbrush"]
    assert images["22"].boxes.tolist() == [[0, 0, 50, 40], [10, 5, 120, 90]] and images["22"].labels.tolist() == [1, 0]
    assert images["1"].boxes.tolist() == images["22"].boxes.tolist() and not len(images["55555"].boxes)


def test_karpathy_of_flickr(tmp_path):
    image = {"filename": "100.jpg", "split": "val", "sentences": [{"raw": "A dog."}]}
    assert read_karpathy(dump(tmp_path / "a.json", {"images": [image]})) == ({"100": "valid"}, {"100": ["A dog."]})
    with pytest.raises(DataError, match=r"a.json: image 0: split 'dev' is not one of train, restval, val, test"):
        read_karpathy(dump(tmp_path / "a.json", {"images": [image | {"split": "dev"}]}))
    with pytest.raises(DataError, match=r"a.json: image 0: sentence: no 'raw'"):
        read_karpathy(dump(tmp_path / "a.json", {"images": [image | {"sentences": [3]}]}))
