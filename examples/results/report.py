"""docs/RESULTS.md from the measurements in docs/results/*.json; each part writes its own section and picture."""

from __future__ import annotations

import importlib
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from fairseq_ext.files import read_json

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "results"
PARTS = ("translation", "renode", "label_graph", "graph_classification", "iais", "muka", "benchmarks")

HEAD = """# Measured results

Written by `python -m examples.results` from `docs/results/*.json`, which hold every run with its settings, hardware and
library versions. Nothing here is copied from a paper. The command goes on where it was stopped.
"""


def part(name: str) -> ModuleType:
    """The module of a part.

    ``add_arguments(parser)``; ``measure(options)``, which yields contents, each for a file of its own; and
    ``section(contents)``, their text.
    """
    return importlib.import_module(f"examples.results.{name}")


def describe(environment: dict[str, Any]) -> str:
    """Hardware and versions in one line."""
    hardware = environment.get("gpu") or f"{environment['processor']}, {environment['threads']} thread(s)"
    skipped = ("gpu", "processor", "cores", "threads")
    return f"{hardware}; " + ", ".join(f"{key} {value}" for key, value in environment.items() if key not in skipped)


def distinct(contents: Iterable[dict[str, Any]], of: Callable[[dict[str, Any]], str], between: str) -> str:
    """What ``of`` says about each content, without repetitions."""
    return between.join(dict.fromkeys(map(of, contents)))


def commands(contents: Iterable[dict[str, Any]]) -> str:
    """The commands that measured them."""
    return distinct(contents, lambda content: f"    python -m examples.results {content['command']}", "\n")


def mean_spread(values: Sequence[float], digits: int) -> str:
    """Mean ± population standard deviation; of one value, the value alone."""
    spread = f" ± {statistics.pstdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{spread}"


def standardized(gains: Sequence[float]) -> float:
    """Mean in units of the standard deviation; 0 where that is unknown."""
    return statistics.fmean(gains) / (statistics.pstdev(gains) or math.inf)


def write_report() -> None:
    """Writes the sections in the order of ``PARTS``."""
    contents = [read_json(file) for file in sorted(RESULTS.glob("*.json"))]
    measured = {name: [content for content in contents if content.get("part") == name] for name in PARTS}
    sections = [part(name).section(found) for name, found in measured.items() if found]
    if not sections:
        raise SystemExit(f"error: no measurement in {RESULTS}")
    text = "\n".join([HEAD, *sections])
    (ROOT / "docs" / "RESULTS.md").write_text(text, encoding="utf-8")
