"""Everything that only a GPU can tell, in nine minutes: tests, ratios, Multi30k to convergence, MNIST (``make gpu``).

Each part has a time limit, after which its processes end, and a file ``gpu_PART.json`` that is rewritten while the part
runs: whatever ends it leaves what is known, and says what is missing. A second call does what is missing.

Results of other code are measured anew. Each part names the code that it depends on, so that changes elsewhere leave
its trainings as they are; its folder is called by the fingerprint of that code.
"""

from __future__ import annotations

import contextlib
import copy
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_parts import PARTS, Content, Part
from examples.results.report import DOCS, ROOT
from fairseq_ext.training.errors import OptionError
from fairseq_ext.training.files import output_folder, read_json, write_json
from fairseq_ext.training.options import OptionSet, option
from fairseq_ext.training.program import Program
from fairseq_ext.training.progress import say
from fairseq_ext.training.runs import environment
from fairseq_ext.training.settings import digest, file_digest

WHOLE = 530.0  # seconds, of nine minutes; the rest is for the start and the end
GRACE = 5.0  # seconds between asking processes to end and ending them
SLOWER = 3  # times as long as on the card a part may take in a dry run, on a CPU with other work
OUTPUT = 6000  # characters of the output of a part that did not end well

main = Program("benchmarks.gpu")


@dataclass(frozen=True, kw_only=True)
class Options(OptionSet):
    """Where to, and how much."""

    dry_run: bool = option(False, "take tiny sizes on the CPU: shows only that everything runs")
    out: str = option("", "folder of gpu_*.json (default: $OUT, else docs/results)")
    work: str = option("runs/gpu", "folder of logs and trainings")
    data: str = option("", "folder of the data sets (default: $FAIRSEQ_EXT_DATA)")
    jobs: int = option(6, "trainings that share the card", least=1)
    seconds: float = option(WHOLE, "time for everything, in seconds", least=0)


@main.only
def measure(options: Options) -> str:
    """Everything that only a GPU can tell, in nine minutes: tests, ratios, Multi30k to convergence, MNIST.

    A second call does what is missing.

    Raises:
        OptionError: no GPU, or a folder that cannot be written.
        SystemExit: with code 1, where anything is missing or has failed.
    """
    if not options.dry_run and not torch.cuda.is_available():
        raise OptionError("this machine has no GPU: --dry-run tries everything on the CPU")
    # The figures of a dry run are no measurements: they stay out of the measured results.
    usual = Path(options.work, "dry-run") if options.dry_run else os.environ.get("OUT") or DOCS / "results"
    out = output_folder(options.out or usual)
    data = Path(options.data or os.environ.get("FAIRSEQ_EXT_DATA", ROOT.parent / "shared" / "data"))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    deadline = time.monotonic() + options.seconds
    contents = []
    for kind in PARTS:
        work = output_folder(Path(options.work).absolute() / kind.name, "--work")
        part = kind(work, options.dry_run, options.jobs, data)
        contents.append(measured(part, out / f"gpu_{part.name}.json", deadline))
    summary = "\n".join(["", *map(report, PARTS, contents), f"results: {out}"])
    if any(content["missing"] or content["failed"] for content in contents):
        print(summary)
        raise SystemExit(1)
    return summary


def measured(part: Part, file: Path, deadline: float) -> Content:
    """Measure a part; returns what is known of it in the end. ``file`` holds what is known so far."""
    code, part = sources(part.code), copy.copy(part)
    part.work = output_folder(part.work / code[:12], "--work")
    keeper = Keeper(part, file, code)
    before = earlier(file, part.dry_run, code)
    if before and not (before["missing"] or before["failed"]):
        return before
    if reason := part.lacks():
        keeper.refuse(reason, before)
        return keeper.content
    for name in part.transient:
        (part.work / name).unlink(missing_ok=True)
    if before:
        part.resume(before)
    limit = SLOWER * part.limit if part.dry_run else part.limit
    seconds = min(limit, deadline - time.monotonic())
    if seconds > 0:
        say(f"{part.name}: at most {seconds:.0f} seconds")
        run(part, keeper, seconds)
    else:
        keeper.keep("no time was left for it")
    return keeper.content


def earlier(file: Path, dry_run: bool, code: str) -> Content:
    """What an earlier call of the same code kept: here or, from a GPU, among the measured results; empty if nothing."""
    places = (file, *([] if dry_run else [DOCS / "results" / file.name]))
    contents = [read_json(place) for place in places if place.exists()]
    return next((content for content in contents if content["sources"] == code), {})


class Keeper:
    """Writes what is known of a part, whenever more is known."""

    def __init__(self, part: Part, file: Path, code: str) -> None:
        self.part, self.file, self.start = part, file, time.monotonic()
        self.content, self.written = {}, None
        self.sources = {"sources": code}
        device = "cpu" if part.dry_run else "cuda"
        self.shared = {"name": f"gpu_{part.name}", "shell": "make gpu", "environment": environment(device=device)}

    def keep(self, end: str = "", output: str = "") -> None:
        """Write what is known by now.

        ``end`` says how the part ended, if it did not end well; ``output`` is what it then printed last.
        """
        known = self.shared | self.part.known() | self.sources | ({"end": end} if end else {})
        if end and output:
            known["output"] = output[-OUTPUT:]
        if end and not known["missing"]:
            known["failed"] = known["failed"] or {self.part.name: end}
        self._write(known)

    def refuse(self, reason: str, before: Content) -> None:
        """Write why the part cannot run, and what was known ``before``."""
        known = self.shared | self.part.nothing | before | self.sources
        self._write(known | {"missing": [self.part.name], "failed": {self.part.name: reason}, "end": reason})

    def _write(self, known: Content) -> None:
        if known != self.written:
            self.written = known
            self.content = known | {"seconds": round(time.monotonic() - self.start, 1)}
            write_json(self.file, self.content)


def run(part: Part, keeper: Keeper, seconds: float) -> None:
    """Run the part's command; after ``seconds`` all of its processes are ended."""
    log = part.work / "log.txt"
    deadline = time.monotonic() + seconds
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *part.command()],
            cwd=ROOT,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, **({"CUDA_VISIBLE_DEVICES": ""} if part.dry_run else {})},
        )
        try:
            while process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.2)
                keeper.keep()
        finally:
            late = process.poll() is None
            end_all(process)
    end = f"stopped after {seconds:.0f} seconds" if late else f"exit code {process.returncode}"
    keeper.keep(end if late or process.returncode else "", log.read_text(encoding="utf-8", errors="replace"))


def end_all(process: subprocess.Popen[bytes]) -> None:
    """End the process and all processes that it started, except those that chose another session."""
    for number, patience in ((signal.SIGTERM, GRACE), (signal.SIGKILL, 60.0)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)


def sources(code: Sequence[str]) -> str:
    """A fingerprint of Python files, and of all Python files in folders."""
    places = [ROOT / place for place in code]
    files = sorted(file for place in places for file in ([place] if place.is_file() else place.rglob("*.py")))
    return digest([[str(file.relative_to(ROOT)), file_digest(file)] for file in files])


def report(kind: Any, content: Content) -> str:
    """A few lines that sum up a part."""
    state = "failed" if content["failed"] else "incomplete" if content["missing"] else "complete"
    first, *lines = kind.summary(content)
    lines += [f"missing: {', '.join(content['missing'])}"] if content["missing"] else []
    if "end" in content:
        said = content.get("output", "").strip().rpartition("\n")[2]
        lines.append(content["end"] + (f": {said}" if said else ""))
    return "\n".join(
        [f"{kind.name:12} {state:12} {content['seconds']:6.0f} s  {first}", *(f"    {line}" for line in lines)]
    )


if __name__ == "__main__":
    main()
