"""The encouraging loss as a module, with a bonus that starts late or grows over the epochs (arXiv:2110.06537)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fairseq_ext.losses.common import is_finite, require
from fairseq_ext.losses.encouraging import encouraging_loss

__all__ = ["SCHEDULES", "EncouragingLoss", "bonus_schedule"]

# The share of the bonus at t = epoch / max_epoch in [0, 1], for a steepness r.
SCHEDULES: dict[str, Callable[[float, float], float]] = {
    "none": lambda t, r: 1.0,
    "linear": lambda t, r: t,
    "exp": lambda t, r: math.exp((t - 1) * r) if r > 0 else 1 - math.exp(t * r),
    "cos": lambda t, r: (1 + math.cos(math.pi * (1 + t))) / 2,
}


def bonus_schedule(epoch: int, max_epoch: int, schedule: str = "linear", ratio: float = 5.0) -> float:
    """Share of the bonus at ``epoch``, with ``t = epoch / max_epoch`` and at most 1.

    ``"linear"``: t. ``"exp"``: exp((t - 1) ratio) for a positive ratio, a late start; 1 - exp(t ratio) for a negative
    one, an early start. ``"cos"``: (1 + cos(pi (1 + t))) / 2. ``"none"``: 1.

    Raises:
        ValueError: another schedule, a negative epoch, no epoch at all, or a ratio of 0, which would be no bonus.
    """
    require("schedule", schedule, schedule in SCHEDULES, f"one of {tuple(SCHEDULES)}")
    require("ratio", ratio, is_finite(ratio) and ratio != 0, "a finite number other than 0")
    require("epoch", epoch, epoch >= 0, "at least 0")
    require("max_epoch", max_epoch, max_epoch > 0, "above 0")
    return SCHEDULES[schedule](min(epoch / max_epoch, 1.0), ratio)


class EncouragingLoss(nn.Module):
    """Module form of :func:`encouraging_loss`, with a bonus that may start late or grow over the epochs.

    Args:
        weight, ignore_index, reduction, label_smoothing, log_end: as :func:`encouraging_loss`.
        defer_start: no bonus up to and including this epoch, as :meth:`set_epoch` counts them. Default 0.
        schedule: ``"none"``, ``"linear"``, ``"exp"`` or ``"cos"``; see :func:`bonus_schedule`.
        schedule_of: what grows: ``"bonus_weight"`` or ``"log_end"``.
        schedule_ratio: steepness of ``"exp"``.
        max_epoch: the epoch at which a schedule reaches its end; every schedule needs it.
        **options: the keyword-only options of :func:`encouraging_loss`.

    Without a call of :meth:`set_epoch` the bonus is at its full strength.

    Example:
        >>> criterion = EncouragingLoss(log_end=0.5, defer_start=25)
        >>> criterion.set_epoch(26)
        >>> loss = criterion(torch.randn(3, 5), torch.tensor([1, 0, 4]))
    """

    def __init__(
        self,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        log_end: float = 0.75,
        *,
        defer_start: int = 0,
        schedule: str = "none",
        schedule_of: str = "bonus_weight",
        schedule_ratio: float = 5.0,
        max_epoch: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        require("schedule", schedule, schedule in SCHEDULES, f"one of {tuple(SCHEDULES)}")
        scheduled = schedule != "none"
        require("schedule_of", schedule_of, schedule_of in ("bonus_weight", "log_end"), "'bonus_weight' or 'log_end'")
        require("schedule_of", schedule_of, scheduled or schedule_of == "bonus_weight", "left alone without a schedule")
        is_log = options.get("bonus", "log") == "log"
        require(
            "schedule_of", schedule_of, is_log or schedule_of == "bonus_weight", "'bonus_weight' unless bonus='log'"
        )
        require("schedule_ratio", schedule_ratio, is_finite(schedule_ratio) and schedule_ratio != 0, "not 0")
        require("schedule_ratio", schedule_ratio, schedule == "exp" or schedule_ratio == 5, "5 unless schedule='exp'")
        positive = max_epoch is not None and max_epoch > 0
        require("max_epoch", max_epoch, positive == scheduled, "a positive number with a schedule, None without one")
        require("defer_start", defer_start, defer_start >= 0, "at least 0")
        self.weight: Tensor | None
        self.register_buffer("weight", weight)
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.label_smoothing = label_smoothing
        self.log_end = log_end
        self.defer_start = defer_start
        self.schedule = schedule
        self.schedule_of = schedule_of
        self.schedule_ratio = schedule_ratio
        self.max_epoch = max_epoch
        self.options = options
        self.epoch: int | None = None
        # A wrong option is an error here, not at the first batch.
        dummy = torch.zeros(1, 2), torch.zeros(1, dtype=torch.long)
        encouraging_loss(*dummy, None, ignore_index, reduction, label_smoothing, log_end, **options)

    def set_epoch(self, epoch: int) -> None:
        """Tell the loss which epoch runs."""
        self.epoch = epoch

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        current = {"bonus_weight": self.options.get("bonus_weight", 1.0), "log_end": self.log_end}
        if self.epoch is not None:
            if self.defer_start and self.epoch <= self.defer_start:
                current["bonus_weight"] = 0.0
            if self.max_epoch and self.schedule != "none":
                share = bonus_schedule(self.epoch, self.max_epoch, self.schedule, self.schedule_ratio)
                current[self.schedule_of] *= share
        return encouraging_loss(
            input,
            target,
            self.weight,
            self.ignore_index,
            self.reduction,
            self.label_smoothing,
            **{**self.options, **current},
        )

    def extra_repr(self) -> str:
        names = ["reduction", "label_smoothing", "log_end"]
        if self.defer_start:
            names.append("defer_start")
        if self.schedule != "none":
            names += ["schedule", "schedule_of", "max_epoch"]
        shown = {name: getattr(self, name) for name in names} | self.options
        return ", ".join(f"{name}={value!r}" for name, value in shown.items())
