"""The region format: what is read, what is refused by file and line; geometry, kept regions, batches."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from fairseq_ext.modules.visual import box_geometry
from fairseq_ext.training.errors import DataError, OptionError
from fairseq_ext.training.files import MAX_LINE
from tests.helpers import golden_names, load_golden, require_data
from tests.vision_language.iais.regions import THINGS, WORDS, tiny_model, tiny_tokenizer, write_regions
from vision_language.iais.data import Collator, Image, read_regions, read_splits
from vision_language.iais.negatives import PairBatches

IMAGE = {
    "image_id": 7,
    "width": 100,
    "height": 50,
    "boxes": [[0, 0, 50, 25, 1], [25.5, 10, 100, 50, 0]],
    "captions": ["a dog", "two cats"],
}


def write(path, *lines, categories=THINGS):
    """A file of images, given as mappings or as text."""
    text = "".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    if categories:
        (path.parent / "categories.txt").write_text("\n".join(categories) + "\n")
    return path


def unlabelled(**changes):
    return IMAGE | {"boxes": [box[:4] for box in IMAGE["boxes"]]} | changes


class TestGeometry:
    def test_seven_numbers(self):
        actual = box_geometry(torch.tensor([[10.0, 20.0, 50.0, 40.0]]), 100, 80)
        torch.testing.assert_close(actual, torch.tensor([[0.1, 0.25, 0.5, 0.5, 0.4, 0.25, 0.1]]))

    @pytest.mark.parametrize("name", golden_names("iais", "itm_case"))
    def test_released_numbers(self, name):
        golden = torch.from_numpy(load_golden("iais", name)["in_img_pos_feat"])
        corners = golden[..., :4]
        torch.testing.assert_close(box_geometry(corners, 1.0, 1.0), golden, rtol=0, atol=1e-6)

    @given(st.lists(st.floats(0, 100), min_size=4, max_size=4), st.floats(0.1, 50))
    def test_scale_does_not_matter(self, box, scale):
        boxes = torch.tensor([box], dtype=torch.float64)
        torch.testing.assert_close(box_geometry(boxes * scale, 100 * scale, 90 * scale), box_geometry(boxes, 100, 90))


class TestReading:
    @pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
    def test_an_image(self, tmp_path, name):
        data = read_regions(write(tmp_path / name, IMAGE, "", IMAGE | {"image_id": "x", "captions": ["a tree"]}))
        assert data.captions == ["a dog", "two cats", "a tree"] and data.text_to_image.tolist() == [0, 0, 1]
        assert [list(data.texts_of(image)) for image in range(2)] == [[0, 1], [2]]
        assert data.labels == list(THINGS) and data.feature_size == 0 and len(data) == 3
        first = data.images[0]
        assert data[1] == ("two cats", first) and data.pairs([(2, 0)]) == [("a tree", first)]
        assert first.boxes.tolist() == [box[:4] for box in IMAGE["boxes"]] and first.labels.tolist() == [1, 0]
        assert first.geometry[0].tolist() == [0, 0, 0.5, 0.5, 0.5, 0.5, 0.25]
        assert data.images[1].image_id == "x" and data.images[1].origin == f"{tmp_path / name}:3"
        with pytest.raises(DataError, match=r"a.jsonl.*:1: image 7 has no features"):
            first.features()

    def test_images_without_captions_on_request(self, tmp_path):
        path = write(tmp_path / "a.jsonl", {key: value for key, value in IMAGE.items() if key != "captions"})
        assert len(read_regions(path, need_captions=False)) == 0
        with pytest.raises(DataError, match=r"a.jsonl:1: image 7 has no captions"):
            read_regions(path)

    def test_confident_regions_are_kept(self, tmp_path):
        numbers = [0.1, 0.9, 0.25, 0.15, 0.9, 0.3]
        image = unlabelled(boxes=[[n, 0, n + 1, 1] for n in range(6)], confidence=numbers)
        path = write(tmp_path / "a.jsonl", image, categories=None)
        np.save(_folder(tmp_path / "features") / "7.npy", np.arange(6.0)[:, None] * [1, 10])

        def kept(**options):
            image = read_regions(path, **options).images[0]
            assert image.features().tolist() == [[n, 10 * n] for n in image.boxes[:, 0].tolist()]
            return image.boxes[:, 0].tolist()

        assert kept(min_regions=1) == [1, 4, 5, 2]
        assert kept(min_regions=5) == [1, 4, 5, 2, 3]
        assert kept() == [1, 4, 5, 2, 3, 0]
        assert kept(min_regions=1, max_regions=2) == [1, 4]
        assert kept(min_regions=1, confidence_threshold=0.5) == [1, 4]
        write(path, {key: value for key, value in image.items() if key != "confidence"}, categories=None)
        assert kept(min_regions=1, max_regions=2) == kept(max_regions=2) == [0, 1]
        path = write(_folder(tmp_path / "labels") / "a.jsonl", IMAGE | {"confidence": [0.3, 0.4]})
        image = read_regions(path, max_regions=1, min_regions=1).images[0]
        assert image.labels.tolist() == [0] and image.boxes.tolist() == [IMAGE["boxes"][1][:4]]
        with pytest.raises(OptionError, match="min_regions must be from 1 to max_regions, got 5 and 2"):
            read_regions(path, min_regions=5, max_regions=2)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ("[", "not a JSON value"),
            ("[" * 100_000, "not a JSON value"),
            ("3", "an image is a mapping, got int"),
            ("x" * (MAX_LINE + 1), f"a line has at most {MAX_LINE} characters"),
            ({"image_id": True}, "image_id must be a whole number or a string, got True"),
            ({"image_id": ""}, "image_id must be a whole number or a string, got ''"),
            ({"width": 0}, "width must be a number above 0, got 0"),
            ({"height": "50"}, "height must be a number above 0, got '50'"),
            ({"height": float("nan")}, "height must be a number above 0, got nan"),
            ({"boxes": []}, "an image without regions"),
            ({"boxes": {}}, "an image without regions"),
            ({"boxes": [[0, 0, 5]]}, "a box is [x1, y1, x2, y2] or [x1, y1, x2, y2, label], got [0, 0, 5]"),
            ({"boxes": [[0, 0, 5, float("inf"), 1]]}, "a box is [x1, y1, x2, y2]"),
            ({"boxes": [[0, 0, 5, 5]]}, "box [0, 0, 5, 5] has no label, but there is a categories.txt"),
            ({"boxes": [[5, 0, 5, 5, 0]]}, "box [5, 0, 5, 5] has no size"),
            ({"boxes": [[0, 6, 5, 5, 0]]}, "box [0, 6, 5, 5] has no size"),
            ({"boxes": [[0, 0, 102, 5, 0]]}, "box [0, 0, 102, 5] is not inside its image of 100 x 50"),
            ({"boxes": [[-2, 0, 5, 5, 0]]}, "box [-2, 0, 5, 5] is not inside its image"),
            ({"boxes": [[0, 0, 5, 5, 8]]}, "label 8 is not one of the 8 in categories.txt"),
            ({"boxes": [[0, 0, 5, 5, 0.5]]}, "label 0.5 is not one of the 8 in categories.txt"),
            ({"captions": "a dog"}, "captions must be a list of strings"),
            ({"captions": []}, "image 7 has no captions"),
            ({"captions": ["a", " .!"]}, "a caption without words: ' .!'"),
            ({"confidence": [0.5]}, "confidence must be a list with a number for each of 2 boxes"),
            ({"confidence": [0.5, 2]}, "a confidence is a number from 0 to 1"),
            ({"image_id": "1"}, "image_id 1 is also at"),
        ],
    )
    def test_a_bad_line(self, tmp_path, change, message):
        bad = change if isinstance(change, str) else IMAGE | change
        path = write(tmp_path / "a.jsonl", IMAGE | {"image_id": 1}, bad)
        with pytest.raises(DataError) as error:
            read_regions(path)
        assert str(error.value).startswith(f"{path}:2: ") and message in str(error.value)
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize("key", ["image_id", "width", "height", "boxes"])
    def test_a_missing_key(self, tmp_path, key):
        path = write(tmp_path / "a.jsonl", {name: value for name, value in IMAGE.items() if name != key})
        with pytest.raises(DataError, match=rf"a.jsonl:1: no '{key}'"):
            read_regions(path)

    def test_bad_files(self, tmp_path):
        with pytest.raises(DataError, match=r"nowhere.jsonl: cannot be read"):
            read_regions(tmp_path / "nowhere.jsonl")
        path = write(tmp_path / "a.jsonl.gz", IMAGE)
        path.write_bytes(path.read_bytes()[:-10])
        with pytest.raises(DataError, match=r"a.jsonl.gz: damaged gzip file"):
            read_regions(path)
        with pytest.raises(DataError, match=r"b.jsonl: no image in it"):
            read_regions(write(tmp_path / "b.jsonl"))
        with pytest.raises(DataError, match=r"categories.txt: expected different class names"):
            read_regions(write(tmp_path / "c.jsonl", IMAGE, categories=["dog", "dog"]))
        with pytest.raises(DataError, match=r"categories.txt:2: a blank line; the class numbers count the lines"):
            read_regions(write(tmp_path / "c.jsonl", IMAGE, categories=["dog", "", "cat"]))
        (tmp_path / "categories.txt").unlink()
        with pytest.raises(DataError, match=r"has a label, but there is no categories.txt"):
            read_regions(write(tmp_path / "c.jsonl", IMAGE, categories=None))


def _folder(path):
    path.mkdir(exist_ok=True)
    return path


class TestFeatures:
    ARRAYS = (np.arange(6.0).reshape(2, 3), np.arange(6.0, 12.0).reshape(2, 3))

    @pytest.mark.parametrize("form", ["npy", "npz", "archive"])
    def test_forms(self, tmp_path, form):
        path = write(tmp_path / "a.jsonl", *(unlabelled(image_id=n) for n in (1, "b")), categories=None)
        arrays = dict(zip(("1", "b"), self.ARRAYS, strict=True))
        if form == "archive":
            np.savez_compressed(tmp_path / "features.npz", **arrays)
        for name, array in arrays.items() if form != "archive" else ():
            file = _folder(tmp_path / "features") / f"{name}.{form}"
            if form == "npy":
                np.save(file, array.astype(np.float16))
            else:
                np.savez(file, features=array, norm_bb=array)
        data = read_regions(path)
        assert data.feature_size == 3
        for image, array in zip(data.images, self.ARRAYS, strict=True):
            assert image.features().dtype == torch.float32
            assert image.features().tolist() == array.tolist()

    @pytest.mark.parametrize(
        ("array", "message"),
        [
            (None, "2.npy or .npz; '1.npy' is in there"),
            (np.ones((3, 3)), "a.jsonl:2: features of image 2 are float64 (3, 3), not 2 rows of"),
            (np.ones((2, 3), int), "a.jsonl:2: features of image 2 are int64 (2, 3), not"),
            (np.ones(2), "a.jsonl:2: features of image 2 are float64 (2,), not"),
            (np.ones((2, 4)), "a.jsonl:2: features of image 2 have 4 numbers, those before have 3"),
            (np.array([[{}, {}, {}]] * 2), "2.npy: not an npy of numbers"),
        ],
    )
    def test_bad_features(self, tmp_path, array, message):
        path = write(tmp_path / "a.jsonl", *(unlabelled(image_id=n) for n in (1, 2)), categories=None)
        np.save(_folder(tmp_path / "features") / "1.npy", self.ARRAYS[0])
        if array is not None:
            np.save(tmp_path / "features" / "2.npy", array, allow_pickle=True)
        with pytest.raises(DataError) as error:
            read_regions(path)
        assert message in str(error.value) and "\n" not in str(error.value)

    def test_bad_archives(self, tmp_path):
        path = write(tmp_path / "a.jsonl", unlabelled(), categories=None)
        np.savez(tmp_path / "features.npz", a=self.ARRAYS[0])
        with pytest.raises(DataError, match=r"a.jsonl:1: .*features.npz has no array '7'; 'a' is in it"):
            read_regions(path)
        for content in (b"PK\x03\x04 damaged", pickle.dumps({}), b""):
            (tmp_path / "features.npz").write_bytes(content)
            with pytest.raises(DataError, match=r"features.npz: not an npz of number arrays"):
                read_regions(path)
        (tmp_path / "features.npz").unlink()
        np.savez(_folder(tmp_path / "features") / "7.npz", other=self.ARRAYS[0])
        with pytest.raises(DataError, match=r"7.npz: no array 'features'"):
            read_regions(path)

    def test_features_in_two_places(self, tmp_path):
        path = write(tmp_path / "a.jsonl", unlabelled(), categories=None)
        np.savez(tmp_path / "features.npz", **{"7": self.ARRAYS[0]})
        _folder(tmp_path / "features")
        with pytest.raises(DataError, match=r"both features and features.npz in it; which is meant"):
            read_regions(path)

    def test_no_code_from_npy_runs(self, tmp_path):
        class Bomb:
            def __reduce__(self):
                return sys.exit, ("hacked",)

        path = write(tmp_path / "a.jsonl", unlabelled(), categories=None)
        np.save(_folder(tmp_path / "features") / "7.npy", np.array([[Bomb()]]), allow_pickle=True)
        with pytest.raises(DataError, match=r"7.npy: not an npy of numbers"):
            read_regions(path)

    def test_an_image_id_stays_in_the_folder(self, tmp_path):
        _folder(tmp_path / "features")
        np.save(tmp_path / "secret.npy", self.ARRAYS[0])
        path = write(tmp_path / "a.jsonl", unlabelled(image_id="../secret"), categories=None)
        with pytest.raises(DataError, match=r"a.jsonl:1: image_id '../secret' cannot name a feature file"):
            read_regions(path)

    @pytest.mark.parametrize("form", ["npy", "npz"])
    def test_features_are_those_of_the_file_now(self, tmp_path, form):
        """Not those of an earlier reading in this process, even where size and time of the file are equal."""

        def write_features(value):
            array = np.full((2, 3), value, dtype=np.float32)
            np.save(file, array) if form == "npy" else np.savez(file, features=array)
            os.utime(file, (1, 1))

        path = write(tmp_path / "a.jsonl", unlabelled(), categories=None)
        file = _folder(tmp_path / "features") / f"7.{form}"
        write_features(1)
        data = read_regions(path)
        before = data.digest()
        data.images[0].features().add_(1)
        assert data.images[0].features().tolist() == [[1] * 3] * 2
        write_features(2)
        assert data.images[0].features().tolist() == [[2] * 3] * 2 and data.digest() != before
        np.save(file, np.ones((1, 3))) if form == "npy" else np.savez(file, features=np.ones((1, 3)))
        with pytest.raises(DataError, match=r"features \(1, 3\) are not those of image 7 any more"):
            data.images[0].features()

    def test_a_number_that_is_not_finite(self, tmp_path):
        path = write(tmp_path / "a.jsonl", unlabelled(), categories=None)
        np.save(_folder(tmp_path / "features") / "7.npy", np.full((2, 3), np.inf))
        with pytest.raises(DataError, match=r"a.jsonl:1: a feature of image 7 is not a finite number"):
            read_regions(path).images[0].features()
        with pytest.raises(DataError, match=r"a.jsonl:1: a feature of image 7 is not a finite number"):
            read_regions(path).digest()


def of_processes(data, monkeypatch, count, damaged=-1):
    """Digest, or error, and the images that were read, in each of several processes; one finds a damaged file."""
    reads, shares = [], []
    read = Image.features

    def features(image):
        reads[-1].append(image.image_id)
        if damaged == len(reads) - 1:
            raise DataError(f"features/{image.image_id}.npy: damaged")
        return read(image)

    monkeypatch.setattr(Image, "features", features)
    processes = [SimpleNamespace(process_index=rank, num_processes=count) for rank in range(count)]
    for found in (lambda own: shares.append(pickle.loads(pickle.dumps(own[0]))) or [[]] * count, lambda own: shares):
        monkeypatch.setattr("vision_language.iais.data.gather_object", found)
        told, reads[:] = [], []
        for process in processes:
            reads.append([])
            try:
                told.append(data.digest(process))
            except (DataError, ValueError) as error:
                told.append(str(error))
    return told, reads


class TestDigest:
    @pytest.mark.parametrize("count", [1, 2, 3])
    def test_processes_share_the_reading(self, tmp_path, monkeypatch, count):
        images = [unlabelled(image_id=number) for number in range(5)]
        path = write(tmp_path / "a.jsonl", *images, categories=None)
        features = _folder(tmp_path / "features")
        for number in range(5):
            np.save(features / f"{number}.npy", np.full((2, 3), number, dtype=np.float32))
        data = read_regions(path)
        told, reads = of_processes(data, monkeypatch, count)
        assert sorted(number for own in reads for number in own) == [*range(5)] and max(map(len, reads)) == -(
            -5 // count
        )
        monkeypatch.undo()
        assert told == [data.digest()] * count
        told, reads = of_processes(data, monkeypatch, count, damaged=count - 1)
        assert told == [f"features/{count - 1}.npy: damaged"] * count, "else the others would wait"

    @pytest.mark.parametrize(
        "change",
        [
            {"captions": ["a dog", "two bats"]},
            {"captions": ["two cats", "a dog"]},
            {"image_id": 8},
            {"width": 101},
            {"boxes": [[0, 0, 50, 25, 1], [25.5, 10, 100, 50, 2]]},
            {"boxes": [IMAGE["boxes"][0]]},
        ],
        ids=str,
    )
    def test_what_a_model_sees_changes_it(self, tmp_path, change):
        before, same, after = (
            read_regions(write(tmp_path / f"{name}.jsonl", image)).digest()
            for name, image in (("a", IMAGE), ("b", IMAGE), ("c", IMAGE | change))
        )
        assert before == same != after

    def test_categories_change_it(self, tmp_path):
        digests = [
            read_regions(write(tmp_path / "a.jsonl", IMAGE, categories=names)).digest() for names in (THINGS, WORDS)
        ]
        assert digests[0] != digests[1]

    @pytest.mark.parametrize("archive", [False, True])
    def test_features_change_it(self, tmp_path, archive):
        path = write(tmp_path / "a.jsonl", unlabelled(), categories=None)
        digests = []
        for number in (0, 0, 1):
            features = np.zeros((2, 3), dtype=np.float32)
            features[-1, -1] = number  # the last of the file
            if archive:
                np.savez(tmp_path / "features.npz", **{"7": features})
            else:
                np.save(_folder(tmp_path / "features") / "7.npy", features)
            digests.append(read_regions(path).digest())
        assert digests[0] == digests[1] != digests[2]


class TestSplits:
    def test_folder(self, tmp_path):
        splits = read_splits(write_regions(tmp_path), max_regions=10)
        assert {name: len(data.images) for name, data in splits.items()} == {"train": 40, "valid": 12, "test": 12}
        assert len(splits["train"]) == 80

    def test_refused(self, tmp_path):
        with pytest.raises(OptionError, match=r"--data: .*nowhere is not a folder"):
            read_splits(tmp_path / "nowhere")
        write_regions(tmp_path)
        line = (tmp_path / "train.jsonl").read_text().splitlines()[4]
        with (tmp_path / "test.jsonl").open("a") as file:
            file.write(line)
        with pytest.raises(DataError, match=r"test.jsonl:13: image_id 5 is also at .*train.jsonl:5"):
            read_splits(tmp_path)
        (tmp_path / "valid.jsonl.gz").write_bytes(b"")
        with pytest.raises(DataError, match=r"both valid.jsonl and valid.jsonl.gz could be the valid set"):
            read_splits(tmp_path)

    def test_splits_of_different_feature_sizes(self, tmp_path):
        write_regions(tmp_path, {"train": 2, "valid": 2, "test": 1}, feature_size=3)
        rows = len(json.loads((tmp_path / "test.jsonl").read_text())["boxes"])
        np.save(tmp_path / "features" / "5.npy", np.ones((rows, 4)))
        with pytest.raises(DataError, match=r"different sizes: {'train': 3, 'valid': 3, 'test': 4}"):
            read_splits(tmp_path)

    def test_a_model_for_other_regions(self, tmp_path):
        labelled = read_splits(write_regions(tmp_path / "labels"))["train"]
        featured = read_splits(write_regions(tmp_path / "features", feature_size=3))["train"]
        labelled.check_model(tiny_model().config)
        featured.check_model(tiny_model(3).config)
        with pytest.raises(DataError, match=r"train.jsonl: no categories.txt beside it; the model reads region labels"):
            featured.check_model(tiny_model().config)
        with pytest.raises(DataError, match=r"train.jsonl: features have 3 numbers; the model reads 4"):
            featured.check_model(tiny_model(4).config)
        with pytest.raises(DataError, match=r"train.jsonl: regions have no features; the model reads 4"):
            labelled.check_model(tiny_model(4).config)
        other = tiny_model().config
        other.region_labels = other.region_labels[::-1]
        with pytest.raises(DataError, match=r"categories.txt: not the 8 of the model"):
            labelled.check_model(other)

    def test_real_data(self):
        data = read_regions(require_data("coco_val2017_regions") / "valid.jsonl.gz")
        assert len(data.images) == 500 and len(data) == 2502 and len(data.labels) == 80
        assert all(0 <= image.geometry.min() and image.geometry.max() <= 1 for image in data.images)


class TestCollator:
    @pytest.mark.parametrize("feature_size", [0, 3])
    def test_batch(self, tmp_path, feature_size):
        data = read_splits(write_regions(tmp_path, feature_size=feature_size))["train"]
        batch = next(iter(DataLoader(data, batch_size=4, collate_fn=Collator(tiny_tokenizer()))))
        key = "region_features" if feature_size else "region_labels"
        assert set(batch) == {"input_ids", "attention_mask", "region_boxes", "region_mask", key}
        for row in range(4):
            caption, image = data[row]
            ids = batch["input_ids"][row][batch["attention_mask"][row]]
            assert tiny_tokenizer().decode(ids) == f"[CLS] {caption} [SEP]"
            assert not batch["input_ids"][row][~batch["attention_mask"][row]].any()
            assert torch.equal(batch["region_boxes"][row][batch["region_mask"][row]], image.geometry)
            expected = image.features() if feature_size else image.labels
            assert torch.equal(batch[key][row][batch["region_mask"][row]], expected)
            assert not batch[key][row][~batch["region_mask"][row]].any()

    def test_long_captions_are_cut(self):
        tokenizer = tiny_tokenizer()
        batch = Collator(tokenizer, max_text_length=2).texts(["a photo of the dog", "dog"])
        assert tokenizer.batch_decode(batch["input_ids"]) == ["[CLS] a photo [SEP]", "[CLS] dog [SEP] [PAD]"]
        assert batch["attention_mask"].tolist() == [[True] * 4, [True] * 3 + [False]]
        assert Collator(tokenizer, None).texts([" ".join(WORDS * 9)])["input_ids"].shape == (1, 40)
        tokenizer.model_max_length = int(1e30)  # as of a tokenizer without a limit
        assert Collator(tokenizer, None).texts([" ".join(WORDS * 9)])["input_ids"].shape == (1, 9 * len(WORDS) + 2)
        with pytest.raises(OptionError, match="max_text_length must be at least 1, got 0"):
            Collator(tokenizer, 0)

    def test_word_pieces_are_those_of_the_tokenizer_now(self):
        tokenizer = tiny_tokenizer()
        collator = Collator(tokenizer)
        before = collator.texts(["a zebra"])["input_ids"].tolist()
        tokenizer.add_tokens(["zebra"])
        assert collator.texts(["a zebra"])["input_ids"].tolist() != before

    def test_batches_by_number_are_those_of_the_collator(self, tmp_path):
        data = read_splits(write_regions(tmp_path))["train"]
        collator = Collator(tiny_tokenizer(), max_text_length=7)
        batches = PairBatches(data, collator)
        for numbers in ([3, 0, 3], np.broadcast_to(np.array([5]), (2,)), np.arange(80)):
            wanted = collator.texts([data.captions[number] for number in numbers])
            actual = batches.texts(numbers)
            assert actual.keys() == wanted.keys()
            assert all(torch.equal(actual[name], wanted[name]) for name in wanted)

    def test_tokenizers_without_cls_are_refused(self):
        tokenizer = tiny_tokenizer()
        tokenizer.cls_token = None
        with pytest.raises(OptionError, match=r"must have the tokens \[CLS\]"):
            Collator(tokenizer)
