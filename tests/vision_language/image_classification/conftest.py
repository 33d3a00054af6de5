from __future__ import annotations

import numpy as np
import pytest
from accelerate.state import AcceleratorState

from vision_language.image_classification.synthetic import SyntheticOptions, synthesize


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """A small made-up set."""
    folder = tmp_path_factory.mktemp("images")
    synthesize(SyntheticOptions(out=str(folder), images=100, noise=0.05))
    return folder


@pytest.fixture(scope="session")
def others(tmp_path_factory):
    """Images of no class of it."""
    folder = tmp_path_factory.mktemp("others")
    synthesize(SyntheticOptions(out=str(folder), images=50, unknown=True))
    return folder


@pytest.fixture(scope="session")
def colours(tmp_path_factory):
    """Coloured images of two classes, 16x16."""
    folder, generator = tmp_path_factory.mktemp("colours"), np.random.default_rng(0)
    for split, count in (("train", 24), ("test", 8)):
        labels = np.arange(count) % 2
        pixels = generator.integers(0, 200, (count, 16, 16, 3), dtype=np.uint8)
        pixels[labels == 1, :, :, 0] += 55
        np.savez(folder / f"{split}.npz", x=pixels, y=labels)
    return folder


@pytest.fixture(autouse=True)
def _any_number_format():
    """accelerate keeps the first one for the whole process."""
    AcceleratorState._reset_state(reset_partial_state=True)
