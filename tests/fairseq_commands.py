"""fairseq's commands as a user runs them, without the seconds that each import of fairseq costs.

A session has one :class:`FairseqServer`, the fixture ``fairseq_server``; each folder of commands is a
:class:`FairseqCommands`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests.helpers import python_path

# Runs each command as `python -m` would, in a child forked after the slow import of fairseq; those of a line together.
# Optimisers import torch._dynamo, and attention symbolic_shapes, when first used: here once instead of in every child.
FAIRSEQ = """
import torch
torch.cuda.device_count = lambda: 1  # fairseq's import asks CUDA, which could not be used after a fork then
import fairseq_cli.eval_lm, fairseq_cli.generate, fairseq_cli.hydra_train, fairseq_cli.interactive
import fairseq_cli.preprocess, fairseq_cli.train, torch._dynamo, torch.fx.experimental.symbolic_shapes
"""
SERVER = """
import gc, json, os, resource, runpy, sys
gc.freeze()
os.fsync = lambda descriptor: None  # a disk takes its time

def start(case):
    child = os.fork()
    if not child:
        os.chdir(case["folder"])
        for stream, name in enumerate(("stdout", "stderr"), start=1):
            os.dup2(os.open(case[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
        os.dup2(os.open(case["stdin"], os.O_RDONLY), 0)
        sys.stdin = open(0, encoding="utf-8", closefd=False)
        if case["largest_file"]:
            resource.setrlimit(resource.RLIMIT_FSIZE, (case["largest_file"],) * 2)
        module, *arguments = case["command"]
        sys.argv = ["-m", *arguments]
        sys.modules.pop(module, None)
        code = 0
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit as end:
            code = end.code or 0
            if isinstance(code, str) or not isinstance(code, int):
                print(code, file=sys.stderr)
                code = 1
        except BaseException:
            code = 1
            try:
                sys.excepthook(*sys.exc_info())
            except SystemExit as end:
                code = end.code
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return child

for line in sys.stdin:
    children = [start(case) for case in json.loads(line)]
    print(json.dumps(children), flush=True)
    print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]), flush=True)
os._exit(0)
"""


class Outcome(NamedTuple):
    code: int
    stdout: str
    stderr: str

    @property
    def output(self) -> str:
        return self.stdout + self.stderr

    @property
    def last_line(self) -> str:
        return self.stderr.strip().splitlines()[-1]

    @property
    def traceback(self) -> bool:
        return "Traceback (most recent call last)" in self.stderr


class FairseqServer:
    """The process that the commands are forked from.

    Args:
        python: the environment's interpreter.
        path: what ``PYTHONPATH`` is there.
        imports: what all commands have in common.
    """

    def __init__(self, python: str = sys.executable, path: str | None = None, imports: str = FAIRSEQ) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": python_path() if path is None else path}
        self.process = subprocess.Popen(
            [python, "-c", imports + SERVER], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def start(self, cases: list[dict[str, Any]]) -> list[int]:
        """The process ids of the commands."""
        self.process.stdin.write(json.dumps(cases) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def wait(self) -> list[int]:
        """The exit codes of the commands that were started last."""
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(timeout=60)


class FairseqCommands:
    """Runs fairseq's commands in a folder, one after the other."""

    def __init__(self, folder: Path, server: FairseqServer) -> None:
        self.folder = folder
        self.server = server
        self.cases: list[dict[str, Any]] = []

    def run(self, module: str, *arguments: object, stdin: str = "", largest_file: int = 0) -> Outcome:
        return self.run_together([(module, *arguments)], stdin=stdin, largest_file=largest_file)[0]

    def must(self, module: str, *arguments: object, stdin: str = "") -> Outcome:
        """A command that must succeed."""
        return self.must_together([(module, *arguments)], stdin=stdin)[0]

    def must_together(self, commands: Sequence[Sequence[object]], *, stdin: str = "") -> list[Outcome]:
        outcomes = self.run_together(commands, stdin=stdin)
        for outcome in outcomes:
            assert outcome.code == 0, outcome.stderr[-6000:]
        return outcomes

    def run_together(
        self, commands: Sequence[Sequence[object]], *, stdin: str = "", largest_file: int = 0
    ) -> list[Outcome]:
        """Several commands at once."""
        self.start(commands, stdin=stdin, largest_file=largest_file)
        return self.finish()

    def start(self, commands: Sequence[Sequence[object]], *, stdin: str = "", largest_file: int = 0) -> list[int]:
        """Several commands at once: their process ids, before :meth:`finish` gives their outcomes."""
        self.cases = []
        for number, command in enumerate(commands):
            files = {name: str(self.folder / f"{name}{number}.txt") for name in ("stdin", "stdout", "stderr")}
            Path(files["stdin"]).write_text(stdin, encoding="utf-8")
            case = {"command": [*map(str, command)], "folder": str(self.folder), "largest_file": largest_file}
            self.cases.append(case | files)
        return self.server.start(self.cases)

    def finish(self) -> list[Outcome]:
        codes = self.server.wait()
        return [
            Outcome(code, *(Path(case[name]).read_text(errors="replace") for name in ("stdout", "stderr")))
            for code, case in zip(codes, self.cases, strict=True)
        ]
