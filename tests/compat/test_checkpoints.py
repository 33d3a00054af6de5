"""Checkpoints load without running code, and are written whole or not at all."""

from __future__ import annotations

import argparse
import builtins
import collections
import os
import subprocess
import typing

import numpy as np
import pytest
import torch
from fairseq import checkpoint_utils, models
from fairseq.distributed import utils as distributed_utils
from fairseq.file_io import PathManager
from fairseq.registry import REGISTRIES
from omegaconf import OmegaConf

from fairseq_ext.compat import checkpoints
from fairseq_ext.training.errors import CheckpointError


def round_trip(value, path):
    torch.save(value, path)
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize(
    "value",
    [
        argparse.Namespace(arch="transformer", dropout=0.1, nested=argparse.Namespace(a=[1, 2])),
        OmegaConf.create({"model": {"_name": "transformer_ext", "kernels": [3, 15]}, "seed": 1}),
        collections.defaultdict(dict),
        collections.defaultdict(list),
        collections.defaultdict(int),
        distributed_utils._TensorPlaceholder(index=3),
    ],
    ids=lambda value: type(value).__name__,
)
def test_configurations_load_with_the_safe_loader(value, tmp_path):
    assert round_trip({"cfg": value}, tmp_path / "x.pt")["cfg"] == value


def test_typing_any_of_omegaconf_metadata_loads(tmp_path):
    value = OmegaConf.create({"a": 1})
    assert value._metadata.ref_type is typing.Any
    assert round_trip(value, tmp_path / "x.pt")._metadata.ref_type is typing.Any


@pytest.mark.parametrize("code", ["f2", "f4", "f8", "i4", "i8", "u1", "?"])
def test_bleu_counters_load_with_the_safe_loader(code, tmp_path):
    counts = np.arange(4).astype(code)
    loaded = round_trip({"counts": counts, "total": counts[1]}, tmp_path / "x.pt")
    assert loaded["counts"].dtype == counts.dtype
    np.testing.assert_array_equal(loaded["counts"], counts)
    assert loaded["total"] == counts[1] and isinstance(loaded["total"], np.generic)


def test_numpy_1_checkpoints_load(tmp_path):
    path = tmp_path / "x.pt"
    torch.save({"counts": np.arange(3)}, path, _use_new_zipfile_serialization=False)
    old = path.read_bytes().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert b"numpy.core.multiarray" in old
    path.write_bytes(old)
    np.testing.assert_array_equal(torch.load(path, weights_only=True)["counts"], np.arange(3))


class Hostile:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    "function", [os.mkdir, builtins.eval, builtins.exec, subprocess.Popen], ids=lambda f: f.__name__
)
def test_hostile_pickle_is_refused(function, tmp_path):
    target = tmp_path / "owned"
    argument = str(target) if function is os.mkdir else f"__import__('os').mkdir({str(target)!r})"
    path = tmp_path / "hostile.pt"
    torch.save({"model": {}, "cfg": Hostile(function, argument)}, path)
    with pytest.raises(
        CheckpointError, match=rf"{path}: refused by torch's safe loader: it holds .*{function.__name__}"
    ):
        checkpoint_utils.load_checkpoint_to_cpu(str(path))
    assert not target.exists()


CHOICES = [(kind, name) for kind in ("bpe", "tokenizer") for name in sorted(REGISTRIES[kind]["dataclass_registry"])]


@pytest.mark.parametrize(("kind", "name"), CHOICES)
@pytest.mark.parametrize("model", [dict, argparse.Namespace])
def test_options_of_a_chosen_encoder_are_no_idle_overrides(model, kind, name, caplog):
    """As ``from_pretrained(..., bpe="sentencepiece", sentencepiece_model=...)`` gives them."""
    fields = REGISTRIES[kind]["dataclass_registry"][name].__dataclass_fields__.keys() - {"_name"}
    cfg = OmegaConf.create({"model": model(dropout=0.1), kind: None}, flags={"allow_objects": True})
    given = dict.fromkeys(fields, "1") | {kind: name, "generation_args": {}}
    checkpoint_utils.overwrite_args_by_name(cfg, given)
    assert cfg[kind]._name == name and "no option" not in caplog.text
    cfg[kind] = None
    checkpoint_utils.overwrite_args_by_name(cfg, given | {"mistyped": 1})
    assert "this checkpoint has no option mistyped (" in caplog.text


@pytest.mark.parametrize("kind", [OmegaConf.create, lambda values: argparse.Namespace(**values)])
@pytest.mark.parametrize("option", ["_name", "arch"])
def test_a_model_whose_architecture_is_not_loaded_is_refused_by_its_name(kind, option):
    with pytest.raises(CheckpointError, match=r"^the model is of --arch gone, which is not loaded: .*--user-dir"):
        models.build_model(kind({option: "gone", "dropout": 0.1}), task=None)


def test_copy_replaces(tmp_path):
    new, old = tmp_path / "new.pt", tmp_path / "old.pt"
    new.write_bytes(b"new")
    old.write_bytes(b"old")
    assert PathManager.copy(str(new), str(old), overwrite=True)
    assert old.read_bytes() == b"new"
    assert sorted(os.listdir(tmp_path)) == ["new.pt", "old.pt"]


def test_a_full_disk_while_copying_spares_the_old_checkpoint(tmp_path, monkeypatch):
    new, old = tmp_path / "new.pt", tmp_path / "old.pt"
    new.write_bytes(b"new")
    old.write_bytes(b"old")

    def full(source, target):
        with open(target, "wb") as file:
            file.write(b"n")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints.shutil, "copyfile", full)
    with pytest.raises(OSError, match="No space left"):
        PathManager.copy(str(new), str(old), overwrite=True)
    assert old.read_bytes() == b"old"
    assert sorted(os.listdir(tmp_path)) == ["new.pt", "old.pt"]


def test_a_full_disk_while_saving_leaves_nothing_behind(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint_last.pt"
    checkpoint_utils.torch_persistent_save({"step": 1}, str(path))

    def full(obj, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_utils.torch, "save", full)
    monkeypatch.setattr(checkpoint_utils.time, "sleep", lambda seconds: None)
    with pytest.raises(OSError, match="No space left"):
        checkpoint_utils.torch_persistent_save({"step": 2}, str(path))
    assert os.listdir(tmp_path) == ["checkpoint_last.pt"]
    assert torch.load(path) == {"step": 1}
