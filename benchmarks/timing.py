"""How everything here is measured: interleaved repetitions, and the median of the ratios of neighbours."""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable
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

    Of times, ``ratio`` is the median over pairs of neighbouring samples, ``low`` and ``high`` are the smallest and the
    largest pair, and ``ours`` and ``reference`` the medians of the same samples. The quotient of those two lies within
    ``low`` and ``high``, but need not equal ``ratio``.
    """

    claim: str
    case: str
    ours: float
    reference: float
    unit: str
    ratio: float
    target: float | None = None
    low: float | None = None
    high: float | None = None
    pairs: int = 1

    @property
    def more_is_better(self) -> bool:
        return self.unit.endswith("/s")

    @property
    def met(self) -> bool | None:
        """Whether the target holds, ``None`` without one."""
        if self.target is None:
            return None
        return self.ratio >= self.target if self.more_is_better else self.ratio <= self.target


def _seconds(function: Function, calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        function()
    return (time.perf_counter() - start) / calls


def _calls(function: Function) -> int:
    """Calls that fill a sample, so that the clock's resolution and its own cost vanish."""
    _seconds(function, 1)  # the first call allocates and initialises
    return max(1, math.ceil(MIN_SAMPLE_SECONDS / _seconds(function, 1)))


def compare(ours: Function, reference: Function, pairs: int) -> tuple[float, float, list[float]]:
    """Times A B A B ..., because a machine's speed drifts and the drift must hit both alike.

    Returns:
        Median seconds a call of ``ours`` and of ``reference``, and ours / reference of every pair.
    """
    calls_ours, calls_reference = _calls(ours), _calls(reference)
    samples = [(_seconds(ours, calls_ours), _seconds(reference, calls_reference)) for _ in range(pairs)]
    a, b = (statistics.median(side) for side in zip(*samples, strict=True))
    return a, b, [a / b for a, b in samples]


def _paired_row(
    claim: str, case: str, ours: float, reference: float, unit: str, ratios: list[float], target: float | None
) -> Row:
    middle = statistics.median(ratios)
    return Row(claim, case, ours, reference, unit, middle, target, min(ratios), max(ratios), len(ratios))


def time_row(
    claim: str,
    case: str,
    ours: Function,
    reference: Function,
    *,
    pairs: int,
    target: float | None = None,
) -> Row:
    """A row of milliseconds a call; less is better."""
    a, b, ratios = compare(ours, reference, pairs)
    return _paired_row(claim, case, 1e3 * a, 1e3 * b, "ms", ratios, target)


def rate_row(
    claim: str,
    case: str,
    ours: Function,
    reference: Function,
    *,
    items: int,
    unit: str,
    pairs: int,
    target: float | None = None,
) -> Row:
    """A row of ``items`` a second; more is better."""
    a, b, ratios = compare(ours, reference, pairs)
    return _paired_row(claim, case, items / a, items / b, unit, [1 / ratio for ratio in ratios], target)


def peak_bytes(function: Function) -> int:
    """Highest sum of the tensors alive at once during a call, beyond those alive before it.

    Counts every allocation of torch's CPU allocator, inside operators too, so it is exact and repeatable, which the
    resident size of a process is not.
    """
    function()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        result = function()
    del result
    events = [event for event in trace.profiler.kineto_results.events() if event.name() == "[memory]"]
    alive = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        alive += event.nbytes()
        peak = max(peak, alive)
    return peak


def memory_row(claim: str, case: str, ours: Function, reference: Function, *, target: float | None = None) -> Row:
    """A row of peak MiB a call; less is better."""
    a, b = peak_bytes(ours), peak_bytes(reference)
    return Row(claim, case, a / 2**20, b / 2**20, "MiB", a / b, target)


def forward_backward(function: Callable[..., Tensor], *inputs: Tensor) -> Function:
    """A call of ``function`` on ``inputs`` and the gradients of all of them, for one fixed upstream gradient."""
    leaves = [value.detach().clone().requires_grad_() for value in inputs]
    with torch.no_grad():
        upstream = torch.randn_like(function(*leaves))
    return lambda: torch.autograd.grad(function(*leaves), leaves, upstream)
