"""Kernels compiled for cards that are not there: what a launch on such a card would compile is compiled here.

A test file hands over a function that calls the public functions of a kernel file on CPU tensors, one call for every
variant that can be dispatched. It runs in a fresh interpreter, where a stand-in for Triton's driver says which card to
compile for and every launch ends after its compilation. So signature, constants and options are those of the launch::

    def launches(norm: ModuleType) -> Iterator[str]:
        for dtype in (torch.float16, torch.float32):
            norm.normalize(torch.zeros(4, 512, dtype=dtype), ...)
            yield f"{dtype}"  # the name of the launches since the last one


    @pytest.fixture(scope="module")
    def compiled() -> list[Compiled]:
        return compile_launches("norm", launches)
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fairseq_ext import kernels

ROOT = Path(__file__).parents[2]
CAPABILITIES = (80, 90)
SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024}
"""What a block may have on these cards (A100, H100)."""


@dataclass(frozen=True)
class Compiled:
    """One launch, compiled for one card.

    Args:
        case: what the launch was for.
        kernel: name of the Triton function.
        capability: the card, 80 or 90.
        grid: programs of the launch, in three dimensions.
        warps: warps of a program.
        shared: bytes of shared memory.
        registers: of one thread.
        stack: bytes of local memory of one thread: registers that did not fit, or an array with computed indices.
        ptx: the code.
    """

    case: str
    kernel: str
    capability: int
    grid: tuple[int, int, int]
    warps: int
    shared: int
    registers: int
    stack: int
    ptx: str

    def assert_fits(self, spilt: int = 16) -> None:
        """It can be launched, and keeps its numbers in registers, all but ``spilt`` bytes of a thread's."""
        where = f"{self.kernel}, {self.case}, sm_{self.capability}"
        assert self.shared <= SHARED_MEMORY[self.capability], f"{where}: {self.shared} bytes of shared memory"
        assert self.registers * self.warps * 32 <= 65536, f"{where}: {self.registers} registers, {self.warps} warps"
        # The assembler moves two or three out of its own accord, with registers to spare.
        assert self.stack <= spilt, f"{where}: {self.stack} bytes of registers spilt"
        limits = (2**31 - 1, 65535, 65535)
        assert all(1 <= n <= most for n, most in zip(self.grid, limits, strict=True)), f"{where}: grid {self.grid}"


def compile_launches(name: str, launches: Callable[[ModuleType], Iterator[str]]) -> list[Compiled]:
    """Every launch of ``launches(fairseq_ext.kernels.NAME)``, compiled for each of the cards."""
    pytest.importorskip("triton")
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.kernels.compiled", name, launches.__module__, launches.__qualname__]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    compiled = [Compiled(**fields) for fields in json.loads(result.stdout)]
    assert {one.capability for one in compiled} == {*CAPABILITIES}, "nothing was launched"
    return compiled


class _Card:
    """What Triton asks its driver before it compiles."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_device(self) -> int:
        return self.capability  # a number for each card, since Triton keeps what it compiled by the device

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.capability, 32)


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers and bytes of local memory of a thread."""
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    usage = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}
    return usage["REG"], usage["STACK"] + usage["LOCAL"]


def _compile(name: str, launches: Callable[[ModuleType], Iterator[str]]) -> list[Compiled]:
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    run = JITFunction.run
    fresh: list[tuple[Any, tuple[int, ...]]] = []

    def compile_only(self: Any, *args: Any, grid: tuple[int, ...], warmup: bool, **kwargs: Any) -> Any:
        kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        fresh.append((kernel, grid))
        return kernel

    JITFunction.run = compile_only
    module = kernels.load(name)
    compiled = []
    for capability in CAPABILITIES:
        driver.set_active(_Card(capability))
        for case in launches(module):
            for kernel, grid in fresh:
                registers, stack = _resources(kernel.asm["cubin"])
                compiled.append(
                    Compiled(
                        case=case,
                        kernel=kernel.metadata.name,
                        capability=capability,
                        grid=(*grid, 1, 1)[:3],
                        warps=kernel.metadata.num_warps,
                        shared=kernel.metadata.shared,
                        registers=registers,
                        stack=stack,
                        ptx=kernel.asm["ptx"],
                    )
                )
            fresh.clear()
    return compiled


if __name__ == "__main__":
    name, module, function = sys.argv[1:]
    launches = getattr(importlib.import_module(module), function)
    print(json.dumps([dataclasses.asdict(compiled) for compiled in _compile(name, launches)]))
