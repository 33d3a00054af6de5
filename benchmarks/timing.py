"""How everything here is measured: interleaved repetitions, and the median of the ratios of neighbours."""

from __future__ import annotations

import contextlib
import gc
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

Function = Callable[[], object]
MIN_SAMPLE_SECONDS = 0.02

# The profiler otherwise reports each start and stop on stderr.
os.environ.setdefault("KINETO_LOG_LEVEL", "6")


@dataclass(frozen=True)
class Row:
    """One comparison. ``ratio`` is ours / reference; ``target`` bounds it, from below where more is better.

    For times, ``ratio`` is the median ratio over pairs of neighbouring samples, ``low`` and ``high`` are the smallest
    and the largest of these ratios, and ``ours`` and ``reference`` are medians of the same samples. The quotient of
    these two medians lies between ``low`` and ``high``, but need not equal ``ratio``.
    """

    case: str
    ours: float
    reference: float
    unit: str
    ratio: float
    target: float | None = None
    low: float | None = None
    high: float | None = None
    pairs: int = 1
    claim: str = ""
    """Name of the file that measures it; :mod:`benchmarks.__main__` fills it in."""

    @property
    def more_is_better(self) -> bool:
        return self.unit.endswith("/s")

    @property
    def met(self) -> bool | None:
        """Whether the target holds, ``None`` without one."""
        if self.target is None:
            return None
        return self.ratio >= self.target if self.more_is_better else self.ratio <= self.target


@contextlib.contextmanager
def inputs_on(device: torch.device) -> Iterator[None]:
    """A context in which models and inputs are made on ``device``, which is hence the measured one."""
    if device.type == "cpu":
        yield
        return
    # Events, streams and counts of memory are those of the current card.
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        torch.set_default_device(device)
        try:
            yield
        finally:
            torch.set_default_device(None)


@contextlib.contextmanager
def _measuring() -> Iterator[torch.device]:
    """A context that gives the device, and in which torch's calls are not intercepted to choose one.

    The interception would cost each call some microseconds.
    """
    device = torch.get_default_device()
    torch.set_default_device(None)
    try:
        yield device
    finally:
        if device.type != "cpu":
            torch.set_default_device(device)


def on_gpu() -> bool:
    """Whether inputs are made on a GPU."""
    return torch.get_default_device().type != "cpu"


def generator(seed: int) -> torch.Generator:
    """A source of random numbers for inputs."""
    return torch.Generator(torch.get_default_device()).manual_seed(seed)


def _seconds(function: Function, calls: int, device: torch.device) -> float:
    if device.type == "cuda":  # by the clock of its stream, so that the launch of a call overlaps the work of another
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        for _ in range(calls):
            function()
        last.record()
        last.synchronize()
        return first.elapsed_time(last) / 1e3 / calls
    start = time.perf_counter()
    for _ in range(calls):
        function()
    return (time.perf_counter() - start) / calls


def _calls(function: Function, device: torch.device) -> int:
    """The number of calls in a sample, so many that the clock's resolution and cost do not matter."""
    _seconds(function, 1, device)  # the first call allocates, initialises and compiles kernels
    return max(1, math.ceil(MIN_SAMPLE_SECONDS / _seconds(function, 1, device)))


def compare(ours: Function, reference: Function, pairs: int) -> tuple[float, float, list[float]]:
    """Time both functions in turns, A B A B ..., so that a drift in the machine's speed affects both alike.

    Returns:
        Median seconds per call of ``ours`` and of ``reference``, and ours / reference of every pair.
    """
    with _measuring() as device:
        a, b = _calls(ours, device), _calls(reference, device)
        samples = [(_seconds(ours, a, device), _seconds(reference, b, device)) for _ in range(pairs)]
    a, b = (statistics.median(side) for side in zip(*samples, strict=True))
    return a, b, [a / b for a, b in samples]


def _paired_row(case: str, ours: float, reference: float, unit: str, ratios: list[float], target: float | None) -> Row:
    middle = statistics.median(ratios)
    return Row(case, ours, reference, unit, middle, target, min(ratios), max(ratios), len(ratios))


def time_row(
    case: str,
    ours: Function,
    reference: Function,
    *,
    pairs: int,
    target: float | None = None,
) -> Row:
    """A row of milliseconds per call; less is better."""
    a, b, ratios = compare(ours, reference, pairs)
    return _paired_row(case, 1e3 * a, 1e3 * b, "ms", ratios, target)


def rate_row(
    case: str,
    ours: Function,
    reference: Function,
    *,
    items: int,
    unit: str,
    pairs: int,
    target: float | None = None,
) -> Row:
    """A row of ``items`` per second; more is better."""
    a, b, ratios = compare(ours, reference, pairs)
    return _paired_row(case, items / a, items / b, unit, [1 / ratio for ratio in ratios], target)


def peak_bytes(function: Function) -> int:
    """Highest sum of the tensors alive at once during a call, beyond those alive before it.

    Every allocation of torch's allocator counts, inside operators too. So the value is exact and repeatable, unlike the
    resident size of a process. On a GPU an allocation counts as the whole block that the allocator gave it.
    """
    with _measuring() as device:
        function()
        return _cuda_peak_bytes(function) if device.type == "cuda" else _cpu_peak_bytes(function)


def _cuda_peak_bytes(function: Function) -> int:
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    function()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _cpu_peak_bytes(function: Function) -> int:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        result = function()
    del result
    events = [event for event in trace.profiler.kineto_results.events() if event.name() == "[memory]"]
    alive = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        alive += event.nbytes()
        peak = max(peak, alive)
    return peak


def memory_row(case: str, ours: Function, reference: Function, *, target: float | None = None) -> Row:
    """A row of peak MiB per call; less is better."""
    a, b = peak_bytes(ours), peak_bytes(reference)
    return Row(case, a / 2**20, b / 2**20, "MiB", a / b, target)


def forward_backward(function: Callable[..., Tensor], *inputs: Tensor) -> Function:
    """A call of ``function`` on ``inputs`` and the gradients of all of them, for one fixed upstream gradient."""
    leaves = [value.detach().clone().requires_grad_() for value in inputs]
    with torch.no_grad():
        upstream = torch.randn_like(function(*leaves))
    return lambda: torch.autograd.grad(function(*leaves), leaves, upstream)
