"""Every public block and loss, forward and backward, against the CPU in double precision."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from tests.blocks import Block, blocks
from tests.gpu.devices import Device, assert_near
from tests.test_blocks import with_gradients

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("block", blocks(), ids=str)
def test_block(block: Block, dtype: torch.dtype, device: Device) -> None:
    block = replace(block, function=copy.deepcopy(block.function))  # as its parameters get rounded
    rounded = device.put(block.inputs, dtype)
    function = block.to(dtype, device.name)
    outputs, grads = with_gradients(block, function, rounded)
    assert {x.device.type for x in (*outputs, *grads) if x is not None} == {device.name}
    wide = Device(dry_run=True).put(rounded, torch.float64)
    expected = with_gradients(block, block.to(torch.float64, "cpu"), wide)
    assert_near((outputs, grads), expected, dtype)
