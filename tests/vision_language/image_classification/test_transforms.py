from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vision_language.image_classification.transforms import (
    AUGMENTATIONS,
    Transform,
    centre_crop,
    pad_crop,
    random_resized_crop,
    resize,
    resized_for,
)


def noise(height: int, width: int, channels: int) -> np.ndarray:
    shape = (height, width) if channels == 1 else (height, width, channels)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


sides = st.integers(3, 40)


@given(height=sides, width=sides, channels=st.sampled_from([1, 3]), size=st.integers(4, 24), seed=st.integers(0, 99))
@pytest.mark.parametrize("augment", AUGMENTATIONS)
def test_any_image_comes_out_in_one_size(augment, height, width, channels, size, seed):
    image, transform = noise(height, width, channels), Transform(size, augment, resized_for(augment, size))
    shape = (size, size) if channels == 1 else (size, size, 3)
    first = transform.train(image, np.random.default_rng(seed))
    assert first.shape == transform.test(image).shape == shape and first.dtype == np.uint8
    assert np.array_equal(first, transform.train(image, np.random.default_rng(seed)))
    assert np.array_equal(transform.test(image), transform.test(image))


def test_without_augmentation_nothing_changes():
    image = noise(8, 8, 1)
    transform = Transform(8)
    assert np.array_equal(transform.train(image, np.random.default_rng(0)), image)
    assert np.array_equal(transform.test(image), image)


def test_resizing_is_pillows():
    image = noise(9, 14, 3)
    expected = np.asarray(Image.fromarray(image).resize((5, 7), Image.Resampling.BILINEAR))
    assert np.array_equal(resize(image, (7, 5)), expected)


def test_test_images_of_imagenet_are_scaled_to_256_and_cropped_to_224():
    image = noise(300, 400, 1)
    scaled = np.asarray(Image.fromarray(image).resize((341, 256), Image.Resampling.BILINEAR))
    assert resized_for("resized-crop", 224) == 256 and resized_for("pad-crop", 32) == resized_for("none", 32) == 0
    assert np.array_equal(Transform(224, resized=256).test(image), scaled[16:240, 58:282])
    assert np.array_equal(Transform(224, resized=(256, 341)).test(image), scaled[16:240, 58:282])


def test_a_centre_crop_is_in_the_middle():
    assert centre_crop(np.arange(25).reshape(5, 5), 3).tolist() == [[6, 7, 8], [11, 12, 13], [16, 17, 18]]


def test_a_padded_crop_is_a_shift_and_every_shift_occurs():
    image, places = noise(6, 6, 1), set()
    padded = np.pad(image, 2)
    crops = {(t, left): padded[t : t + 6, left : left + 6].tobytes() for t in range(5) for left in range(5)}
    for seed in range(300):
        crop = pad_crop(image, 2, np.random.default_rng(seed)).tobytes()
        places.add(next(place for place, content in crops.items() if content == crop))
    assert places == set(crops)


def test_half_of_the_images_are_mirrored():
    image, transform = np.tile(np.arange(32, dtype=np.uint8), (32, 1)), Transform(32, "pad-crop")
    rows = [transform.train(image, np.random.default_rng(seed))[16] for seed in range(100)]
    assert 30 <= sum(row[10] > row[20] for row in rows) <= 70


def test_a_part_of_an_impossible_shape_is_the_largest_in_the_middle():
    image = noise(2, 60, 1)
    parts = [random_resized_crop(image, 4, np.random.default_rng(seed)) for seed in range(50)]
    assert any(np.array_equal(part, resize(image[:, 28:31], (4, 4))) for part in parts)
