"""What is prepared is what the source holds."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from fairseq.data import Dictionary
from fairseq.data.indexed_dataset import MMapIndexedDataset

import fairseq_ext.captions.prepare as preparation_module
from fairseq_ext import cli
from fairseq_ext.captions.prepare import PrepareOptions, prepare
from fairseq_ext.captions.sources import region_source
from fairseq_ext.captions.store import KINDS, Preparation, Split
from fairseq_ext.captions.vocabulary import Vocabulary
from fairseq_ext.captions.writer import SplitWriter
from fairseq_ext.training.errors import InputError
from fairseq_ext.training.options import SPLITS
from tests.captions.images import COLUMNS, ROWS, SIZE, THINGS, prepared, write_captioned
from tests.helpers import require_data
from tests.regions.files import (
    FEATURES,
    IDS,
    coco_captions_file,
    detectron_folder,
    grids_archive,
    grids_folder,
    instances_file,
    karpathy_file,
    tsv,
    uniter_folder,
    vectors_folder,
)


@pytest.mark.parametrize("kind", KINDS)
def test_a_prepared_split_is_its_source(tmp_path, kind):
    data = prepared(tmp_path, kind)
    preparation = Preparation.load(data)
    assert (preparation.kind, preparation.feature_dim) == (kind, 0 if kind == "classes" else SIZE)
    assert preparation.num_classes == (len(THINGS) if kind == "classes" else 0)
    assert preparation.grid == ((ROWS, COLUMNS) if kind == "grid" else ())
    dictionary = Dictionary.load(str(data / "dict.txt"))
    for name in ("train", "valid", "test"):
        lines = [json.loads(line) for line in (tmp_path / "source" / f"{name}.jsonl").read_text().splitlines()]
        split = Split(data, name, preparation)
        assert split.image_ids.tolist() == [str(line["image_id"]) for line in lines]
        assert split.references == [line["captions"] for line in lines]
        assert split.sizes.tolist() == [[120, 80]] * len(lines)
        targets = MMapIndexedDataset(str(data / f"{name}.captions"))
        assert len(targets) == split.caption_offsets[-1] == len(lines) * (2 if name == "train" else 1)
        for image, line in enumerate(lines):
            rows = split.rows(image)
            if kind == "grid":
                assert split.boxes[rows][[0, -1]].tolist() == [[0, 0, 40, 40], [80, 40, 120, 80]]
            else:
                assert split.boxes[rows].tolist() == [box[:4] for box in line["boxes"]]
            if kind == "classes":
                assert split.labels[rows].tolist() == [box[4] for box in line["boxes"]]
            if kind == "regions":
                features = np.load(tmp_path / "source" / "features" / f"{line['image_id']}.npy")
                assert (split.features[rows] == features.astype(np.float16)).all()
            words = dictionary.string(targets[int(split.caption_offsets[image])])
            assert words == line["captions"][0].rstrip(".").lower()


def options(data, source, **more) -> PrepareOptions:
    given = {name: tuple(map(str, more.pop(name, ()))) for name in ("features", "instances")}
    return PrepareOptions(source=tuple(map(str, source)), data=str(data), **{"min_count": 1} | given | more)


PUBLISHED = {
    "bottom-up tsv": (tsv, "a.tsv", "regions"),
    "bottom-up-attention.pytorch": (detectron_folder, "npz", "regions"),
    "UNITER": (uniter_folder, "npz", "regions"),
    "ImageCaptioning.pytorch": (vectors_folder, "cocobu", "regions"),
    "npy of grids": (grids_folder, "npy", "grid"),
    "npz of grids": (grids_archive, "grids", "grid"),
}
INSIDE = np.array([[1, 2, 7, 9], [0, 0, 50, 40], [10, 5, 100.5, 80]], dtype=np.float32)
"""The last box reaches out of its image by rounding."""


@pytest.mark.parametrize("form", PUBLISHED)
def test_published_forms(tmp_path, form, monkeypatch):
    monkeypatch.setattr("tests.regions.files.BOXES", INSIDE)
    write, name, kind = PUBLISHED[form]
    features, grid = write(tmp_path / name), {"grid": (1, 3)} if kind == "grid" else {}
    sources = [coco_captions_file(tmp_path)], {"split_file": str(karpathy_file(tmp_path, "A dog."))}
    record = prepare(options(tmp_path / "data", sources[0], features=[features], **sources[1], **grid))
    assert (record["kind"], record["images"]) == (kind, {"train": 2, "valid": 1, "test": 1})
    preparation = Preparation.load(tmp_path / "data")
    split = Split(tmp_path / "data", "train", preparation)
    place = split.image_ids.tolist().index("22")
    assert sorted(split.image_ids) == ["1", "22"] and split.references[place] == ["cat 22", "dog 22"]
    assert split.features[split.rows(place)].tolist() == (FEATURES + 22).astype(np.float16).tolist()
    if kind == "regions":
        boxes = split.boxes[split.rows(place)] / np.tile(split.sizes[place], 2)
        assert boxes == pytest.approx(INSIDE.clip(0, 100) / [100, 80, 100, 80], abs=1e-3)
    else:
        assert (split.boxes[split.rows(place)] / np.tile(split.sizes[place], 2))[:, 0] == pytest.approx(
            [0, 1 / 3, 2 / 3]
        )


def test_captions_with_human_boxes(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.regions.files.BOXES", INSIDE)
    karpathy, instances = karpathy_file(tmp_path, "A dog."), instances_file(tmp_path)
    with pytest.raises(InputError, match="1 images without captions: 55555; --skip-missing leaves them out"):
        prepare(options(tmp_path / "data", [karpathy], instances=[instances]))
    record = prepare(options(tmp_path / "data", [karpathy], instances=[instances], skip_missing=True))
    assert record["kind"] == "classes" and record["left_out"]["images without captions"] == 1
    split = Split(tmp_path / "data", "train", Preparation.load(tmp_path / "data"))
    assert split.image_ids.tolist() == ["1", "22"] and split.labels.tolist() == [0, 1, 0] * 2
    assert (tmp_path / "data" / "categories.txt").read_text() == "car\ntoothbrush\n"


def test_splits_are_drawn_where_there_are_none(tmp_path):
    captions, features = coco_captions_file(tmp_path), grids_archive(tmp_path / "grids")
    draw = {"features": [features], "grid": (1, 3), "valid": 1, "test": 1}
    names = []
    for seed in (0, 0, 1, 2):
        prepare(options(tmp_path / f"data{len(names)}", [captions], seed=seed, **draw))
        preparation = Preparation.load(tmp_path / f"data{len(names)}")
        names.append([Split(tmp_path / f"data{len(names)}", name, preparation).image_ids.tolist() for name in SPLITS])
    assert names[0] == names[1] and (names[0] != names[2] or names[0] != names[3])
    assert sorted(key for part in names[0] for key in part) == sorted(map(str, IDS)) and [
        len(part) for part in names[0]
    ] == [2, 1, 1]
    with pytest.raises(InputError, match="--valid and --test must leave some of the 4 images, got 2 and 2"):
        prepare(options(tmp_path / "data", [captions], **draw | {"valid": 2, "test": 2}))


def test_captions_that_are_skipped_are_told_and_counted(tmp_path, capsys):
    captions, features = tmp_path / "results.token", grids_archive(tmp_path / "grids")
    lines = [f"{image}.jpg#{number}\tA dog .\n" for image in IDS for number in range(2)]
    captions.write_text("".join([*lines, "4444.jpg A cat .\n"]))
    words = ["captions", "prepare", captions, tmp_path / "data", "--features", features, "--grid", 1, 3]
    # Not prepare(): fairseq-ext keeps everything that is logged from the screen.
    assert cli.main([*map(str, words), "--valid", "1", "--test", "1", "--min-count", "1", "--quiet"]) == 0
    printed = capsys.readouterr()
    assert printed.err == f"warning: skipped: {captions}:9: a line is IMAGE.jpg#NUMBER TAB caption\n"
    assert json.loads(printed.out)["left_out"]["broken lines of captions"] == 1


@pytest.mark.parametrize("skip", [False, True])
def test_a_tsv_says_at_its_end_whose_images_it_lacks(tmp_path, monkeypatch, skip):
    monkeypatch.setattr("tests.regions.files.BOXES", INSIDE)
    features = tsv(tmp_path / "a.tsv", ids=(*IDS, 99))
    captions = coco_captions_file(tmp_path)
    given = options(tmp_path / "data", [captions], features=[features], valid=1, test=1, skip_missing=skip)
    if skip:
        assert prepare(given)["left_out"] == {"images without captions": 1, "captions without image": 0}
    else:
        with pytest.raises(InputError, match="1 images without captions: 99; --skip-missing leaves them out"):
            prepare(given)
        assert not (tmp_path / "data").exists()


def test_more_regions_than_a_model_reads_are_cut_and_counted(tmp_path):
    source = write_captioned(tmp_path / "source", "regions", images=4)
    lines = [json.loads(line) for line in (source / "train.jsonl").read_text().splitlines()]
    lines[0] |= {"boxes": [[n, 0, n + 9, 9] for n in range(5)], "confidence": [0.5, 0.9, 0.1, 0.9, 0.6]}
    lines[1] |= {"boxes": lines[0]["boxes"]}
    for line in lines[:2]:
        np.save(source / "features" / f"{line['image_id']}.npy", np.arange(30, dtype=np.float32).reshape(5, 6))
    (source / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    record = prepare(options(tmp_path / "data", [source], max_regions=3))
    assert record["cut"]["images"] == 2 and record["cut"]["regions"] == 4
    preparation = Preparation.load(tmp_path / "data")
    split = Split(tmp_path / "data", "train", preparation)
    assert preparation.max_regions == 3
    assert split.boxes[split.rows(0), 0].tolist() == [1, 3, 4] and split.boxes[split.rows(1), 0].tolist() == [0, 1, 2]
    assert split.features[split.rows(0), 0].tolist() == [6, 18, 24]


def test_a_second_run_does_nothing_and_another_one_is_refused(tmp_path, monkeypatch):
    source, data = write_captioned(tmp_path / "source", "classes", images=4), tmp_path / "data"
    first = prepare(options(data, [source]))
    before = {path: path.stat().st_mtime_ns for path in data.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(preparation_module, "region_source", None)
        assert prepare(options(data, [source])) == first
    assert {path: path.stat().st_mtime_ns for path in data.iterdir()} == before
    for change in ({"min_count": 2}, {"max_regions": 2}):
        with pytest.raises(InputError, match=r"DATA: .*data is of other files or options"):
            prepare(options(data, [source], **change))
    (source / "test.jsonl").write_text((source / "test.jsonl").read_text().replace("There is", "Here is"))
    with pytest.raises(InputError, match="is of other files or options"):
        prepare(options(data, [source]))


@pytest.mark.parametrize("kind", [*KINDS, "vectors and boxes"])
@pytest.mark.parametrize("whole", [True, False])
def test_every_file_that_is_read_counts(tmp_path, kind, whole):
    if kind in KINDS:
        folder = write_captioned(tmp_path / "source", kind, images=2)
        given = options("data", [folder if whole else folder / "train.jsonl"])
        files = [path for path in folder.rglob("*") if path.is_file() and (whole or path.stem not in ("valid", "test"))]
    else:
        vectors, captions, splits = (
            vectors_folder(tmp_path / "a"),
            coco_captions_file(tmp_path),
            karpathy_file(tmp_path),
        )
        given = options("data", [captions], features=[vectors], split_file=str(splits))
        files = [captions, splits, *vectors.iterdir(), *(tmp_path / "a_box").iterdir()]
    seen = {given.fingerprint()}
    for file in files:
        file.write_bytes(file.read_bytes() + b" ")
        assert given.fingerprint() not in seen, file
        seen.add(given.fingerprint())


def test_a_killed_preparation_leaves_nothing_and_the_next_one_is_whole(tmp_path, monkeypatch):
    source, data = write_captioned(tmp_path / "source", "regions", images=4), tmp_path / "data"
    prepare(options(tmp_path / "whole", [source]))
    add, added = SplitWriter.add, []

    def killed(self, *image):
        added.append(image)
        if len(added) == 3:
            os._exit(9)
        add(self, *image)

    if (child := os.fork()) == 0:
        monkeypatch.setattr(SplitWriter, "add", killed)
        prepare(options(data, [source]))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert not data.exists() and (tmp_path / ".data.tmp").is_dir()
    prepare(options(data, [source]))
    assert not (tmp_path / ".data.tmp").exists()
    for path in (tmp_path / "whole").iterdir():
        if path.name not in ("prepare.json", "checksums.json"):  # which have the name of the folder
            assert (data / path.name).read_bytes() == path.read_bytes(), path.name


def test_captions_in_pieces_of_one_language(tmp_path):
    source, data = write_captioned(tmp_path / "source", "classes"), tmp_path / "data"
    for split in SPLITS:
        lines = [json.loads(line) for line in (source / f"{split}.jsonl").read_text().splitlines()]
        for line in lines:
            line["captions"] = {"en": line["captions"], "de": f"Ein {line['captions'][0]}"}
        del lines[-1]["captions"]["de"]
        (source / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(InputError, match="3 images without captions: 12, 16, 20; --skip-missing"):
        prepare(options(data, [source], language="de", sentencepiece=40, min_count=5))
    with pytest.raises(InputError, match=r"no caption in 'fr'; .*train.jsonl:1 has de, en"):
        prepare(options(data, [source], language="fr"))
    record = prepare(options(data, [source], language="de", sentencepiece=40, min_count=5, skip_missing=True))
    assert record["images"] == {"train": 11, "valid": 3, "test": 3} and record["coverage"] == 1
    preparation = Preparation.load(data)
    assert (preparation.tokenizer, preparation.language) == ("sentencepiece", "de")
    dictionary = Dictionary.load(str(data / "dict.txt"))
    targets = MMapIndexedDataset(str(data / "test.captions"))
    reference = Split(data, "test", preparation).references[0][0]
    assert dictionary.string(targets[0], "sentencepiece") == reference.rstrip(".").lower() and "Ein There" in reference


def test_coco_has_the_words_that_are_frequent_in_training(tmp_path):
    source = region_source(require_data("coco_val2017_regions"))
    train = [text for key, texts in source.captions.items() if source.split_of[key] == "train" for text in texts]
    vocabulary = Vocabulary(train, 5, 0, tmp_path)
    assert len(train) == 19771 and abs(vocabulary.size - 2057) < 10
    assert vocabulary.coverage == pytest.approx(0.964, abs=1e-3)
