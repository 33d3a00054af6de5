"""Runs the benchmarks and prints their ratios: ``python -m benchmarks [NAME ...] [--device cuda] [--json FILE]``."""

from __future__ import annotations

import importlib.util
import logging
import traceback
import warnings
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from benchmarks.timing import Row, inputs_on
from fairseq_ext.training.errors import OptionError, choose
from fairseq_ext.training.files import read_json, write_json
from fairseq_ext.training.options import OptionSet, option
from fairseq_ext.training.program import Program
from fairseq_ext.training.progress import say
from fairseq_ext.training.runs import environment, torch_device

main = Program("benchmarks")

NAMES = (
    "kernels",
    "attention",
    "loss",
    "fused_loss",
    "norm",
    "muse",
    "decoding",
    "cross_view",
    "stock",
    "totoro",
    "pprgo",
    "label_graph",
    "iais",
    "muka",
)


def format_row(row: Row) -> str:
    spread = f"[{row.low:.2f}, {row.high:.2f}]" if row.low is not None and row.pairs > 1 else ""
    line = f"{row.ratio:7.2f}x {spread:16} {row.ours:10.3f} / {row.reference:10.3f} {row.unit:8}  {row.case}"
    if row.target is None:
        return line
    sign = ">=" if row.more_is_better else "<="
    return f"{line}  [target {sign} {row.target:g}: {'met' if row.met else 'MISSED'}]"


@dataclass(frozen=True, kw_only=True)
class Options(OptionSet):
    """What is measured, and where.

    Raises:
        OptionError: a claim that there is not, or options that do not go together.
    """

    names: tuple[str, ...] = option((), f"claims to measure: {', '.join(NAMES)} (default: all)", positional=True)
    device: str = option("cpu", "device to measure on: cpu or cuda")
    json: str = option("", "write environment and rows to this file, claim by claim", written=True)
    resume: bool = option(False, "measure only what the file of --json does not hold", idle={"json": ("",)})
    quick: bool = option(False, "take tiny sizes and one repetition: shows only that it runs")
    threads: int = option(1, "threads of torch", least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.names:
            choose("NAMES", name, NAMES)
        if self.json and not Path(self.json).absolute().parent.is_dir():
            raise OptionError(f"--json {self.json}: its folder does not exist")


@main.only
def measure(options: Options) -> None:
    """Measure the claims one after the other, and print their ratios.

    Raises:
        OptionError: a device that this machine does not have.
        SystemExit: claims that failed, after the others.
    """
    device = torch_device(options.device)
    if device.type not in ("cpu", "cuda"):
        raise OptionError(f"--device must be cpu or cuda, got {options.device}")
    torch.set_num_threads(options.threads)
    logging.basicConfig(level=logging.WARNING)  # before fairseq is imported, which opens the root logger for debugging
    # fairseq's attention passes torch two kinds of mask, which torch deprecates
    warnings.filterwarnings("ignore", message="Support for mismatched key_padding_mask", category=UserWarning)

    header = conditions(device, quick=options.quick, threads=options.threads)
    print(", ".join(f"{name} {value}" for name, value in header.items()))
    print("ratio: ours / reference; less is better for ms and MiB, more is better for tokens/s")
    print("[smallest, largest] ratio of neighbouring samples; the times are medians over the same samples")
    rows = _finished(Path(options.json), header) if options.resume else []
    left_out: dict[str, str] = {}
    failed: dict[str, str] = {}

    def keep() -> None:
        noted = {"device": header.get("gpu", "CPU")}
        content = {"environment": header, "left_out": left_out, "failed": failed}
        kept = [{"claim": row.claim} | asdict(row) | {"met": row.met} | noted for row in rows]
        if options.json:
            write_json(options.json, content | {"rows": kept})

    finished = {row.claim for row in rows}
    chosen = list(dict.fromkeys(options.names or NAMES))
    for number, name in enumerate(chosen, 1):
        if name in finished:
            continue
        say(f"{name}: claim {number} of {len(chosen)}")
        print(f"\n{name}", flush=True)
        module = importlib.import_module(f"benchmarks.{name}")
        if reason := not_on(module, device, options.quick):
            print(f"left out on {device.type}: {reason}")
            left_out[name] = reason
            keep()
            continue
        measured = []
        try:
            with inputs_on(device):
                for row in module.run(options.quick):
                    target = None if options.quick else row.target  # targets are for real sizes
                    measured.append(replace(row, claim=name, target=target))
                    print(format_row(measured[-1]), flush=True)
        except Exception:  # the other claims are measured all the same
            traceback.print_exc()
            failed[name] = traceback.format_exc().strip().splitlines()[-1]
        else:
            rows += measured
        keep()
    if failed:
        raise SystemExit("error: " + "; ".join(f"{name}: {error}" for name, error in failed.items()))


def conditions(device: str | torch.device, *, quick: bool, threads: int = 1) -> dict[str, Any]:
    """What rows depend on beside the code: those of others do not go on."""
    packages = ["ve-fairseq", "entmax", "scipy", "torch-geometric", "transformers"]
    packages += ["ctranslate2"] if importlib.util.find_spec("ctranslate2") else []
    return {**environment(*packages, device=device), "threads": threads, "quick": quick}


def not_on(module: ModuleType, device: torch.device, quick: bool = False) -> str:
    """Why the claim of a module makes no sense on a device; empty where it does, and for a quick trial on the CPU."""
    if quick and device.type == "cpu":
        return ""
    return module.not_on(device) if hasattr(module, "not_on") else getattr(module, "NOT_ON", {}).get(device.type, "")


def _finished(file: Path, header: dict[str, Any]) -> list[Row]:
    """The rows of finished claims that ``file`` holds."""
    if not file.exists():
        return []
    content = read_json(file)
    if content["environment"] != header:
        raise OptionError(f"--resume: {file} was measured elsewhere, with {content['environment']}")
    names = {field.name for field in fields(Row)}
    return [Row(**{name: value for name, value in row.items() if name in names}) for row in content["rows"]]


if __name__ == "__main__":
    main()
