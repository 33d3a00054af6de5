"""The preprocessor's file: what is written is read back, and what others write is done or refused by name."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from transformers.models.auto.image_processing_auto import AutoImageProcessor  # the other name asks for torchvision

from fairseq_ext.training.errors import InputError
from vision_language.image_classification.preprocessing import Preprocessing

GREY, COLOURS = SimpleNamespace(num_channels=1), SimpleNamespace(num_channels=3, image_size=32)
SQUARE = {"height": 224, "width": 224}


def read(folder, content, config=GREY) -> Preprocessing:
    (folder / "preprocessor_config.json").write_text(json.dumps(content))
    return Preprocessing.read(folder, config)


@pytest.mark.parametrize("resized", [0, 32, (32, 40)])
def test_what_is_written_is_read_back(tmp_path, resized):
    own = Preprocessing((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 28, resized, 3)
    own.save_pretrained(tmp_path)
    assert Preprocessing.read(tmp_path, COLOURS) == own
    content = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert content["do_center_crop"] == bool(resized) and content["crop_size"] == {"height": 28, "width": 28}


def test_without_a_file_nothing_is_normalised(tmp_path):
    assert Preprocessing.read(tmp_path, COLOURS) == Preprocessing((0.0,) * 3, (1.0,) * 3, 32)


PLAIN = {"size": SQUARE, "do_normalize": False}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"size": 30}, (0.0, 1.0, 30, 0)),
        ({"do_normalize": True, "image_mean": [0.5], "image_std": [0.25]}, (0.5, 0.25, 224, 0)),
        ({"image_mean": [0.5], "image_std": [0.25]}, (0.0, 1.0, 224, 0)),
        ({"do_center_crop": True, "size": {"shortest_edge": 256}, "crop_size": SQUARE}, (0.0, 1.0, 224, 256)),
        ({"do_center_crop": True, "size": 256, "crop_size": 224}, (0.0, 1.0, 224, (256, 256))),
        ({"do_center_crop": False, "size": 256, "crop_size": SQUARE}, (0.0, 1.0, 256, 0)),
        ({"do_center_crop": True, "size": {"height": 240, "width": 256}, "crop_size": SQUARE}, (0, 1, 224, (240, 256))),
        ({"size": {**SQUARE, "longest_edge": None}, "crop_pct": None, "do_flip_channel_order": False}, (0, 1, 224, 0)),
        ({"do_normalize": True, "image_mean": [51], "image_std": [25.5], "do_rescale": False}, (0.2, 0.1, 224, 0)),
        ({"do_normalize": True, "image_mean": [1], "image_std": [1], "rescale_factor": 1 / 127.5}, (0.5, 0.5, 224, 0)),
    ],
)
def test_fields_of_hugging_face_are_done(tmp_path, content, expected):
    found = read(tmp_path, {**PLAIN, **content})
    assert (*found.mean, *found.std) == pytest.approx(expected[:2]) and (found.size, found.resized) == expected[2:]


STATISTICS = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.25, 0.5]}


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("ViTFeatureExtractor", {"size": 24}),
        *(("ViTImageProcessorFast", {"size": {"height": 24, "width": 24}, "resample": number}) for number in range(6)),
        ("ViTImageProcessor", {"size": 24, "do_normalize": False}),
        ("ViTImageProcessor", {"size": 24, "do_rescale": False}),
        ("ViTImageProcessor", {"do_center_crop": True, "size": {"shortest_edge": 27}, "crop_size": 24}),
        ("BeitImageProcessor", {"size": 24, "resample": 3, "do_center_crop": False, "do_reduce_labels": False}),
        ("BitImageProcessor", {"size": 27, "crop_size": 24}),
        ("CLIPImageProcessor", {"size": {"height": 30, "width": 27}, "crop_size": 24, "do_convert_rgb": True}),
        ("ConvNextFeatureExtractor", {"size": 24, "resample": 3}),
        ("ConvNextImageProcessor", {"size": {"shortest_edge": 24}, "crop_pct": 0.7, "resample": 2}),
        ("ConvNextImageProcessor", {"size": {"shortest_edge": 384}, "resample": 3}),
        ("DeiTFeatureExtractor", {"size": 27, "crop_size": 24}),
        ("EfficientNetImageProcessor", {"size": 24, "resample": 0, "do_center_crop": False}),
        (
            "EfficientNetImageProcessor",
            {"size": 24, "resample": 3, "do_center_crop": False, "rescale_factor": 1 / 127.5, "rescale_offset": True},
        ),
        (
            "EfficientNetImageProcessor",
            {"size": 24, "resample": 3, "do_center_crop": False, "do_normalize": False, "do_rescale": False},
        ),
        ("LevitImageProcessor", {"size": {"shortest_edge": 24}, "crop_size": 24, "resample": 3}),
        ("LevitImageProcessor", {"size": {"height": 30, "width": 26}, "crop_size": 24, "resample": 3}),
        ("MobileNetV1ImageProcessor", {"size": 27, "crop_size": 24}),
        ("MobileNetV2ImageProcessor", {"size": {"shortest_edge": 28}, "crop_size": 24}),
        (
            "MobileViTImageProcessor",
            {"size": 28, "crop_size": 24, "resample": 2, "do_center_crop": True, "do_flip_channel_order": False},
        ),
        ("PoolFormerImageProcessor", {"size": {"shortest_edge": 24}, "crop_size": 24, "resample": 3}),
        ("PoolFormerImageProcessor", {"size": {"height": 24, "width": 24}, "crop_size": 20, "resample": 3}),
        ("PvtImageProcessor", {"size": 24, "resample": 3}),
        ("SiglipImageProcessor", {"size": {"height": 24, "width": 24}, "do_convert_rgb": True}),
    ],
)
def test_pixels_are_those_of_hugging_face(tmp_path, kind, content):
    """Whatever its file leaves out; of an image whose rests are odd, too."""
    field = "feature_extractor_type" if kind.endswith("FeatureExtractor") else "image_processor_type"
    found = read(tmp_path, {field: kind, **STATISTICS, **content}, COLOURS)
    same_as_hugging_face(tmp_path, found)


@pytest.mark.parametrize("preprocessing", [(24, 0, 2), (24, 27, 2), (24, (30, 27), 3)])
@pytest.mark.parametrize("channels", [1, 3])
def test_hugging_face_does_what_is_written(tmp_path, preprocessing, channels):
    own = Preprocessing((0.1, 0.2, 0.3)[:channels], (0.4, 0.5, 0.6)[:channels], *preprocessing)
    own.save_pretrained(tmp_path)
    assert Preprocessing.read(tmp_path, SimpleNamespace(num_channels=channels)) == own
    same_as_hugging_face(tmp_path, own)


def same_as_hugging_face(folder, preprocessing):
    channels = len(preprocessing.mean)
    noise = np.random.default_rng(0).integers(0, 256, (9, 14, 3)[: 2 + (channels == 3)], dtype=np.uint8)
    image = Image.fromarray(noise).resize((58, 37), Image.Resampling.BICUBIC)
    expected = AutoImageProcessor.from_pretrained(folder, backend="pil")(image, return_tensors="np")["pixel_values"][0]
    pixels = preprocessing.transform().test(np.asarray(image)).reshape(*expected.shape[1:], channels) / 255
    found = (pixels - preprocessing.mean) / preprocessing.std
    assert np.allclose(found.transpose(2, 0, 1), expected, rtol=1e-5, atol=1e-5)


CROPS = {"do_center_crop": True, "crop_size": SQUARE}
CONVNEXT = {"image_processor_type": "ConvNextImageProcessor", "resample": 3, "size": 224}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"do_flip_channel_order": True}, "do_flip_channel_order is not done here for images of ViT: it may be false"),
        ({"rescale_offset": True}, "rescale_offset is not done here for images of ViT: it may be false, got True"),
        ({"include_top": True}, "include_top is not done here for images of ViT"),
        ({"crop_pct": 0.9}, "crop_pct is not done here for images of ViT: it may be false, got 0.9"),
        ({"do_pad": True}, "do_pad is not done here"),
        ({"do_resize": False}, "do_resize must be true, got false"),
        ({"do_resize": 1}, "do_resize must be true or false, got 1"),
        ({"do_mirror": True}, "do_mirror is not done here"),
        ({"image_processor_type": "PerceiverImageProcessor"}, "image_processor_type 'PerceiverImageProcessor' is not"),
        ({"feature_extractor_type": "ImageGPTFeatureExtractor"}, "feature_extractor_type 'ImageGPTFeatureExtractor'"),
        ({"image_processor_type": 3}, "image_processor_type 3 is not done here, only those of ViT, Beit"),
        ({"image_processor_type": "MobileViTImageProcessor", "resample": 2, **CROPS}, "do_flip_channel_order is not"),
        ({"image_processor_type": "PvtImageProcessor"}, "lacks resample"),
        ({"image_processor_type": "BeitImageProcessor", "resample": 3}, "lacks do_center_crop"),
        ({"image_processor_type": "SiglipImageProcessor", "size": 224}, "size must be height and width, or shortest"),
        ({**CONVNEXT, "size": SQUARE}, "ConvNextImageProcessor has a shortest_edge and no other crop, got size 224"),
        ({**CONVNEXT, **CROPS}, "ConvNextImageProcessor has a shortest_edge and no other crop, got do_center_crop"),
        ({**CONVNEXT, "crop_pct": 2}, "crop_pct must be above 0 and at most 1, got 2"),
        ({"size": None}, "lacks size"),
        ({"do_center_crop": True}, "lacks crop_size"),
        ({"do_normalize": True}, "lacks image_mean"),
        ({"resample": 9}, "resample must be one of 0 (nearest), 1 (lanczos), 2 (bilinear), 3 (bicubic), 4 (box), 5"),
        ({"resample": "bicubic"}, "5 (hamming), "),
        ({"size": {"shortest_edge": 224}}, "do_center_crop must be true with size {'shortest_edge': 224}"),
        ({"size": {"height": 224, "width": 192}}, "images must be as high as wide, got 224 x 192"),
        ({"size": {"shortest_edge": 480, "longest_edge": 640}}, "size must be height and width, or shortest_edge"),
        ({"size": {"height": 224}}, "size must be height and width, or shortest_edge, above 0, got"),
        ({"size": "small"}, "size must be height and width, or shortest_edge, above 0, got small"),
        ({"size": 0}, "size must be height and width"),
        ({"size": 256, "do_center_crop": True, "crop_size": {"height": 224, "width": 192}}, "as wide, got 224 x 192"),
        ({"size": 200, "do_center_crop": True, "crop_size": 224}, "crop_size 224 is more than size 200"),
        ({"image_mean": 0.5}, "mean, deviation and rescale_factor must be numbers for 1 channels"),
        ({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}, "mean, deviation and rescale_factor"),
        ({"image_std": [0]}, "mean, deviation and rescale_factor"),
        ({"rescale_factor": "1/255"}, "mean, deviation and rescale_factor"),
    ],
)
def test_what_is_not_done_is_refused(tmp_path, content, message):
    with pytest.raises(InputError) as refusal:
        read(tmp_path, {**PLAIN, **content})
    assert str(refusal.value).startswith(f"{tmp_path / 'preprocessor_config.json'}: ") and message in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_file_holds_names_and_values(tmp_path):
    with pytest.raises(InputError, match="expected names and values"):
        read(tmp_path, [1])


def test_a_crop_of_another_size_is_as_large_a_part():
    assert Preprocessing((0.0,), (1.0,), 224, 256).of_size(112) == Preprocessing((0.0,), (1.0,), 112, 128)
    assert Preprocessing((0.0,), (1.0,), 224, (256, 512)).of_size(112).resized == (128, 256)
    assert Preprocessing((0.0,), (1.0,), 224).of_size(112).resized == 0
