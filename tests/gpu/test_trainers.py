"""Every trainer of ``graph`` and ``vision_language`` on the device: it learns, and says in its results where it ran."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fairseq_ext.training.files import read_json
from tests.gpu.devices import Device

pytestmark = pytest.mark.gpu

MIXED = ("no", "fp16", "bf16")


@pytest.fixture(autouse=True)
def one_format() -> Iterator[None]:
    """A process of accelerate's knows one device and one number format."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def assert_learned(out: Path, device: Device) -> None:
    runs = read_json(out / "results.json")["runs"].values()
    for run in runs:
        assert run["environment"].get("gpu") == (None if device.dry_run else torch.cuda.get_device_name())
        numbers = [value for value in run.values() if isinstance(value, float)]
        assert numbers and all(map(math.isfinite, numbers))
    assert runs


def train(system: str, words: list[str], out: Path, device: Device) -> None:
    importlib.import_module(f"{system}.__main__").main([*words, "--out", str(out), "--device", device.name])
    assert_learned(out, device)


def test_renode(tmp_path: Path, device: Device) -> None:
    pytest.importorskip("torch_geometric")
    words = "train --dataset KarateClub --train-each 2 --valid-each 1 --hidden-size 4 --splits 1 --inits 1 --epochs 15"
    train("graph.renode", words.split(), tmp_path, device)


def test_renode_on_large_graphs(tmp_path: Path, device: Device) -> None:
    pytest.importorskip("numba")
    from tests.graph.renode.large_graphs import a_graph, write_npz

    graph = write_npz(a_graph(), tmp_path / "graph.npz")
    words = f"train-large --dataset {graph} --train-each 5 --splits 1 --inits 1 --epochs 5 --hidden-size 8"
    train("graph.renode", words.split(), tmp_path / "out", device)


def test_label_graph(tmp_path: Path, device: Device) -> None:
    pytest.importorskip("gensim")
    from tests.graph.label_graph.test_command import write_topics

    words = "train --hidden-size 8 --attention-size 8 --embedding-dim 8 --embedding learned --epochs 2 --start-eval 1"
    train("graph.label_graph", [*words.split(), "--data", str(write_topics(tmp_path))], tmp_path / "out", device)


def test_graph_classification(tmp_path: Path, device: Device) -> None:
    pytest.importorskip("torch_geometric")
    from tests.graph.graph_classification.conftest import write_tu

    words = ["train", "--dataset", "RINGS", "--root", str(write_tu(tmp_path / "data"))]
    words += "--folds 3 --epochs 3 --defer-start 0 --hidden-size 8 --num-layers 2".split()
    train("graph.graph_classification", words, tmp_path / "out", device)


def precision_of(mixed_precision: str, device: Device) -> str:
    if device.dry_run and mixed_precision == "fp16":
        pytest.skip("a CPU has no fp16 training")
    return mixed_precision


@pytest.mark.parametrize("mixed_precision", MIXED)
def test_iais(mixed_precision: str, tmp_path: Path, device: Device) -> None:
    pytest.importorskip("transformers")
    from tests.vision_language.iais.regions import write_regions

    words = ["train", "--data", str(write_regions(tmp_path / "data", feature_size=6))]
    words += (
        "--hidden-size 16 --num-heads 2 --intermediate-size 32 --num-layers 1 --num-steps 3 --warmup-steps 1".split()
    )
    words += "--validate-every 3 --negative-size 7 --hard-negatives 3 --batch-size 4 --anchors-per-forward 2".split()
    words += ["--mixed-precision", precision_of(mixed_precision, device)]
    train("vision_language.iais", words, tmp_path / "out", device)


@pytest.mark.parametrize("mixed_precision", MIXED)
def test_muka(mixed_precision: str, tmp_path: Path, device: Device) -> None:
    """Two teachers, then a student of them."""
    pytest.importorskip("transformers")
    from fairseq_ext.training.accelerator import make_accelerator
    from tests.vision_language.muka.texts import write_encoder, write_texts
    from vision_language.muka.options import AmalgamationOptions, TeacherOptions
    from vision_language.muka.train import amalgamate, train_teacher

    accelerator = make_accelerator(precision_of(mixed_precision, device), device.name)
    data, encoder = (str(path) for path in (write_texts(tmp_path / "data"), write_encoder(tmp_path / "encoder")))
    shared: dict[str, Any] = {"data": (data,), "epochs": 1, "batch_size": 60, "lr": 0.01, "max_length": 16}
    shared["mixed_precision"] = mixed_precision
    teachers = []
    for part in ("1/2", "2/2"):
        teachers.append(str(tmp_path / f"teacher{part[0]}"))
        train_teacher(TeacherOptions(model=encoder, part=part, **shared), teachers[-1], accelerator)
        assert_learned(Path(teachers[-1]), device)
    options = AmalgamationOptions(student=encoder, teachers=tuple(teachers), passes=2, **shared)
    amalgamate(options, tmp_path / "student", accelerator)
    assert_learned(tmp_path / "student", device)


@pytest.mark.parametrize("mixed_precision", MIXED)
def test_images(mixed_precision: str, tmp_path: Path, device: Device) -> None:
    """Trained on attacked images, then attacked."""
    pytest.importorskip("foolbox")
    from vision_language.image_classification.evaluate import AttackOptions, attack
    from vision_language.image_classification.synthetic import SyntheticOptions, synthesize

    data, out = str(tmp_path / "data"), tmp_path / "out"
    synthesize(SyntheticOptions(out=data, images=50))
    words = ["train", "--data", data, *"--epochs 2 --batch-size 20 --attack fgsm --epsilon 0.1".split()]
    words += ["--mixed-precision", precision_of(mixed_precision, device)]
    train("vision_language.image_classification", words, out, device)
    options = AttackOptions(model=str(out / "seed1"), data=data, attack="pgd", attack_steps=2, device=device.name)
    assert attack(options)["robust_accuracy"].keys() == {f"{epsilon:g}" for epsilon in options.epsilons}


def test_pixels_are_those_of_the_cpu(device: Device) -> None:
    """All 256, to the bit."""
    from vision_language.image_classification.data import pixels_on

    images = torch.arange(256).to(torch.uint8)
    assert torch.equal(pixels_on(torch.device(device.name), images).cpu(), images.float() / 255)
