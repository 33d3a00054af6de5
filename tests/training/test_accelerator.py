"""Number formats are those that were asked for, or refused."""

from __future__ import annotations

import pytest
import torch
from accelerate.state import AcceleratorState

from fairseq_ext.training.accelerator import make_accelerator
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
