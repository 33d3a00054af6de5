"""Whether a student has learned all that its teachers can tell it, measured without labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fairseq_ext.training.errors import OptionError
from vision_language.muka.options import TrainingOptions

__all__ = ["FLAT", "FLOOR", "WINDOW", "converged", "refuse_too_few", "shortfall"]

WINDOW = 3
"""Validations over which the loss must be flat."""
FLAT = 0.01
"""Share of the loss by which it may still fall over these."""
FLOOR = 1e-4
"""Nats by which it may fall however small it is: no prediction changes for less."""


def converged(history: Sequence[Mapping[str, Any]], warmup: int = 0) -> bool | None:
    r"""Whether the loss on the validation texts has gone flat (our choice: the papers have no such rule).

    .. math:: \min_{j \le n - k} \ell_j - \min_{j \le n} \ell_j \le
              \max(\epsilon \, |\min_{j \le n - k} \ell_j|, \delta)

    with the losses :math:`\ell_1, \dots, \ell_n` against the teachers of the validations after the warm-up,
    :math:`k` = ``WINDOW``, :math:`\epsilon` = ``FLAT`` and :math:`\delta` = ``FLOOR``.

    Args:
        history: a mapping with ``step`` and ``loss`` for each validation.
        warmup: last step of the warm-up, in which steps are small and so are the changes. Default: 0, none.

    Returns:
        None where ``WINDOW`` validations or fewer came after the warm-up, which cannot tell.
    """
    losses = [entry["loss"] for entry in history if entry["step"] > warmup]
    before = losses[:-WINDOW]
    if not before:
        return None
    return min(before) - min(losses) <= max(FLAT * abs(min(before)), FLOOR)


def refuse_too_few(options: TrainingOptions, texts: int) -> None:
    """Refuse a training that cannot end before its last epoch, as it would have too few validations to tell.

    Args:
        texts: in an epoch.

    Raises:
        OptionError: names what would help.
    """
    per_epoch, total, warmup = options.steps(texts)
    every = options.validate_every or per_epoch
    count = len({*range(every, total, every), total} - {*range(warmup + 1)})
    if count <= WINDOW + 1:
        raise OptionError(
            f"--until-converged: has no effect with {count} validations after the warm-up, at least {WINDOW + 2} are "
            "needed: more --epochs, or --validate-every with fewer steps"
        )


def shortfall(history: Sequence[Mapping[str, Any]], verdict: bool | None) -> str:
    """The warning about a student that has not converged; empty where it has."""
    if verdict:
        return ""
    if verdict is None:
        missing = f"{len(history)} validation(s) cannot tell"
        return f"{missing} whether the student has converged: --validate-every with fewer steps, or more --epochs"
    return (
        f"the student has not converged: its validation loss, now {min(entry['loss'] for entry in history):.4g}, still "
        f"fell by more than {100 * FLAT:g} % over the last {WINDOW} validations: --until-converged with more --epochs"
    )
