"""Texts, checkpoints and teachers that the tests of this folder share; nothing changes them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.vision_language.muka.texts import write_encoder, write_texts
from vision_language.muka.options import TeacherOptions
from vision_language.muka.train import train_teacher

QUICK = {"batch_size": 10, "lr": 0.01, "max_length": 16}


@dataclass(frozen=True)
class World:
    """``first`` knows cooking and garden; ``second``, of another shape and tokenizer, and ``third`` the other three."""

    data: Path
    encoder: Path
    other_encoder: Path
    first: Path
    second: Path
    third: Path


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("muka")
    data = write_texts(folder / "data")
    encoder = write_encoder(folder / "encoder")
    other_encoder = write_encoder(folder / "other_encoder", layers=1, hidden=24, extra=("zig", "zag"), seed=1)
    teachers = {"first": (encoder, "1/2"), "second": (other_encoder, "2/2"), "third": (encoder, "2/2")}
    for name, (model, part) in teachers.items():
        options = TeacherOptions(data=(str(data),), model=str(model), part=part, epochs=8, **QUICK)
        train_teacher(options, folder / name)
    return World(data, encoder, other_encoder, *(folder / name for name in teachers))
