"""What is asked for, by an option or by the launcher, is done or refused."""

from __future__ import annotations

import pytest
import torch
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType

from fairseq_ext.training.accelerator import WRAPPERS, make_accelerator
from fairseq_ext.training.errors import OptionError
from fairseq_ext.training.flags import PRECISIONS

DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": None}
"""What a CPU computes in."""


@pytest.fixture(autouse=True)
def fresh_accelerate():
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_format_is_done_or_refused(precision):
    if DTYPES[precision] is None:
        with pytest.raises(OptionError, match=r"^--mixed-precision fp16: not on a cpu; no and bf16 are$"):
            make_accelerator(precision, device="cpu")
        return
    with make_accelerator(precision, device="cpu").autocast():
        assert torch.nn.functional.linear(torch.ones(2, 2), torch.ones(2, 2)).dtype == DTYPES[precision]


@pytest.mark.parametrize(
    ("name", "value", "refused"),
    [
        ("MIXED_PRECISION", "bf16", r"--mixed_precision bf16 .*: this command uses --mixed-precision no; change it"),
        ("GRADIENT_ACCUMULATION_STEPS", "4", r"--gradient_accumulation_steps 4 "),
        *((f"USE_{name.upper()}", "true", f"with {what}") for name, what in WRAPPERS.items()),
    ],
)
def test_what_the_launcher_asks_for_is_done_or_refused(monkeypatch, name, value, refused):
    monkeypatch.setenv(f"ACCELERATE_{name}", value)
    with pytest.raises(OptionError, match=f"^accelerate launch {refused}"):
        make_accelerator(device="cpu")


def test_what_the_launcher_asks_for_beside_the_same_option_is_done(monkeypatch):
    for name, value in {"MIXED_PRECISION": "no", "GRADIENT_ACCUMULATION_STEPS": "1", "USE_FSDP": "false"}.items():
        monkeypatch.setenv(f"ACCELERATE_{name}", value)
    assert make_accelerator("bf16", device="cpu").mixed_precision == "bf16"
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert make_accelerator("bf16", device="cpu").mixed_precision == "bf16"


def test_every_way_of_accelerate_is_known():
    """One that a version adds must be looked at: its checkpoints may not be of a whole model."""
    copies = {kind for kind in DistributedType if kind == "NO" or kind.startswith("MULTI_")} | {DistributedType.XLA}
    refused = {"FSDP", "DEEPSPEED", "MEGATRON_LM"}
    assert {kind.value for kind in set(DistributedType) - copies} == refused
    assert refused < {name.upper() for name in WRAPPERS}


@pytest.mark.parametrize("unused", [False, True])
def test_processes_wait_for_unused_parameters_unless_told(unused):
    accelerator = make_accelerator(device="cpu", unused_parameters=unused)
    assert accelerator.ddp_handler.find_unused_parameters == unused
