"""Files that are whole or absent, checkpoints that cannot run code, and errors of one line."""

from __future__ import annotations

import errno
import gzip
import json
import os
import pickle
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fairseq_ext.errors import CheckpointError, DataError, InputError, OptionError, choose
from fairseq_ext.files import (
    MAX_LINE,
    load_safely,
    read_json,
    read_lines,
    replacing,
    save_atomically,
    write_json,
)
from tests.helpers import ROOT

STATE = {"model": {"weight": torch.arange(6.0).view(2, 3)}, "epoch": 3, "best": 0.5, "names": ["a", "b"], "rest": None}


def one_line(refusal: pytest.ExceptionInfo) -> str:
    message = str(refusal.value)
    assert message and "\n" not in message
    return message


def names(folder) -> set[str]:
    return {path.name for path in folder.iterdir()}


class Hostile:
    """A pickle that makes a folder where it is loaded."""

    def __init__(self, folder) -> None:
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def test_replacing_leaves_the_new_file_alone(tmp_path):
    path = tmp_path / "file"
    for text in ("first", "second"):
        with replacing(path) as partial:
            assert partial.parent == tmp_path, "os.replace is atomic on one file system only"
            partial.write_text(text)
            assert not path.exists() or path.read_text() == "first"
        assert path.read_text() == text
        assert names(tmp_path) == {"file"}


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt, SystemExit])
def test_replacing_keeps_the_old_file_after_an_error(tmp_path, error):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(error), replacing(path) as partial:
        partial.write_text("half")
        raise error
    assert path.read_text() == "old"
    assert names(tmp_path) == {"file"}


def test_replacing_without_a_written_file_is_an_error(tmp_path):
    (tmp_path / "file").write_text("old")
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "file"):
        pass
    assert (tmp_path / "file").read_text() == "old"


def test_what_a_kill_left_is_overwritten(tmp_path):
    (tmp_path / "file.json.tmp").write_text("half of an earlier fi")
    write_json(tmp_path / "file.json", [1])
    assert read_json(tmp_path / "file.json") == [1]
    assert names(tmp_path) == {"file.json"}


def test_json_keeps_any_text(tmp_path):
    value = {"Größe": ["民谣", "\n", 0.1, None, True]}
    write_json(tmp_path / "file.json", value)
    assert read_json(tmp_path / "file.json") == value
    assert "民谣" in (tmp_path / "file.json").read_text(encoding="utf-8")


def test_a_value_that_is_no_json_keeps_the_old_file(tmp_path):
    write_json(tmp_path / "file.json", 1)
    with pytest.raises(TypeError):
        write_json(tmp_path / "file.json", {"tensor": torch.zeros(1)})
    assert read_json(tmp_path / "file.json") == 1
    assert names(tmp_path) == {"file.json"}


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    save_atomically(STATE, tmp_path / "state.pt")
    found = load_safely(tmp_path / "state.pt")
    assert torch.equal(found["model"].pop("weight"), STATE["model"]["weight"])
    assert found == {**STATE, "model": {}}
    assert names(tmp_path) == {"state.pt"}


def test_a_checkpoint_that_could_run_code_does_not(tmp_path):
    torch.save({"model": Hostile(tmp_path / "ran")}, tmp_path / "state.pt")
    with pytest.raises(CheckpointError, match=r"state.pt: refused .*mkdir, which could run code") as refusal:
        load_safely(tmp_path / "state.pt")
    one_line(refusal)
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Hostile(tmp_path / "ran")))
    with pytest.raises(CheckpointError, match=r"plain.pt: refused") as refusal:
        load_safely(tmp_path / "plain.pt")
    one_line(refusal)
    assert not (tmp_path / "ran").exists()


@pytest.fixture(scope="module")
def content(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("whole") / "state.pt"
    save_atomically(STATE, path)
    return path.read_bytes()


@given(st.floats(0, 1, exclude_max=True))
def test_every_truncation_is_refused_in_one_line(content, tmp_path_factory, share):
    path = tmp_path_factory.getbasetemp() / "truncated.pt"
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match=r"truncated.pt: ") as refusal:
        load_safely(path)
    one_line(refusal)


@given(st.data())
def test_damaged_bytes_are_refused_in_one_line_or_harmless(content, tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "damaged.pt"
    damaged = bytearray(content)
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=20)):
        damaged[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(damaged)
    try:
        load_safely(path)
    except CheckpointError as error:
        assert "damaged.pt: " in str(error) and "\n" not in str(error)


@pytest.mark.parametrize("text", [b"", b"\n", b"PK\x03\x04", b"not a checkpoint\n" * 100])
def test_what_never_was_a_checkpoint(tmp_path, text):
    (tmp_path / "state.pt").write_bytes(text)
    with pytest.raises(CheckpointError, match=r"state.pt: .*no checkpoint") as refusal:
        load_safely(tmp_path / "state.pt")
    one_line(refusal)


def test_a_missing_checkpoint_and_a_folder(tmp_path):
    with pytest.raises(CheckpointError, match=r"state.pt: No such file or directory$"):
        load_safely(tmp_path / "state.pt")
    with pytest.raises(CheckpointError, match=r": Is a directory$"):
        load_safely(tmp_path)


def test_where_no_checkpoint_can_be_written(tmp_path):
    with pytest.raises(CheckpointError, match=r"cannot write .*absent/state.pt: No such file"):
        save_atomically(STATE, tmp_path / "absent" / "state.pt")
    with pytest.raises(CheckpointError, match=r"cannot write .*: is a directory"):
        save_atomically(STATE, tmp_path)
    assert not names(tmp_path)


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("write failed: 5\nframe #0: c10")],
    ids=["python", "torch"],
)
def test_a_full_disk_keeps_the_old_checkpoint(tmp_path, monkeypatch, error):
    save_atomically(STATE, tmp_path / "state.pt")
    before = (tmp_path / "state.pt").read_bytes()

    def fail(state, file):
        file.write(b"half")
        raise error

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(CheckpointError, match=r"cannot write .*state.pt: (No space left|write failed: 5$)") as refusal:
        save_atomically(STATE, tmp_path / "state.pt")
    one_line(refusal)
    assert (tmp_path / "state.pt").read_bytes() == before
    assert names(tmp_path) == {"state.pt"}


def test_a_real_write_error_keeps_the_old_checkpoint_and_ends_in_one_line(tmp_path):
    script = """
import resource, sys, torch
from fairseq_ext.files import save_atomically
save_atomically({"epoch": 1}, sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
save_atomically({"epoch": 2, "weight": torch.zeros(100_000)}, sys.argv[1])
"""
    path = tmp_path / "state.pt"
    result = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 1
    assert result.stderr.startswith(f"cannot write {path}: ") and result.stderr.count("\n") == 1
    assert load_safely(path) == {"epoch": 1}
    assert names(tmp_path) == {"state.pt"}


@pytest.mark.parametrize("error", [OptionError, DataError, CheckpointError])
def test_an_input_error_ends_a_command_and_is_a_value_error(error):
    assert issubclass(error, InputError) and issubclass(error, SystemExit) and issubclass(error, ValueError)
    script = f"from fairseq_ext.errors import {error.__name__}; raise {error.__name__}('--folds: 1, must be 3')"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (1, "", "--folds: 1, must be 3\n")


def test_choose_returns_what_is_allowed():
    assert choose("--loss", "focal", iter(["cross-entropy", "focal"])) == "focal"


@pytest.mark.parametrize(
    ("value", "hint"),
    [("fokal", "; did you mean 'focal'?"), ("Focal", "; did you mean 'focal'?"), ("zzzzz", ""), ("", "")],
)
def test_choose_refuses_with_the_nearest(value, hint):
    with pytest.raises(OptionError) as refusal:
        choose("--loss", value, ["cross-entropy", "focal"])
    assert one_line(refusal) == f"--loss: {value!r} is not one of cross-entropy, focal{hint}"


def test_the_errors_do_not_load_torch():
    script = "import fairseq_ext.errors, json, sys; print(json.dumps(sorted(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    assert not {"torch", "fairseq"} & set(json.loads(result.stdout))


def test_lines_are_numbered_and_stripped_of_what_is_not_text(tmp_path):
    text = "\ufeffone\r\n\n  \ntwo\rhalf\n three \n"
    (tmp_path / "a.txt").write_bytes(text.encode())
    with gzip.open(tmp_path / "a.txt.gz", "wb") as file:
        file.write(text.encode())
    for name in ("a.txt", "a.txt.gz"):
        path = tmp_path / name
        expected = [("one", f"{path}:1"), ("two\rhalf", f"{path}:4"), (" three ", f"{path}:5")]
        assert list(read_lines(path)) == expected


def test_lines_that_cannot_be_read_are_refused(tmp_path):
    (tmp_path / "latin").write_bytes(b"caf\xe9\n")
    (tmp_path / "long").write_bytes(b"fine\n" + b"x" * (MAX_LINE + 1))
    (tmp_path / "cut.gz").write_bytes(gzip.compress(b"some text\n" * 100)[:20])
    messages = {"latin": "cannot be read as UTF-8", "long": ":2: a line has at most", "cut.gz": "cannot be read"}
    for name, message in {**messages, "none": "No such file"}.items():
        with pytest.raises(DataError, match=message):
            list(read_lines(tmp_path / name))
