"""fairseq's programs with the plugin, each with its output in a log."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

from examples.results.report import ROOT

PLUGIN = ["--user-dir", str(ROOT / "fairseq_ext")]
# One card, of however many: fairseq would take all, and with them as many times the sentences of an update.
DEVICE_OPTIONS = {"cuda": ["--fp16", "--distributed-world-size", "1"], "cpu": ["--cpu"]}


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def run(command: list[str], log: Path) -> None:
    """``python -m COMMAND``.

    Args:
        command: a module and its words.
        log: what its output is added to; a resumed training goes on in the same log.

    Raises:
        SystemExit: it fails; with the last line of its output.
    """
    with log.open("a", encoding="utf-8") as output:
        done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
    if done.returncode:
        last = log.read_text(encoding="utf-8", errors="replace").strip().rpartition("\n")[2]
        raise SystemExit(f"error: {command[0]} ended with code {done.returncode}: {last}; its output is in {log}")


def train(options: list[str], data: Path, folder: Path) -> Path:
    """The best checkpoint by validation; a killed training is resumed.

    Args:
        options: of fairseq-train.
        data: prepared data.
        folder: of checkpoints and ``train.log``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    run(["fairseq_cli.train", str(data), *PLUGIN, "--save-dir", str(folder), *options], folder / "train.log")
    return folder / "checkpoint_best.pt"


def generate(options: list[str], data: Path, checkpoint: Path, file: Path) -> Path:
    """What fairseq-generate prints about the test set.

    Args:
        options: of the search.
        data: prepared data.
        checkpoint: of the model.
        file: for the output; an earlier one is replaced.
    """
    file.unlink(missing_ok=True)
    best = ["--gen-subset", "test", "--path", str(checkpoint)]
    run(["fairseq_cli.generate", str(data), *PLUGIN, *best, *options], file)
    return file


def discard(folder: Path) -> None:
    """Remove the checkpoints of a training whose row is complete."""
    for checkpoint in folder.glob("checkpoint*.pt"):
        checkpoint.unlink()
