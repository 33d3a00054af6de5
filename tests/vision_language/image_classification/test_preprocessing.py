"""The preprocessor's file: what is written is read back, and what others write is done or refused by name."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from fairseq_ext.training.errors import InputError
from vision_language.image_classification.preprocessing import Preprocessing

GREY, COLOURS = SimpleNamespace(num_channels=1), SimpleNamespace(num_channels=3, image_size=32)
SQUARE = {"height": 224, "width": 224}


def read(folder, content, config=GREY) -> Preprocessing:
    (folder / "preprocessor_config.json").write_text(json.dumps(content))
    return Preprocessing.read(folder, config)


@pytest.mark.parametrize("resized", [0, 32, (32, 40)])
def test_what_is_written_is_read_back(tmp_path, resized):
    own = Preprocessing((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 28, resized)
    own.save_pretrained(tmp_path)
    assert Preprocessing.read(tmp_path, COLOURS) == own
    content = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert content["do_center_crop"] == bool(resized) and content["crop_size"] == {"height": 28, "width": 28}


def test_without_a_file_nothing_is_normalised(tmp_path):
    assert Preprocessing.read(tmp_path, COLOURS) == Preprocessing((0.0,) * 3, (1.0,) * 3, 32)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"size": 30}, (0.0, 1.0, 30, 0)),
        ({"size": {"shortest_edge": 30}}, (0.0, 1.0, 30, 0)),
        ({"image_mean": [0.5], "image_std": [0.25], "size": SQUARE}, (0.5, 0.25, 224, 0)),
        ({"image_mean": [0.5], "image_std": [0.25], "do_normalize": False, "size": SQUARE}, (0.0, 1.0, 224, 0)),
        ({"do_center_crop": True, "size": {"shortest_edge": 256}, "crop_size": SQUARE}, (0.0, 1.0, 224, 256)),
        ({"do_center_crop": True, "size": 256, "crop_size": 224}, (0.0, 1.0, 224, 256)),
        ({"do_center_crop": False, "size": {"shortest_edge": 256}, "crop_size": SQUARE}, (0.0, 1.0, 256, 0)),
        ({"do_center_crop": True, "size": {"height": 240, "width": 256}, "crop_size": SQUARE}, (0, 1, 224, (240, 256))),
        ({"size": {"shortest_edge": 224}, "crop_pct": 0.875}, (0.0, 1.0, 224, 256)),
        ({"size": {"shortest_edge": 384}, "crop_pct": 0.875}, (0.0, 1.0, 384, 0)),
        ({"size": {**SQUARE, "longest_edge": None}, "crop_pct": None, "do_flip_channel_order": False}, (0, 1, 224, 0)),
        ({"size": 8, "image_mean": [51], "image_std": [25.5], "do_rescale": False}, (0.2, 0.1, 8, 0)),
        ({"size": 8, "image_mean": [1], "image_std": [1], "rescale_factor": 1 / 127.5}, (0.5, 0.5, 8, 0)),
    ],
)
def test_fields_of_hugging_face_are_done(tmp_path, content, expected):
    found = read(tmp_path, content)
    assert (*found.mean, *found.std) == pytest.approx(expected[:2]) and (found.size, found.resized) == expected[2:]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1], "expected names and values"),
        ({"do_flip_channel_order": True}, "do_flip_channel_order is not done here"),
        ({"rescale_offset": True}, "rescale_offset is not done here"),
        ({"size": {"height": 224, "width": 192}}, "images must be as high as wide, got 224 x 192"),
        ({"size": {"shortest_edge": 480, "longest_edge": 640}}, "size must be height and width, or shortest_edge"),
        ({"size": {"height": 224}}, "size must be height and width, or shortest_edge, above 0, got"),
        ({"size": "small"}, "size must be height and width, or shortest_edge, above 0, got small"),
        ({"size": 0}, "size must be height and width"),
        ({"size": 256, "do_center_crop": True, "crop_size": {"height": 224, "width": 192}}, "as wide, got 224 x 192"),
        ({"size": 200, "do_center_crop": True, "crop_size": 224}, "crop_size 224 is more than size 200"),
        ({"size": 224, "crop_pct": 2}, "crop_pct must be above 0 and at most 1, got 2"),
        ({"size": 8, "image_mean": 0.5}, "mean, deviation and rescale_factor must be numbers for 1 channels"),
        ({"size": 8, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}, "mean, deviation and rescale_factor"),
        ({"size": 8, "image_std": [0]}, "mean, deviation and rescale_factor"),
        ({"size": 8, "rescale_factor": "1/255"}, "mean, deviation and rescale_factor"),
    ],
)
def test_what_is_not_done_is_refused(tmp_path, content, message):
    with pytest.raises(InputError) as refusal:
        read(tmp_path, content)
    assert str(refusal.value).startswith(f"{tmp_path / 'preprocessor_config.json'}: ") and message in str(refusal.value)


def test_a_crop_of_another_size_is_as_large_a_part():
    assert Preprocessing((0.0,), (1.0,), 224, 256).of_size(112) == Preprocessing((0.0,), (1.0,), 112, 128)
    assert Preprocessing((0.0,), (1.0,), 224, (256, 512)).of_size(112).resized == (128, 256)
    assert Preprocessing((0.0,), (1.0,), 224).of_size(112).resized == 0
