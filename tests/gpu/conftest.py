"""What the GPU tests share: the device, which is the CPU in a dry run, and the number formats."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.fairseq_commands import FairseqServer
from tests.gpu.devices import Device
from tests.gpu.tiny_fairseq import TinyFairseq


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> Device:
    return Device(dry_run=request.config.getoption("dry_run"))


@pytest.fixture(params=["float32", "float16", "bfloat16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return getattr(torch, request.param)


@pytest.fixture(autouse=True)
def exact_float32() -> Iterator[None]:
    """TensorFloat-32 has ten bits of mantissa: torch keeps it out of products by default, but not of convolutions."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.fixture(scope="module")
def fairseq(tmp_path_factory: pytest.TempPathFactory, fairseq_server: FairseqServer, device: Device) -> TinyFairseq:
    return TinyFairseq(tmp_path_factory.mktemp("fairseq"), fairseq_server, device)
