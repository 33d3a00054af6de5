"""fairseq's commands as a user runs them, without the seconds that each import of fairseq costs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from tests.helpers import ROOT

# Runs each command as `python -m` would, in a child forked after the slow import of fairseq.
SERVER = """
import json, os, resource, runpy, sys, traceback
import fairseq_cli.eval_lm, fairseq_cli.generate, fairseq_cli.interactive, fairseq_cli.preprocess, fairseq_cli.train

for line in sys.stdin:
    case = json.loads(line)
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
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
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
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        self.server = subprocess.Popen(
            [sys.executable, "-c", SERVER],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, module: str, *arguments: object, stdin: str = "", largest_file: int = 0) -> Outcome:
        files = {name: self.folder / f"{name}.txt" for name in ("stdin", "stdout", "stderr")}
        files["stdin"].write_text(stdin, encoding="utf-8")
        request = {"command": [module, *map(str, arguments)], "largest_file": largest_file}
        self.server.stdin.write(json.dumps({**request, **{name: str(path) for name, path in files.items()}}) + "\n")
        self.server.stdin.flush()
        code = int(self.server.stdout.readline())
        return Outcome(code, *(files[name].read_text(errors="replace") for name in ("stdout", "stderr")))

    def close(self) -> None:
        self.server.stdin.close()
        self.server.wait(timeout=60)
