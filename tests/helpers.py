"""Shared by the tests: golden fixtures, where the optional data sets live, and the options of a program."""

from __future__ import annotations

import argparse
import functools
import gzip
import io
import itertools
import os
import re
import shlex
import tarfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden"
DATA = Path(os.environ.get("FAIRSEQ_EXT_DATA", ROOT.parent / "shared" / "data"))


def python_path() -> str:
    """Where Python looks first in a process of its own: this tree, then where it does by itself."""
    return os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])


@functools.cache
def golden_files(method: str) -> dict[str, bytes]:
    """Every file of ``tests/golden/<method>.tar.xz``: arrays compress far better together than one file at a time."""
    with tarfile.open(GOLDEN / f"{method}.tar.xz") as archive:
        return {member.name: archive.extractfile(member).read() for member in archive}


def golden_names(method: str, prefix: str = "") -> list[str]:
    """The fixtures of ``method`` whose name starts with ``prefix``; never empty, so that a typo cannot skip a test."""
    files = [Path(name) for name in golden_files(method) if name.startswith(prefix)]
    names = sorted(file.stem for file in files if file.suffix == ".npz")
    assert names, f"no fixture matches {prefix}*.npz in tests/golden/{method}.tar.xz"
    return names


def load_golden(method: str, name: str) -> dict[str, np.ndarray]:
    """Every array of one fixture (``allow_pickle`` stays off)."""
    with np.load(io.BytesIO(golden_files(method)[f"{name}.npz"])) as archive:
        return {key: archive[key] for key in archive.files}


def require_data(name: str) -> Path:
    """The folder of a real data set, or skip the test where it is not on this machine."""
    folder = DATA / name
    if not folder.is_dir():
        pytest.skip(f"data set {name} is not at {folder} (set FAIRSEQ_EXT_DATA)")
    return folder


def damaged_texts(good: bytes) -> dict[str, bytes]:
    """What users have in place of a text file: each of these, with the suffix in its name, must be refused by name.

    Args:
        good: a file that is read without complaint, of at least two lines.
    """
    packed = gzip.compress(good, compresslevel=0)
    middle = bytearray(packed)
    middle[10] ^= 6  # another kind of block: zlib itself stops
    return {
        "latin-1": good + "caf\u00e9\n".encode("latin-1"),
        "utf-16": good.decode().encode("utf-16"),
        "binary": good + bytes(range(256)),
        "damaged.gz": bytes(middle),
        "checksum.gz": packed[:-8] + b"\0" * 8,
        "truncated.gz": packed[: len(packed) // 2],
        "header only.gz": packed[:5],
        "plain text.gz": good,
        "gzip without its suffix, truncated": packed[: len(packed) // 2],
    }


class Row(NamedTuple):
    """A value that differs from the default, what must be given with it to have an effect, and where it has none."""

    value: str = ""
    given: str = ""
    idle: tuple[str, ...] = ()


SHARED = ("help", "config", "quiet")


def options_of(parser: argparse.ArgumentParser) -> dict[str, dict[str, argparse.Action]]:
    """The options of every command of a program by name, without those that all commands have."""
    return {
        name: {action.dest: action for action in command._actions if action.dest not in SHARED}
        for name, command in forms_of(parser).items()
    }


def forms_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The parser of every command of a program by name; the name of an only one is empty."""
    several = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return several[0].choices if several else {"": parser}


def words_of(action: argparse.Action, value: str = "") -> list[str]:
    """What gives an option ``value`` on the command line, or what changes a switch."""
    if not action.option_strings:
        return [value]
    return [action.option_strings[-1 if action.default is True else 0], *([value] if value else [])]


def pasted(text: str) -> list[list[str]]:
    """The commands of a text, each as the words that a shell gives it, up to where its output is redirected."""
    text = text.replace("\\\n", " ").replace("$(fairseq-ext user-dir)", str(ROOT / "fairseq_ext"))
    commands = filter(None, (shlex.split(line, comments=True) for line in text.splitlines()))
    return [list(itertools.takewhile(lambda word: word not in (">", "2>&1", "|", "&&"), words)) for words in commands]


def python_blocks(page: str) -> list[str]:
    """The Python code of a page of documentation."""
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)


def refuses_second_derivative(function, *inputs, match: str) -> None:
    """That a derivative of the gradient is an error, by any input and beside another path to it."""
    import torch

    for wrt in inputs:
        (grad,) = torch.autograd.grad(function(*inputs).sum(), inputs[0], create_graph=True)
        other = inputs[0].sum() * wrt.sum()
        with pytest.raises(RuntimeError, match=f"no second derivative.*{match}"):
            torch.autograd.grad(grad.sum() + other, wrt, materialize_grads=True, allow_unused=True)


def refuses_batched_gradients(function, *inputs, match: str) -> None:
    """That gradients of many outputs at once, which have no memory, are an error in one line."""
    import torch

    out = function(*inputs)
    with pytest.raises(RuntimeError, match=f"^no gradients of many outputs at once .*{match}") as error:
        torch.autograd.grad(out, inputs, torch.ones(2, *out.shape, device=out.device), is_grads_batched=True)
    assert "\n" not in str(error.value)
