"""A reader that leaves, and Ctrl-C: no traceback, and an exit code that says which."""

from __future__ import annotations

import contextlib
import os
import sys

import pytest

from fairseq_ext.training.files import staged_folder
from fairseq_ext.training.interruption import run_command
from fairseq_ext.training.program import Program
from tests.helpers import ROOT
from tests.test_floors import SOURCES


@contextlib.contextmanager
def left(monkeypatch):
    """A standard output that nobody reads any more; no fixture, as pytest sets its own after those."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        yield
        stream.write("what Python writes at its end")
        stream.flush()


@pytest.mark.parametrize("length", [1, 2**20], ids=["buffered", "beyond the buffer"])
def test_a_reader_that_leaves_ends_a_command_quietly(monkeypatch, length, tmp_path):
    def command():
        with staged_folder(tmp_path / "out"):
            print("x" * length)
            sys.stdout.flush()

    with left(monkeypatch):
        assert run_command(command) == 0
    assert list(tmp_path.iterdir()) == []


def test_an_exit_code_outlives_the_reader(monkeypatch):
    def command():
        print("x")
        sys.exit(2)

    with left(monkeypatch), pytest.raises(SystemExit) as end:
        run_command(command)
    assert end.value.code == 2


def test_a_pipe_that_is_not_the_readers_is_an_error():
    def command():
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        run_command(command)


def test_the_exit_code_is_the_commands():
    assert [run_command(lambda: None), run_command(lambda: 1)] == [0, 1]


def stopped():
    """Stop it."""
    raise KeyboardInterrupt


def test_control_c(monkeypatch):
    assert run_command(stopped) == 130
    program = Program("some.trainer", None)
    program.command(stopped)
    monkeypatch.setattr(sys, "argv", ["trainer", "stopped"])
    with pytest.raises(SystemExit) as end:
        program()
    assert end.value.code == 130
    with pytest.raises(KeyboardInterrupt):  # not a command line: who calls it decides
        program(["stopped"])


COMMANDS = [
    path.relative_to(ROOT).as_posix()
    for path in [*SOURCES, *sorted([*ROOT.glob("examples/**/*.py"), *ROOT.glob("benchmarks/*.py")])]
    if "\nif __name__ == " in path.read_text("utf-8")
]


@pytest.mark.parametrize("path", [path for path in COMMANDS if not path.startswith("examples/results/")])
def test_every_command_line_ends_so(path):
    text = (ROOT / path).read_text("utf-8")
    writes_recipes = path == "fairseq_ext/recipes/__main__.py"  # of which nothing is read
    assert "run_command(main)" in text or "main = Program(" in text or path == "fairseq_ext/cli.py" or writes_recipes
