"""Settings for the whole suite: one thread (the tests run in parallel processes), no hypothesis deadline; GPU tests;
what runs fairseq's commands."""

from __future__ import annotations

import gc
import os
import types

gc.disable()  # until all is imported and collected: a quarter of the time that this takes
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Generator, Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

from tests.fairseq_commands import FairseqServer

if not torch.cuda.is_available():
    # Before anything imports Triton, which decorates functions of its own then: kernels are interpreted in these tests.
    os.environ["TRITON_INTERPRET"] = "1"
    # After each training accelerate collects garbage, which walks all that was imported: a tenth of a trainer's tests.
    import accelerate.utils.memory  # here, as a machine with a GPU may lack it

    accelerate.utils.memory.gc = types.SimpleNamespace(collect=int)
torch.set_num_threads(1)
os.fsync = lambda descriptor: None  # a disk takes its time, and no test is about power failures
settings.register_profile(
    "suite", deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
settings.load_profile("suite")


def pytest_addoption(parser: pytest.Parser) -> None:
    help = "run the tests marked gpu on the CPU, without the GPU's kernels: shows only that they work"
    parser.addoption("--dry-run", action="store_true", help=help)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("dry_run") or torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="no GPU (--dry-run runs it on the CPU)")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


@pytest.fixture(scope="session")
def fairseq_server() -> Iterator[FairseqServer]:
    server = FairseqServer()
    yield server
    server.close()


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What was imported and collected lives to the end: no collection of garbage walks it."""
    outcome = yield
    gc.collect()
    gc.freeze()
    gc.enable()
    return outcome


def pytest_unconfigure() -> None:
    gc.unfreeze()  # else nanobind, in Triton, reports what is still there when Python ends
