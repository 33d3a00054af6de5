"""Files that are whole or absent, checkpoints that cannot run code, and errors of one line."""

from __future__ import annotations

import contextlib
import errno
import gzip
import io
import json
import os
import pickle
import subprocess
import sys
import zipfile
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fairseq_ext.training.errors import CheckpointError, DataError, InputError, OptionError, choose
from fairseq_ext.training.files import (
    MAX_LINE,
    load_safely,
    read_bytes,
    read_json,
    read_lines,
    replacing,
    safe_loads_only,
    save_atomically,
    staged_folder,
    write_json,
)
from tests.helpers import ROOT, damaged_texts

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


def test_replacing_makes_a_folder(tmp_path):
    with replacing(tmp_path / "folder") as partial:
        partial.mkdir()
        (partial / "file").write_text("new")
    assert names(tmp_path) == {"folder"} and names(tmp_path / "folder") == {"file"}


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


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    out = tmp_path / "out"
    (tmp_path / ".out.tmp" / "inner").mkdir(parents=True)
    (tmp_path / ".out.tmp" / "left").write_text("by a kill")
    with staged_folder(out) as stage:
        (stage / "file").write_text("new")
        with pytest.raises(OptionError, match=f"--out: another process is writing {out}"), staged_folder(out):
            pass
        assert names(tmp_path) == {".out.tmp"} and names(stage) == {"file"}
    assert names(tmp_path) == {"out"} and names(out) == {"file"}
    with pytest.raises(OptionError, match=f"DATA: {out} already exists"), staged_folder(out, "DATA"):
        pass
    with pytest.raises(RuntimeError), staged_folder(tmp_path / "other") as stage:
        (stage / "file").write_text("half")
        raise RuntimeError
    assert names(tmp_path) == {"out"}


@pytest.mark.parametrize("there", [True, False])
def test_a_staged_folder_may_be_linked(tmp_path, there):
    target, link = tmp_path / "disk" / "data", tmp_path / "out"
    (target if there else target.parent).mkdir(parents=True)
    link.symlink_to(target, target_is_directory=True)
    with staged_folder(link) as stage:
        (stage / "file").write_text("new")
    assert link.is_symlink() and names(target) == {"file"} and names(target.parent) == {"data"}


def test_a_staged_folder_that_cannot_become_the_other_is_refused_before_the_work(tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    replace = os.replace

    def mounted(source, target):
        if target == out:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        replace(source, target)

    monkeypatch.setattr(os, "replace", mounted)
    with pytest.raises(OptionError) as refusal, staged_folder(out):
        pytest.fail("it works for nothing")
    instead = f"name a folder in it, such as {out}/data"
    assert one_line(refusal) == f"--out: {out} cannot be replaced (Device or resource busy); {instead}"
    assert names(tmp_path) == {"out"} and names(out) == set()
    with staged_folder(out / "data") as stage:
        (stage / "file").write_text("new")
    assert names(out / "data") == {"file"}
    (tmp_path / "ring").symlink_to(tmp_path / "ring")
    with pytest.raises(OptionError, match=r"--out: .*ring"), staged_folder(tmp_path / "ring"):
        pytest.fail("it works for nothing")


def test_json_keeps_any_text(tmp_path):
    value = {"Größe": ["民谣", "\n", 0.1, None, True]}
    write_json(tmp_path / "file.json", value)
    assert read_json(tmp_path / "file.json") == value
    assert "民谣" in (tmp_path / "file.json").read_text(encoding="utf-8")


def test_a_value_that_is_no_json_keeps_the_old_file(tmp_path):
    write_json(tmp_path / "file.json", 1)
    with pytest.raises(TypeError):
        write_json(tmp_path / "file.json", {"tensor": torch.zeros(1)})
    with pytest.raises(DataError, match=r"file.json: runs.seed1.history.0.loss is nan, which is no result"):
        write_json(tmp_path / "file.json", {"runs": {"seed1": {"history": [{"loss": float("nan")}]}}})
    assert read_json(tmp_path / "file.json") == 1
    assert names(tmp_path) == {"file.json"}


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    save_atomically(STATE, tmp_path / "state.pt")
    state = load_safely(tmp_path / "state.pt")
    assert torch.equal(state["model"].pop("weight"), STATE["model"]["weight"])
    assert state == {**STATE, "model": {}}
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
    with pytest.raises(CheckpointError, match=r"cannot write .*: is a folder"):
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
from fairseq_ext.training.files import save_atomically
save_atomically({"epoch": 1}, sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
save_atomically({"epoch": 2, "weight": torch.zeros(100_000)}, sys.argv[1])
"""
    path = tmp_path / "state.pt"
    result = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 2
    assert result.stderr.startswith(f"cannot write {path}: ") and result.stderr.count("\n") == 1
    assert load_safely(path) == {"epoch": 1}
    assert names(tmp_path) == {"state.pt"}


@pytest.mark.parametrize("error", [OptionError, DataError, CheckpointError])
def test_an_input_error_ends_a_command_and_is_a_value_error(error):
    assert issubclass(error, InputError) and issubclass(error, SystemExit) and issubclass(error, ValueError)
    script = f"from fairseq_ext.training import errors; raise errors.{error.__name__}('--folds: 1, must be 3')"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (2, "", "--folds: 1, must be 3\n")


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
    script = "import fairseq_ext.training.errors, json, sys; print(json.dumps(sorted(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    assert not {"torch", "fairseq"} & set(json.loads(result.stdout))


GOOD = "\ufeffone\r\n\n  \ntwo\rhalf\u2028\n three \n".encode()
READERS = {
    "read_lines": (lambda path: list(read_lines(path)), GOOD),
    "read_json": (read_json, b'{"one":\n "two"}\n'),
}


def test_lines_are_numbered_and_stripped_of_what_is_not_text(tmp_path):
    for name, data in {
        "a.txt": GOOD,
        "a.txt.gz": gzip.compress(GOOD),
        "gzip without suffix": gzip.compress(GOOD),
    }.items():
        path = tmp_path / name
        path.write_bytes(data)
        expected = [("one", f"{path}:1"), ("two\rhalf\u2028", f"{path}:4"), (" three ", f"{path}:5")]
        assert list(read_lines(path)) == expected
        blank = [("", f"{path}:2"), ("  ", f"{path}:3")]
        assert list(read_lines(path, keep_blank=True)) == [expected[0], *blank, *expected[1:]]


@pytest.mark.parametrize("data", [GOOD, gzip.compress(GOOD, mtime=0), b""])
def test_the_standard_input_and_a_pipe_are_read_as_files(data, monkeypatch):
    kept = os.dup(0)
    try:
        for path, name in (("-", "stdin"), ("/dev/stdin", "/dev/stdin")):
            pipe, writer = os.pipe()
            os.write(writer, data)
            os.close(writer)
            os.dup2(pipe, 0)
            os.close(pipe)
            with open(0, encoding="ascii", closefd=False) as stdin:
                monkeypatch.setattr(sys, "stdin", stdin)
                lines = list(read_lines(path))
            assert [place for _, place in lines] == ([f"{name}:1", f"{name}:4", f"{name}:5"] if data else [])
    finally:
        os.dup2(kept, 0)
        os.close(kept)


@pytest.mark.parametrize("kind", damaged_texts(GOOD))
@pytest.mark.parametrize("reader", READERS)
def test_damaged_files_are_refused_by_name_in_one_line(tmp_path, reader, kind):
    read, good = READERS[reader]
    (tmp_path / "good").write_bytes(good)
    read(tmp_path / "good")
    path = tmp_path / kind
    path.write_bytes(damaged_texts(good)[kind])
    with pytest.raises(DataError) as refusal:
        read(path)
    assert one_line(refusal).startswith(f"{path}:")


def test_a_line_that_is_not_utf8_is_named(tmp_path):
    (tmp_path / "a.txt").write_bytes("gut\nschön\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"a.txt:2: not UTF-8 text \(byte 0xf6 at 4\)"):
        list(read_lines(tmp_path / "a.txt"))


def test_a_line_without_end_does_not_fill_the_memory(tmp_path):
    for name, text in {
        "ascii": "x" * (MAX_LINE + 1),
        "wide": "民" * (MAX_LINE + 1),
        "cut": "民" * (2 * MAX_LINE),
    }.items():
        (tmp_path / name).write_text("fine\n" + text)
        with pytest.raises(DataError, match=f"{name}:2: a line has at most {MAX_LINE} characters"):
            list(read_lines(tmp_path / name))
    (tmp_path / "longest").write_text("民" * (MAX_LINE - 1) + "\n")
    assert len(list(read_lines(tmp_path / "longest"))) == 1


@pytest.mark.parametrize("read", [*(read for read, _ in READERS.values()), read_bytes])
def test_what_is_no_file_is_refused_by_name(tmp_path, read):
    for path, reason in ((tmp_path / "none", "No such file or directory"), (tmp_path, "Is a directory")):
        with pytest.raises(DataError) as refusal:
            read(path)
        assert one_line(refusal) == f"{path}: cannot be read: {reason}"


@pytest.mark.parametrize("text", ["", "{", "[1,]", "{'a': 1}", "[" * 100_000, "1 2", "9" * 5000])
def test_what_is_no_json_is_refused_by_name(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError, match=r"a.json: not a JSON file: ") as refusal:
        read_json(tmp_path / "a.json")
    one_line(refusal)


def zipped(**members: bytes) -> bytes:
    with zipfile.ZipFile(buffer := io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "data"),
    [("a", GOOD), ("a.gz", gzip.compress(GOOD)), ("a.zip", zipped(member=GOOD))],
    ids=lambda x: str(x)[:5],
)
@given(st.data())
def test_bytes_come_back_whole_or_are_refused(tmp_path_factory, name, data, draw):
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(data)
    assert read_bytes(path) == GOOD
    if name == "a":
        return
    damaged = bytearray(data)
    for place in draw.draw(st.lists(st.integers(0, len(data) - 1), min_size=1, max_size=9)):
        damaged[place] ^= draw.draw(st.integers(1, 255))
    path.write_bytes(damaged[: draw.draw(st.integers(0, len(data)))])
    with contextlib.suppress(DataError):
        assert isinstance(read_bytes(path), bytes)


def test_a_zip_file_holds_one_file(tmp_path):
    (tmp_path / "a.zip").write_bytes(zipped(one=b"1", two=b"2"))
    with pytest.raises(DataError, match=r"a.zip: a zip file must hold one file, this one holds 2"):
        read_bytes(tmp_path / "a.zip")


@pytest.mark.parametrize("unsafe", [None, "0", "1"])
@pytest.mark.parametrize("safe", [None, "0", "1"])
def test_a_library_loads_safely_too(tmp_path, monkeypatch, safe, unsafe):
    """Whatever the environment says of it, also both, which torch refuses: afterwards it says the same."""
    names = ("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")
    for name, value in zip(names, (safe, unsafe), strict=True):
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
    torch.save(Fraction(1, 3), tmp_path / "third.pt")
    with safe_loads_only(), pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "third.pt", weights_only=False)
    assert [os.environ.get(name) for name in names] == [safe, unsafe]
    torch.save({"a": 1}, tmp_path / "plain.pt")
    assert load_safely(tmp_path / "plain.pt") == {"a": 1}
    if safe != "1":
        assert torch.load(tmp_path / "third.pt", weights_only=False) == Fraction(1, 3)
