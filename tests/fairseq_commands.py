"""fairseq's commands as a user runs them, without the seconds that each import of fairseq costs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tests.helpers import python_path

# Runs each command as `python -m` would, in a child forked after the slow import of fairseq; those of a line together.
SERVER = """
import json, os, resource, runpy, sys, traceback, torch
torch.cuda.device_count = lambda: 1  # fairseq's import asks CUDA, which could not be used after a fork then
import fairseq_cli.eval_lm, fairseq_cli.generate, fairseq_cli.interactive, fairseq_cli.preprocess, fairseq_cli.train

def start(case):
    child = os.fork()
    if not child:
        for stream, name in enumerate(("stdout", "stderr"), start=1):
            os.dup2(os.open(case[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
        os.dup2(os.open(case["stdin"], os.O_RDONLY), 0)
        sys.stdin = open(0, encoding="utf-8", closefd=False)
        if case["largest_file"]:
            resource.setrlimit(resource.RLIMIT_FSIZE, (case["largest_file"],) * 2)
        module, *sys.argv[1:] = case["command"]
        del sys.modules[module]
        code = 0
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit as end:
            code = end.code or 0
            if isinstance(code, str) or not isinstance(code, int):
                print(code, file=sys.stderr)
                code = 1
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return child

for line in sys.stdin:
    children = [start(case) for case in json.loads(line)]
    print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]), flush=True)
"""


class Outcome(NamedTuple):
    code: int
    stdout: str
    stderr: str

    @property
    def last_line(self) -> str:
        return self.stderr.strip().splitlines()[-1]

    @property
    def traceback(self) -> bool:
        return "Traceback (most recent call last)" in self.stderr


class FairseqCommands:
    """A process in a folder that runs fairseq's commands, one after the other."""

    def __init__(self, folder: Path):
        self.folder = folder
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": python_path()}
        self.server = subprocess.Popen(
            [sys.executable, "-c", SERVER],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, module: str, *arguments: object, stdin: str = "", largest_file: int = 0) -> Outcome:
        return self.run_together([(module, *arguments)], stdin=stdin, largest_file=largest_file)[0]

    def run_together(
        self, commands: Sequence[Sequence[object]], *, stdin: str = "", largest_file: int = 0
    ) -> list[Outcome]:
        """Several commands at once."""
        cases = []
        for number, command in enumerate(commands):
            files = {name: str(self.folder / f"{name}{number}.txt") for name in ("stdin", "stdout", "stderr")}
            Path(files["stdin"]).write_text(stdin, encoding="utf-8")
            cases.append({"command": [*map(str, command)], "largest_file": largest_file, **files})
        self.server.stdin.write(json.dumps(cases) + "\n")
        self.server.stdin.flush()
        codes = json.loads(self.server.stdout.readline())
        return [
            Outcome(code, *(Path(case[name]).read_text(errors="replace") for name in ("stdout", "stderr")))
            for code, case in zip(codes, cases, strict=True)
        ]

    def close(self) -> None:
        self.server.stdin.close()
        self.server.wait(timeout=60)
