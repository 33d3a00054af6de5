"""One test per repair of fairseq, then what holds for all of them: idempotence, the log line, the off switch."""

from __future__ import annotations

import argparse
import builtins
import collections
import inspect
import logging
import os
import subprocess
import sys
import typing

import numpy as np
import pytest
import torch
from fairseq import checkpoint_utils
from fairseq.data import data_utils
from fairseq.distributed import utils as distributed_utils
from fairseq.file_io import PathManager
from omegaconf import OmegaConf

from fairseq_ext import compat
from fairseq_ext.errors import CheckpointError
from tests.helpers import ROOT

NAMES = ["safe checkpoints", "last batch", "numpy.compat", "whole checkpoints", "damaged files", "hydra refusals"]


@pytest.fixture(autouse=True, scope="module")
def repaired():
    compat.apply()


def round_trip(value, path):
    torch.save(value, path)
    return torch.load(path, weights_only=True)


# --- safe checkpoints -------------------------------------------------------------------------------------------------


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


# --- last batch -------------------------------------------------------------------------------------------------------


def batches(count, lengths=None, **options):
    lengths = np.full(count, 5) if lengths is None else np.asarray(lengths)
    defaults = {"num_tokens_vec": lengths, "max_sentences": 8, "required_batch_size_multiple": 8}
    return data_utils.batch_by_size(np.arange(count), lambda i: lengths[i], **{**defaults, **options})


def test_the_last_sentences_are_kept():
    assert [len(batch) for batch in batches(13)] == [8, 5]
    np.testing.assert_array_equal(np.concatenate(batches(13)), np.arange(13))


def test_upstream_still_drops_them():
    """The day this fails, the repair can go."""
    upstream = inspect.unwrap(data_utils.batch_by_size)
    lengths = np.full(13, 5)
    kept = upstream(np.arange(13), None, lengths, max_sentences=8, required_batch_size_multiple=8)
    assert sum(map(len, kept)) == 8


@pytest.mark.parametrize("count", [1, 5, 7, 8, 9, 16, 1014])
@pytest.mark.parametrize("options", [{}, {"num_tokens_vec": None}, {"max_sentences": None, "max_tokens": 60}])
def test_every_sentence_is_in_one_batch(count, options):
    lengths = np.sort(np.random.default_rng(count).integers(1, 20, count))
    made = batches(count, lengths, **options)
    np.testing.assert_array_equal(np.concatenate(made), np.arange(count))
    if "max_tokens" in options:
        assert all(len(batch) * lengths[batch].max() <= 60 for batch in made)


def test_no_sentence_makes_no_batch():
    assert batches(0) == []


def test_indices_may_be_any_iterable():
    lengths = np.full(13, 5)
    made = data_utils.batch_by_size(iter(range(13)), None, lengths, None, 8, 8)
    np.testing.assert_array_equal(np.concatenate(made), np.arange(13))


def test_fixed_shapes_are_left_alone():
    lengths = np.full(13, 5)
    shapes = [(8, 5)]
    upstream = inspect.unwrap(data_utils.batch_by_size)
    arguments = (np.arange(13), lambda i: lengths[i], None, None, None, 8)
    expected = upstream(*arguments, fixed_shapes=shapes)
    for made in (
        data_utils.batch_by_size(*arguments, fixed_shapes=shapes),
        data_utils.batch_by_size(*arguments, shapes),
    ):
        assert [list(batch) for batch in made] == [list(batch) for batch in expected]


# --- numpy.compat -----------------------------------------------------------------------------------------------------


def test_blocks_of_sentences_are_built():
    from fairseq.data import TokenBlockDataset

    lines = [torch.tensor([5, 6, 2]), torch.tensor([7, 2])]
    made = TokenBlockDataset(lines, [3, 2], block_size=None, pad=1, eos=2, break_mode="eos")
    assert [line.tolist() for line in (made[0], made[1])] == [[5, 6, 2], [7, 2]]
    assert np.compat.long is int


# --- whole checkpoints ------------------------------------------------------------------------------------------------


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

    monkeypatch.setattr(compat.shutil, "copyfile", full)
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


# --- all of them ------------------------------------------------------------------------------------------------------


def test_applying_again_changes_nothing(caplog):
    assert compat.patched() == NAMES
    before = data_utils.batch_by_size, PathManager.copy, checkpoint_utils.torch_persistent_save, np.compat
    with caplog.at_level(logging.INFO):
        assert compat.apply() == NAMES
    after = data_utils.batch_by_size, PathManager.copy, checkpoint_utils.torch_persistent_save, np.compat
    assert after == before
    assert not caplog.records


def test_patched_is_a_copy():
    compat.patched().clear()
    assert compat.patched() == NAMES


SCRIPT = """
import logging, sys
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(levelname)s %(name)s %(message)s")
from fairseq.data import data_utils
upstream = data_utils.batch_by_size
from fairseq_ext import compat
compat.apply()
print("patched", compat.patched(), data_utils.batch_by_size is upstream)
"""


@pytest.mark.parametrize("switch", ["", "0", "1"])
def test_log_line_and_off_switch(switch):
    environment = {**os.environ, compat.OFF_SWITCH: switch}
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, cwd=ROOT, env=environment, check=True
    )
    lines = [line for line in result.stdout.splitlines() if "fairseq_ext.compat" in line]
    if switch == "1":
        assert not lines
        assert "patched [] True" in result.stdout
    else:
        assert lines == [
            f"INFO fairseq_ext.compat fairseq repaired: {', '.join(NAMES)} ({compat.OFF_SWITCH}=1 turns this off)"
        ]
        assert f"patched {NAMES} False" in result.stdout
