"""What fairseq-train says in its log."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from fairseq_ext.training.errors import DataError


def parameters(log: Path) -> int:
    """The size of the model, from fairseq's log."""
    match = re.search(r"num\. shared model params: ([\d,]+)", log.read_text(encoding="utf-8"))
    if match is None:
        raise DataError(f"{log}: has no number of parameters")
    return int(match[1].replace(",", ""))


def log_records(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """The JSON records among the lines of a ``--log-format json`` log.

    Training reports ``num_updates``, a validation ``valid_num_updates``, the end of an epoch ``train_num_updates``.
    A line that a kill cut off is left out: it is written before the checkpoint, so the resumed training has it again.
    """
    for line in lines:
        start = line.rfind('{"epoch"')
        if start >= 0:
            with suppress(json.JSONDecodeError):
                yield json.loads(line[start:])


def curve(log: Path, value: str, step: str) -> list[tuple[int, float]]:
    """(``step``, ``value``) of each record that has both; a resumed training logs some twice: the later one counts."""
    with log.open(encoding="utf-8") as lines:
        points = {int(r[step]): float(r[value]) for r in log_records(lines) if {step, value} <= r.keys()}
    return sorted(points.items())


def validation_curve(log: Path, metric: str = "nll_loss") -> list[tuple[int, float]]:
    """(update, ``metric`` of validation) from fairseq's JSON log; ``nll_loss`` is in bits per token."""
    return curve(log, f"valid_{metric}", "valid_num_updates")
