"""``fairseq-train`` with ``--fused-output-loss``: the losses, the metrics and the parameters are those without."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.fairseq_commands import FairseqCommands, FairseqServer, Outcome
from tests.test_end_to_end import PAIRS, TINY, USER_DIR

UPDATES = 3
# SGD, as Adam makes of a gradient that is 0 but for rounding, that of a key's bias, a step of full length.
TRANSLATION = ["--arch", "transformer_ext", *TINY]
ARCHITECTURES = {
    "untied": TRANSLATION,
    "tied": [*TRANSLATION, "--share-decoder-input-output-embed"],
    "shared": [*TRANSLATION, "--share-all-embeddings"],
    "language model": [
        *("--task", "language_modeling", "--arch", "transformer_lm_ext", "--tokens-per-sample", "16"),
        *("--decoder-embed-dim", "16", "--decoder-input-dim", "16", "--decoder-output-dim", "16"),
        *("--decoder-layers", "1", "--decoder-ffn-embed-dim", "16", "--decoder-attention-heads", "2"),
    ],
}
OPTIONS = [
    *("--user-dir", USER_DIR, "--criterion", "label_smoothed_encouraging_loss", "--label-smoothing", "0.1"),
    *("--report-accuracy", "--dropout", "0", "--optimizer", "sgd", "--lr", "0.2", "--batch-size", "8", "--cpu"),
    *("--max-update", UPDATES, "--no-epoch-checkpoints", "--num-workers", "0", "--log-format", "json"),
    *("--log-interval", "1"),
]
METRICS = {"loss", "nll_loss", "bonus", "accuracy", "ppl"}


class Workshop(FairseqCommands):
    """Sentence pairs with one dictionary for both languages, and one side of them as a text."""

    def __init__(self, folder: Path, server: FairseqServer) -> None:
        super().__init__(folder, server)
        for side, language in enumerate(("de", "en")):
            lines = [pair.split("|")[side] + "\n" for pair in PAIRS.splitlines()]
            (folder / f"train.{language}").write_text("".join(lines), encoding="utf-8")
            (folder / f"valid.{language}").write_text("".join(lines[:5]), encoding="utf-8")
        sets = ("--trainpref", "train", "--validpref", "valid")
        self.must("fairseq_cli.preprocess", "-s", "de", "-t", "en", "--joined-dictionary", *sets, "--destdir", "pairs")
        sets = ("--trainpref", "train.en", "--validpref", "valid.en")
        self.must("fairseq_cli.preprocess", "--only-source", *sets, "--destdir", "text")

    def command(self, name: str, folder: str, *options: object) -> tuple[object, ...]:
        data = "text" if name == "language model" else "pairs"
        return ("fairseq_cli.train", data, *ARCHITECTURES[name], *OPTIONS, "--save-dir", folder, *options)

    def parameters(self, folder: str) -> dict[str, Tensor]:
        return torch.load(self.folder / folder / "checkpoint_last.pt", weights_only=False)["model"]


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory, fairseq_server: FairseqServer) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("fused"), fairseq_server)


def metrics(outcome: Outcome) -> list[dict[str, float]]:
    """What the log says about each update and about the validation."""
    lines = re.findall(r"\b(?:train_inner|valid)(?: \| |:)(\{.*\})$", outcome.output, re.MULTILINE)
    parts = ({key.removeprefix("valid_"): float(v) for key, v in json.loads(line).items()} for line in lines)
    return [{key: value for key, value in part.items() if key in METRICS} for part in parts]


def assert_same_training(workshop: Workshop, fused: Outcome, apart: Outcome, folders: tuple[str, str]) -> None:
    logs = metrics(fused), metrics(apart)
    assert len(logs[0]) == UPDATES + 1 and all(set(part) == METRICS for part in logs[0])
    for ours, theirs in zip(*logs, strict=True):
        assert ours == pytest.approx(theirs, abs=0.0015)  # three digits are shown
    parameters = (workshop.parameters(folder) for folder in folders)
    torch.testing.assert_close(*parameters, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["untied", "shared", "language model"])
def test_trains_as_without(name: str, workshop: Workshop) -> None:
    folders = f"{name} fused", f"{name} apart"
    commands = [workshop.command(name, folders[0], "--fused-output-loss"), workshop.command(name, folders[1])]
    assert_same_training(workshop, *workshop.must_together(commands), folders)


def test_two_processes_train_as_without(workshop: Workshop) -> None:
    outcomes, folders = [], ("two fused", "two apart")
    for folder, option in zip(folders, (["--fused-output-loss"], []), strict=True):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
        world = ("--ddp-backend", "legacy_ddp", "--distributed-backend", "gloo", "--distributed-world-size", "2")
        world += ("--distributed-no-spawn", "--distributed-init-method", address)
        commands = [workshop.command("untied", folder, *option, *world, "--distributed-rank", rank) for rank in (0, 1)]
        outcomes.append(workshop.must_together(commands)[0])
    assert_same_training(workshop, *outcomes, folders)


def test_half_precision_trains(workshop: Workshop) -> None:
    half = ("--memory-efficient-fp16", "--fp16-init-scale", "4", "--optimizer", "adam", "--lr", "0.01")
    losses = [
        update["loss"]
        for update in metrics(workshop.must(*workshop.command("tied", "half", "--fused-output-loss", *half)))
    ]
    assert len(losses) == UPDATES + 1 and losses[-1] < losses[0]


def test_an_adaptive_softmax_is_refused_by_name(workshop: Workshop) -> None:
    adaptive = ("--fused-output-loss", "--adaptive-softmax-cutoff", "10,20")
    outcome = workshop.run(*workshop.command("untied", "adaptive", *adaptive))
    assert outcome.code == 2 and "--adaptive-softmax-cutoff" in outcome.last_line
    assert not (workshop.folder / "adaptive" / "checkpoint_last.pt").exists()
