"""Speed and memory of every method beside what it replaces (`python -m benchmarks`)."""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.__main__ import NAMES
from benchmarks.__main__ import main as run_benchmarks
from examples.results.report import commands, describe
from fairseq_ext.training.files import read_json

TEXT = """## Speed and memory

Ratio: ours / reference. Less is better for ms and MiB, more for the units per second. Of times the ratio is the median
over neighbouring pairs of alternating samples, in brackets the smallest and the largest pair; the two times are medians
over the same samples. *once*: a single measurement, as of memory, which repeats.
[benchmarks/](../benchmarks/README.md) says how each row is measured.
{environments}

{commands}

{met} of {targets} targets are met{open}.
{missed}{unmeasured}
| ratio | pairs | ours | reference | unit | device | case | target |
|---|---|---|---|---|---|---|---|
{rows}
"""

OPEN = ", {count} are not decided, as their pairs lie on both sides"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    here = [name for name in NAMES if name != "kernels"]  # those are measured on a GPU alone, by benchmarks.gpu
    parser.add_argument("--names", nargs="+", choices=here, default=here, help="claims to measure")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")


CPU = "CPU"
SELECTS = "names"


def reads(options: argparse.Namespace) -> dict[str, list[Path]]:
    return {f"benchmarks_{name}": [] for name in options.names}


def measure(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Runs the benchmarks of each claim."""
    for name in options.names:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "benchmarks.json")
            run_benchmarks([name, "--threads", str(options.threads), "--json", str(file)])
            content = read_json(file)
        busy = os.getloadavg()[0] > options.threads + 0.5  # of the last minute, this program included
        yield {"name": f"benchmarks_{name}", "claim": name, "busy": busy, **content}


def section(contents: list[dict[str, Any]]) -> str:
    """One table, in the order of the claims, the rows of a GPU below those of the CPU."""
    contents = sorted(contents, key=lambda content: _place(content["rows"][0]))
    rows = sorted((row for content in contents for row in content["rows"]), key=_place)
    targets = [row for row in rows if row["target"] is not None]
    outcomes = [_outcome(row) for row in targets]
    missed = [row for row, outcome in zip(targets, outcomes, strict=True) if outcome == MISSED]
    environments: dict[str, list[str]] = {}
    for content in contents:
        text = describe({key: value for key, value in content["environment"].items() if key != "quick"})
        note = "; other programs were running." if content["busy"] else "."
        environments.setdefault(text + note, []).extend(dict.fromkeys(row["claim"] for row in content["rows"]))
    lines = []
    for row in rows:
        target = "" if row["target"] is None else f"{row['target']:g}: {_outcome(row)}"
        ratio = f"{row['ratio']:.2f} | {_pairs(row) or 'once'}"
        figures = f"{row['ours']:.3f} | {row['reference']:.3f} | {row['unit']} | {row['device']}"
        lines.append(f"| {ratio} | {figures} | {row['case']} | {target} |")
    on_gpu = {row["claim"] for row in rows if row["device"] != CPU}
    unmeasured = ", ".join(name for name in NAMES if name not in on_gpu)
    return TEXT.format(
        environments=" ".join(f"{', '.join(claims)}: {text}" for text, claims in environments.items()),
        commands=commands(contents),
        met=outcomes.count(MET),
        open=OPEN.format(count=outcomes.count(UNDECIDED)) if UNDECIDED in outcomes else "",
        targets=len(targets),
        missed=f"Missed: {'; '.join(map(_miss, missed))}.\n" if missed else "",
        unmeasured=f"\nNot measured on a GPU: {unmeasured}.\n" if unmeasured else "",
        rows="\n".join(lines),
    )


def _place(row: dict[str, Any]) -> tuple[int, bool]:
    return NAMES.index(row["claim"]), row["device"] != CPU


def _pairs(row: dict[str, Any]) -> str:
    """The spread of the paired ratios; a single measurement has none."""
    return f"[{row['low']:.2f}, {row['high']:.2f}]" if row["pairs"] > 1 else ""


MET, MISSED, UNDECIDED = "met", "**missed**", "not decided"


def _outcome(row: dict[str, Any]) -> str:
    """Whether a target is met; where pairs lie on both sides of it they do not tell."""
    if _pairs(row) and row["low"] < row["target"] < row["high"]:
        return UNDECIDED
    return MET if row["met"] else MISSED


def _miss(row: dict[str, Any]) -> str:
    """The row of a target that is missed, with what was measured; why it is so, no ratio says."""
    return f"{row['case']} (`{row['claim']}`, {row['device']}): {row['ratio']:.2f} {_pairs(row)}".rstrip()
