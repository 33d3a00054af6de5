"""docs/RESULTS.md from the measurements in docs/results/*.json; each part writes its own section and picture."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

from fairseq_ext.files import read_json

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "results"
PARTS = ("translation", "renode", "label_graph", "graph_classification", "benchmarks")

HEAD = """# Measured results

Written by `python -m examples.results` from `docs/results/*.json`, which hold every run with its settings, hardware and
library versions. Nothing here is copied from a paper. The command goes on where it was stopped.
"""


def part(name: str) -> ModuleType:
    """The module of a part: ``add_arguments(parser)``, ``measure(options)`` and ``section(content)``."""
    return importlib.import_module(f"examples.results.{name}")


def describe(environment: dict[str, Any]) -> str:
    """Hardware and versions in one line."""
    hardware = environment.get("gpu") or f"{environment['processor']}, {environment['threads']} thread(s)"
    skipped = ("gpu", "processor", "cores", "threads")
    return f"{hardware}; " + ", ".join(f"{key} {value}" for key, value in environment.items() if key not in skipped)


def write_report() -> None:
    """Writes the sections in the order of ``PARTS``."""
    contents = [read_json(file) for file in sorted(RESULTS.glob("*.json"))]
    contents = [content for content in contents if content.get("part") in PARTS]
    contents.sort(key=lambda content: PARTS.index(content["part"]))
    if not contents:
        raise SystemExit(f"error: no measurement in {RESULTS}")
    text = "\n".join([HEAD, *(part(content["part"]).section(content) for content in contents)])
    (ROOT / "docs" / "RESULTS.md").write_text(text, encoding="utf-8")
