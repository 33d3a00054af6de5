"""The bonus ``B(p)`` of the encouraging loss: its forms, and where it starts and ends.

Zhao et al., "Well-classified Examples are Underestimated in Classification with Deep Neural Networks",
arXiv:2110.06537.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from fairseq_ext.losses.common import log_complement, require
from fairseq_ext.precision import compute_dtype

__all__ = ["Bonus", "plain_terms", "tangent"]


@dataclass(frozen=True)
class Bonus:
    r"""The shape of the bonus, a function of the probability p of a class that falls from 0.

    ============  ==================================================================================
    ``bonus``     :math:`B(p)`
    ============  ==================================================================================
    ``"log"``     :math:`\log(1 - \rho p)` up to :math:`\rho p =` ``log_end``, and its tangent beyond
    ``"power"``   :math:`-p^\gamma`
    ``"cosine"``  :math:`\cos(\pi p) - 1`
    ============  ==================================================================================

    Args:
        log_end, bonus, bonus_power, bonus_start, bonus_end, subsample, bonus_clamp: as
            :func:`~fairseq_ext.losses.encouraging_loss`, with its defaults.

    Raises:
        ValueError: an option out of its range, or one that the form does not have.
    """

    log_end: float = 0.75
    bonus: str = "log"
    bonus_power: float = 1.0
    bonus_start: float = 0.0
    bonus_end: float | None = None
    subsample: float = 1.0
    bonus_clamp: float = 1e-5

    def __post_init__(self) -> None:
        require("log_end", self.log_end, 0 <= self.log_end <= 1, "in [0, 1]")
        require("bonus", self.bonus, self.bonus in _FORMS, f"one of {tuple(_FORMS)}")
        require("bonus_power", self.bonus_power, 0 < self.bonus_power < math.inf, "above 0")
        require("bonus_start", self.bonus_start, 0 <= self.bonus_start < 1, "in [0, 1)")
        end = self.bonus_end
        require(
            "bonus_end", end, end is None or self.bonus_start < end <= 1, "above bonus_start and at most 1, or None"
        )
        require("subsample", self.subsample, 0 < self.subsample <= 1, "in (0, 1]")
        require("bonus_clamp", self.bonus_clamp, 0 <= self.bonus_clamp < 0.5, "in [0, 0.5)")
        for item in fields(self):
            form, value = _FORM_OF.get(item.name, self.bonus), getattr(self, item.name)
            idle = value != item.default and form != self.bonus
            require(item.name, value, not idle, f"{item.default} unless bonus={form!r}")

    @property
    def is_plain_log(self) -> bool:
        """Whether the closed form of :mod:`~fairseq_ext.losses.log_bonus` computes it."""
        return self.bonus == "log" and self.bonus_start == 0 and self.bonus_end is None and self.subsample == 1

    @property
    def is_unbounded(self) -> bool:
        """Whether ``B(p)`` falls without end as p goes to 1."""
        whole = self.subsample == 1 and self.bonus_end in (None, 1)
        return self.bonus == "log" and self.log_end == 1 and self.bonus_clamp == 0 and whole

    def __call__(self, log_p: Tensor) -> Tensor:
        """``B(p)`` of every class, from the log-probabilities ``(N, C)``, in plain autograd operations."""
        form, form_at = _FORMS[self.bonus]
        p, value = log_p.exp(), form(self, log_p)
        if self.bonus_start > 0:
            # Every form falls, so that this is 0 below bonus_start, also where p in few digits is already 1.
            value = (value - form_at(self, self.bonus_start)).clamp(max=0.0)
        return value if self.bonus_end is None else value.masked_fill(p > self.bonus_end, 0.0)


def plain_terms(
    logits: Tensor, probabilities: Tensor, off: float, off_bonus: float, bonus: Bonus, weight: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Cross-entropy and bonus of rows, ``(N)`` each, in plain autograd operations.

    Args:
        logits: ``(N, C)``.
        probabilities: of the target, ``(N, C)``, in the dtype of the computation.
        off, off_bonus: what smoothing gives to every class, in the cross-entropy and in the bonus.
        bonus: its shape.
        weight: of the classes, ``(C)``.
    """
    classes = logits.size(-1)
    log_p = F.log_softmax(logits, -1, dtype=compute_dtype(logits))
    terms = []
    for per_class, amount in ((-log_p, off), (bonus(log_p), off_bonus)):
        q = probabilities * (1 - classes * amount) + amount
        if weight is not None:
            q = q * weight.to(q.dtype)
        # 0 * log 0 = 0
        terms.append((q * per_class.masked_fill(q == 0, 0.0)).sum(-1))
    return terms[0], terms[1]


def _log(shape: Bonus, log_p: Tensor) -> Tensor:
    p, log_end = log_p.exp(), shape.log_end
    x = shape.subsample * p
    value = torch.log1p(-x) if shape.subsample < 1 else log_complement(log_p, p)
    if log_end == 1:
        return value.clamp(min=math.log(shape.bonus_clamp)) if shape.bonus_clamp > 0 else value
    return torch.where(value < math.log1p(-log_end), tangent(log_end, x, value.exp()), value)


def tangent(log_end: float, p: Tensor, q: Tensor) -> Tensor:
    """The log bonus for ``p >= log_end``, from p and ``q = 1 - p``, whichever of them has more digits."""
    beyond = 1 - q / (1 - log_end)
    if log_end < 0.5:
        beyond = torch.where(p < 0.5, (p - log_end) / (1 - log_end), beyond)
    return math.log1p(-log_end) - beyond


def _log_at(shape: Bonus, p: float) -> float:
    x, log_end = shape.subsample * p, shape.log_end
    if log_end == 1:
        return math.log(max(1 - x, shape.bonus_clamp))
    return math.log1p(-min(x, log_end)) - max(x - log_end, 0.0) / (1 - log_end)


def _power(shape: Bonus, log_p: Tensor) -> Tensor:
    return -(shape.bonus_power * log_p).exp()  # the gradient of pow(0, power) is infinite for a power below 1


def _power_at(shape: Bonus, p: float) -> float:
    return -(p**shape.bonus_power)


def _cosine(shape: Bonus, log_p: Tensor) -> Tensor:
    return (math.pi * log_p.exp()).cos() - 1


def _cosine_at(shape: Bonus, p: float) -> float:
    return math.cos(math.pi * p) - 1


# B of every class, and B at one probability.
_FORMS: dict[str, tuple[Callable[[Bonus, Tensor], Tensor], Callable[[Bonus, float], float]]] = {
    "log": (_log, _log_at),
    "power": (_power, _power_at),
    "cosine": (_cosine, _cosine_at),
}
# The one form that has an option; the others do nothing with it.
_FORM_OF = {"log_end": "log", "subsample": "log", "bonus_clamp": "log", "bonus_power": "power"}
