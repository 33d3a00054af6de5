"""fairseq's programs in every number format: the combination of all methods trains, resumes and translates."""

from __future__ import annotations

import re
import socket

import pytest
import torch

from tests.gpu.tiny_fairseq import TinyFairseq, logged
from tests.test_end_to_end import USER_DIR, updates

pytestmark = pytest.mark.gpu

FORMATS = ("", "--fp16", "--memory-efficient-fp16", "--bf16", "--memory-efficient-bf16", "--amp")
DRY = ("--memory-efficient-fp16", "--bf16")  # --fp16 keeps its float32 weights on a GPU
SCALED = {"--fp16", "--memory-efficient-fp16", "--amp"}
# Relative, of a loss: its mean over a batch averages roundings out.
TOLERANCE = {"": 1e-3, "--fp16": 1e-2, "--memory-efficient-fp16": 1e-2, "--amp": 1e-2}
TOLERANCE |= {"--bf16": 3e-2, "--memory-efficient-bf16": 3e-2}
UPDATES = 4


def words(number_format: str) -> list[str]:
    """Starting from a scale that no gradient exceeds, so that no update is skipped."""
    scale = {"--amp": ["--amp-init-scale", "4"]}.get(number_format, ["--fp16-init-scale", "4"])
    return [number_format, *(scale if number_format in SCALED else [])] if number_format else []


@pytest.fixture(scope="module")
def reference(fairseq: TinyFairseq) -> list[dict[str, float]]:
    return fairseq.train("cpu", UPDATES, "--cpu", "--disable-validation")


@pytest.mark.parametrize("number_format", FORMATS)
def test_trains_as_on_the_cpu_and_resumes(
    number_format: str, fairseq: TinyFairseq, reference: list[dict[str, float]]
) -> None:
    """Losses of every update near those of the CPU in float32, and the resumed training's near the straight one's."""
    if fairseq.device.dry_run and number_format not in DRY:
        pytest.skip("a dry run tries two number formats")
    folder = f"straight{number_format}"
    bleu = ("--eval-bleu", "--eval-bleu-args", '{"beam": 2, "max_len_b": 6}')
    saving = ("--save-interval-updates", UPDATES // 2)
    straight = fairseq.train(folder, UPDATES, *words(number_format), *bleu, *saving)
    losses = [update["loss"] for update in straight]
    tolerance = TOLERANCE[number_format]
    assert losses == pytest.approx([update["loss"] for update in reference], rel=tolerance)
    assert losses[-1] < losses[0]

    middle = f"{folder}/checkpoint_1_{UPDATES // 2}.pt"
    command = (*words(number_format), "--disable-validation", "--restore-file", middle)
    rest = fairseq.train(f"resumed{number_format}", UPDATES, *command)
    assert [int(update["num_updates"]) for update in rest] == [*range(UPDATES // 2 + 1, UPDATES + 1)]
    for update, expected in zip(rest, straight[UPDATES // 2 :], strict=True):
        assert update["loss"] == pytest.approx(expected["loss"], rel=tolerance)
        assert update.get("loss_scale") == expected.get("loss_scale")


@pytest.fixture(scope="module")
def trained(fairseq: TinyFairseq) -> str:
    fairseq.train("trained", 20, "--disable-validation")
    return "trained/checkpoint_last.pt"


def translations(fairseq: TinyFairseq, trained: str, *options: str) -> dict[str, str]:
    command = ("data-bin", "--user-dir", USER_DIR, "--path", trained, "--beam", "3", *options)
    outcome = fairseq.must("fairseq_cli.generate", *command)
    return dict(re.findall(r"^H-(\d+)\t\S+\t(.*)$", outcome.stdout, re.MULTILINE))


@pytest.mark.parametrize("options", [(), ("--fp16",)], ids=["float32", "fp16"])
def test_generates_what_the_cpu_does(options: tuple[str, ...], fairseq: TinyFairseq, trained: str) -> None:
    expected = translations(fairseq, trained, "--cpu")
    got = translations(fairseq, trained, *fairseq.device.flags, *options)
    assert got.keys() == expected.keys() and len(got) == 13
    equal = sum(got[number] == expected[number] for number in got)
    assert equal >= (13 if not options else 10)  # hypotheses of nearly equal scores may change places


def test_two_processes_share_a_gpu(fairseq: TinyFairseq, reference: list[dict[str, float]]) -> None:
    """Each with half of every batch, by gloo; NCCL refuses two processes on one card."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    options = ["--ddp-backend", "legacy_ddp", "--distributed-backend", "gloo", "--distributed-world-size", "2"]
    options += ["--distributed-no-spawn", "--distributed-init-method", address, "--batch-size", "2"]
    command = fairseq.training("two", UPDATES, *options, "--disable-validation")
    ranks = fairseq.must_together([[*command, "--distributed-rank", rank] for rank in (0, 1)])
    assert updates(fairseq.folder / "two" / "checkpoint_last.pt") == UPDATES
    losses = [update["loss"] for update in logged(ranks[0])]
    assert len(losses) == UPDATES and losses[-1] < losses[0]
    # other sentences come together in a batch, of the same mean length
    assert losses[0] == pytest.approx(reference[0]["loss"], rel=0.1)
    assert torch.isfinite(torch.tensor(losses)).all()
