"""Whether trainings have learned: what keeps a table from being a better test, and the criteria that find it."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

__all__ = [
    "CUT",
    "END",
    "FLAT",
    "MOST",
    "SLOW",
    "Curve",
    "Limit",
    "cut_short",
    "last_epoch",
    "perplexities",
    "slowed",
    "unfinished",
]

FLAT = 0.01
"""Share by which a validation metric may still improve at the end of a training that has converged."""
END = 0.8
"""Share of a training after which its end begins."""
MOST = 0.5
"""Share of the trainings of an arm of which more must not be unfinished."""
CUT = 0.1
"""Share of the trainings that the last epoch, or a low learning rate, may end without a word."""
SLOW = 0.5
"""Share of the full learning rate: what still learned below it may have been ended by the rate."""

Curve = Sequence[tuple[float, float]]


class Limit(NamedTuple):
    """What keeps a table from being a better test and what that would take; after a ``decisive`` one it is none."""

    cause: Literal["method", "budget", "recipe", "data"]
    text: str
    decisive: bool = False


def unfinished(*arms: Iterable[Curve]) -> list[Limit]:
    """A decisive limit where most trainings of an arm ended before their validation loss was flat, else none.

    Each training counts by itself: one whose loss rises does not make up for one whose loss still falls. It is a limit
    as well where no training of an arm has a curve, since nothing then says that they had learned.

    Args:
        arms: the baseline, and the arm with the method: of each training the pairs (update, loss); of a metric of
            which more is better, its negative; of a likelihood its :func:`perplexities`, as a share of bits depends on
            what a bit is counted for.
    """
    moves = [[_at_the_end(curve) for curve in curves if len(curve) > 1] for curves in arms]
    if not all(moves):
        return [Limit("budget", "no validation curve was kept: measure it again, with one", True)]
    late = [[move for move in arm if move[0] > FLAT] for arm in moves]
    if all(len(own) <= MOST * len(arm) for own, arm in zip(late, moves, strict=True)):
        return []
    those, everything = ([move for arm in of for move in arm] for of in (late, moves))
    percent = 100 * statistics.fmean(share for share, _, _ in those)
    _, start, end = those[0]
    still = f"validation still improves by {percent:.1f} % after update {start:,} of {end:,}"
    return [Limit("budget", f"{still} in {len(those)} of {len(everything)} trainings: train until it is flat", True)]


def _at_the_end(curve: Curve) -> tuple[float, float, float]:
    """By which share the loss falls at the end of a training, from which update and until which.

    From the last validation before the end begins, or the first of all.
    """
    end, last = curve[-1]
    start, loss = [point for point in curve if point is curve[0] or point[0] <= END * end][-1]
    return (loss - last) / abs(loss), start, end


def cut_short(arms: Mapping[str, Sequence[dict[str, Any]]], allowed: int) -> list[Limit]:
    """Where trainings that are to end by patience were ended by the last epoch; decisive, if those are most of an arm.

    Of such a training the best metric so far is flat at its end, whatever it has learned: it is unfinished if patience
    did not end it. It is a limit as well where the epochs of an arm were not kept.

    Args:
        arms: the baseline's trainings, and those with the method.
        allowed: the last epoch allowed.
    """
    ends = {name: [end for run in runs if (end := last_epoch(run))] for name, runs in arms.items()}
    if not all(ends.values()):
        return [Limit("budget", "whether patience ended the trainings was not kept: measure it again", True)]
    cut = {name: [run for run in runs if (last_epoch(run) or 0) >= allowed] for name, runs in arms.items()}
    those = [run for runs in cut.values() for run in runs]
    decisive = any(len(runs) > MOST * len(ends[name]) for name, runs in cut.items())
    if not decisive and len(those) <= CUT * sum(map(len, ends.values())):
        return []
    sides = ", ".join(f"{len(runs)} of {len(ends[name])} {name}" for name, runs in cut.items())
    let_pass = "" if decisive else f", of which up to {100 * MOST:g} % are let pass"
    what = f"epoch {allowed:,}, the last allowed, ends trainings ({sides}{let_pass}){_risen(those)}"
    return [Limit("budget", f"{what}: allow more", decisive)]


def slowed(arms: Mapping[str, Sequence[dict[str, Any]]], rate: Callable[[int], float]) -> list[Limit]:
    """Where the best epoch of trainings came after the learning rate had fallen; decisive, if of most of an arm.

    Patience ends such a training as any other, but the rate may be what kept it from getting better. Trainings without
    a curve are passed over: :func:`cut_short` names them.

    Args:
        arms: the baseline's trainings, and those with the method.
        rate: of an epoch, as a share of the full one.
    """
    best = {name: [epoch for run in runs if (epoch := _best_epoch(run))] for name, runs in arms.items()}
    late = {name: [epoch for epoch in epochs if rate(epoch) < SLOW] for name, epochs in best.items()}
    decisive = any(len(epochs) > MOST * len(best[name]) for name, epochs in late.items())
    if not decisive and sum(map(len, late.values())) <= CUT * sum(map(len, best.values())):
        return []
    sides = ", ".join(f"{len(epochs)} of {len(best[name])} {name}" for name, epochs in late.items())
    what = f"the best epoch came after the learning rate had fallen by half ({sides})"
    return [Limit("recipe", f"{what}: a constant rate", decisive)]


def _best_epoch(run: Mapping[str, Any]) -> int | None:
    """The epoch with the best validation, of older files the first point of the curve that is as good as its end."""
    if "best_epoch" in run:
        return int(run["best_epoch"])
    return next((int(epoch) for epoch, best in run.get("curve", ()) if best == run["curve"][-1][1]), None)


def _risen(runs: Sequence[dict[str, Any]]) -> str:
    """By how much the best metric so far of trainings rose at their end, in words; nothing where it was not kept."""
    curves = [[(epoch, -best) for epoch, best in run["curve"]] for run in runs if len(run.get("curve", ())) > 1]
    if not curves:
        return ""
    percent = 100 * statistics.fmean(_at_the_end(curve)[0] for curve in curves)
    return f", in whose last {100 * (1 - END):.0f} % the best validation rises by {percent:.1f} %"


def last_epoch(run: Mapping[str, Any]) -> int | None:
    """The last epoch that a training had, of older files the last of its curve; None where neither was kept."""
    if "epochs" in run:
        return int(run["epochs"])
    return int(run["curve"][-1][0]) if run.get("curve") else None


def perplexities(curve: Curve) -> list[tuple[float, float]]:
    """Of the pairs (update, bits) the pairs (update, perplexity)."""
    return [(update, 2.0**bits) for update, bits in curve]
