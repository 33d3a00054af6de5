"""Runs the benchmarks and prints their ratios: ``python -m benchmarks [NAME ...] [--json FILE] [--quick]``."""

from __future__ import annotations

import argparse
import difflib
import importlib
import json
import logging
import os
import platform
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path

import torch

from benchmarks.timing import Row

NAMES = ("attention", "loss", "norm", "muse", "cross_view", "stock")


def unknown_name(name: str) -> str:
    near = difflib.get_close_matches(name, NAMES, n=1, cutoff=0.0)[0]
    return f"no benchmark {name!r}, did you mean {near!r}? There are {', '.join(NAMES)}"


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def environment(quick: bool) -> dict[str, str | int | bool]:
    """What the figures depend on beside the code."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "ve-fairseq", "entmax", "fairseq-ext")},
        "quick": quick,
    }


def format_row(row: Row) -> str:
    line = f"{row.ratio:7.2f}x  {row.ours:10.3f} / {row.reference:10.3f} {row.unit:8}  {row.case}"
    if row.target is None:
        return line
    sign = ">=" if row.more_is_better else "<="
    return f"{line}  [target {sign} {row.target:g}: {'met' if row.met else 'MISSED'}]"


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", metavar="NAME", nargs="*", help=f"all by default: {', '.join(NAMES)}")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write environment and rows to FILE")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, one repetition: shows only that it runs")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default: 1)")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name not in NAMES]
    if unknown:
        sys.exit(f"benchmarks: {unknown_name(unknown[0])}")
    if options.threads < 1:
        sys.exit(f"benchmarks: --threads must be at least 1, got {options.threads}")
    if options.json and not options.json.absolute().parent.is_dir():
        sys.exit(f"benchmarks: --json {options.json}: its folder does not exist")
    torch.set_num_threads(options.threads)
    logging.getLogger("fairseq").setLevel(logging.WARNING)
    # fairseq's attention passes torch two kinds of mask, which torch deprecates
    warnings.filterwarnings("ignore", message="Support for mismatched key_padding_mask", category=UserWarning)

    header = environment(options.quick)
    print(", ".join(f"{name} {value}" for name, value in header.items()))
    print("ratio: ours / reference; less is better for ms and MiB, more is better for tokens/s")
    rows: list[Row] = []
    for name in dict.fromkeys(options.names or NAMES):
        print(f"\n{name}", flush=True)
        for row in importlib.import_module(f"benchmarks.{name}").run(options.quick):
            if options.quick:  # targets are for real sizes
                row = replace(row, target=None)
            rows.append(row)
            print(format_row(row), flush=True)
    if options.json:
        content = {"environment": header, "rows": [asdict(row) | {"met": row.met} for row in rows]}
        options.json.write_text(json.dumps(content, indent=2) + "\n")
    return rows


if __name__ == "__main__":
    main(sys.argv[1:])
