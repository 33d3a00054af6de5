"""Every file that MUKA reads, damaged in every way: it is refused with one line that names it, or it does no harm."""

from __future__ import annotations

import gzip
import shutil

import pytest
import torch
from accelerate import Accelerator

from fairseq_ext.training.errors import InputError
from tests.vision_language.muka.conftest import QUICK
from tests.vision_language.muka.texts import write_classifier, write_encoder, write_texts
from vision_language.muka.data import read_splits
from vision_language.muka.models import build_classifier, load_classifier
from vision_language.muka.objectives import Objective
from vision_language.muka.options import TeacherOptions
from vision_language.muka.text_files import read_new_texts
from vision_language.muka.train import train_teacher

DAMAGES = {
    "empty": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
    "tail": lambda content: content[:-7],
    "noise": lambda content: bytes(range(256)) * 4,
    "flipped": lambda content: bytes(255 - byte for byte in content[:64]) + content[64:],
    "list": lambda content: b"[]",
    "null": lambda content: b"null",
    "number": lambda content: b"3",
    "text": lambda content: b'"text"',
    "object": lambda content: b'{"model_type": 3, "added_tokens_decoder": [], "id2label": [1], "version": {}}',
    "nested": lambda content: b"[" * 100_000,
}


def damage(path, kind):
    path.write_bytes(DAMAGES[kind](path.read_bytes() if path.exists() else b"{}"))


def harmless_or_one_line(function, *named):
    """Whether it was refused; any other error than a refusal is raised."""
    try:
        function()
    except InputError as error:
        assert "\n" not in str(error) and any(str(name) in str(error) for name in named), str(error)
        return True
    return False


@pytest.mark.parametrize("kind", DAMAGES)
def test_files_of_a_model(tmp_path, kind):
    refused = set()
    for number, name in enumerate(("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")):
        teacher = write_classifier(tmp_path / f"teacher{number}", ["music", "sport", "travel"])
        encoder = write_encoder(tmp_path / f"encoder{number}")
        for folder, load in ((teacher, load_classifier), (encoder, lambda path: build_classifier(path, ["a", "b"]))):
            damage(folder / name, kind)
            if harmless_or_one_line(lambda load=load, folder=folder: load(folder), folder):
                refused.add(name)
    assert refused >= {"config.json", "model.safetensors", "tokenizer.json"} - (
        {"tokenizer.json"} if kind == "object" else set()
    )


@pytest.mark.parametrize("name", ["model.safetensors.index.json", "special_tokens_map.json", "added_tokens.json"])
def test_further_files_of_a_model(tmp_path, name):
    for kind in DAMAGES:
        folder = write_classifier(tmp_path / kind, ["music", "sport", "travel"])
        damage(folder / name, kind)
        if "index" in name:
            (folder / "model.safetensors").unlink()
        refused = harmless_or_one_line(lambda folder=folder: load_classifier(folder), folder)
        assert refused or "index" not in name


@pytest.mark.parametrize("name", ["train.tsv", "train.tsv.gz", "train.txt", "train.txt.gz"])
def test_texts(tmp_path, name):
    whole = "".join(f"{label}\ta text of {label}\n" for label in ("music", "sport") * 40).encode()
    for kind in DAMAGES:
        folder = tmp_path / kind
        folder.mkdir()
        path = folder / name
        path.write_bytes(gzip.compress(whole) if name.endswith(".gz") else whole)
        damage(path, kind)
        refused = harmless_or_one_line(lambda path=path: read_splits(path.parent), path.parent)
        assert refused or kind not in ("empty", "noise", "flipped")
        harmless_or_one_line(lambda path=path: read_new_texts(path), path)


@pytest.mark.parametrize("name", ["checkpoint.pt", "results.json"])
def test_files_of_a_run(tmp_path, monkeypatch, name):
    """Of a run that was killed: what cannot be resumed is refused before a step is made."""
    data, encoder = write_texts(tmp_path / "data", train=20, valid=5, test=5), write_encoder(tmp_path / "encoder")
    options = TeacherOptions(data=(str(data),), model=str(encoder), epochs=4, **QUICK)

    def train(out):
        return train_teacher(options, out, Accelerator(cpu=True))

    forward, steps = Objective.forward, []

    def five_steps(self, *arguments):
        steps.append(arguments)
        return forward(self, *arguments) if len(steps) <= 5 else pytest.exit("")

    with monkeypatch.context() as patch:
        patch.setattr(Objective, "forward", five_steps)
        with pytest.raises(pytest.exit.Exception):
            train(tmp_path / "killed")
    assert (tmp_path / "killed" / "checkpoint.pt").exists()
    monkeypatch.setattr(Objective, "forward", lambda *_: pytest.fail("it was trained"))
    for kind in (*DAMAGES, "tensor"):
        out = shutil.copytree(tmp_path / "killed", tmp_path / kind)
        if kind == "tensor":
            torch.save(torch.zeros(3), out / name)
        else:
            damage(out / name, kind)
        assert harmless_or_one_line(lambda out=out: train(out), out / name), kind
