"""What fairseq-train says in its log."""

from __future__ import annotations

import json
import re
from pathlib import Path

from fairseq_ext.training.errors import DataError


def parameters(log: Path) -> int:
    """The size of the model, from fairseq's log."""
    match = re.search(r"num\. shared model params: ([\d,]+)", log.read_text(encoding="utf-8"))
    if match is None:
        raise DataError(f"{log}: has no number of parameters")
    return int(match[1].replace(",", ""))


def validation_curve(log: Path, metric: str = "nll_loss") -> list[tuple[int, float]]:
    """(update, ``metric`` of validation) from fairseq's JSON log; ``nll_loss`` is in bits per token.

    A line that a kill cut off is left out: it is written before the checkpoint, so the resumed training has it again.
    """
    points = {}  # a resumed training may validate an update again
    for line in log.read_text(encoding="utf-8").splitlines():
        start = line.find('{"epoch"')
        if start >= 0 and f'valid_{metric}"' in line:
            try:
                entry = json.loads(line[start:])
            except json.JSONDecodeError:
                continue
            points[int(entry["valid_num_updates"])] = float(entry[f"valid_{metric}"])
    return sorted(points.items())
