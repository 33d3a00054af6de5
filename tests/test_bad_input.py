"""Bad input to the fairseq commands: one clear line, exit code not 0, and nothing left half-written."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys

import pytest
import torch

from tests.helpers import ROOT
from tests.test_end_to_end import COMBINED, SCHEDULE, TINY, USER_DIR, make_data_bin

# Runs each command as `python -m` would, in a child forked after the slow import of fairseq.
FORKS = """
import json, os, resource, runpy, sys, traceback
import fairseq_cli.generate, fairseq_cli.train

for case in json.load(sys.stdin):
    child = os.fork()
    if not child:
        for stream, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(f"{case['log']}.{name}", os.O_WRONLY | os.O_CREAT), stream)
        if case["largest_file"]:
            resource.setrlimit(resource.RLIMIT_FSIZE, (case["largest_file"],) * 2)
        module, *sys.argv[1:] = case["command"]
        sys.modules.pop(module)
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr)
        except BaseException:
            code = 1
            traceback.print_exc()
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)
    print(json.dumps(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])), flush=True)
"""


class Outcome:
    """What one command left: its exit code, its log and whether its save directory exists."""

    def __init__(self, code, log, save_dir):
        self.code = code
        self.stderr = open(f"{log}.stderr", errors="replace").read()
        self.stdout = open(f"{log}.stdout", errors="replace").read()
        self.last_line = self.stderr.strip().splitlines()[-1] if self.stderr.strip() else ""
        self.traceback = "Traceback (most recent call last)" in self.stderr
        self.saved = sorted(os.listdir(save_dir)) if os.path.isdir(save_dir) else []


# Options of ours: (arguments, what the only line says).
OPTIONS = {
    "norm": (["--norm", "adanrom"], ["--norm", "'adanrom'", "did you mean 'adanorm'"]),
    "block": (["--block", "muze"], ["--block", "'muze'", "did you mean 'muse'"]),
    "view": (["--cross-view", "gcaa"], ["--cross-view", "'gcaa'", "did you mean 'gca'"]),
    "fusion": (["--cross-view-fusion", "meen"], ["--cross-view-fusion", "'meen'", "did you mean 'mean'"]),
    "k negative": (["--attention-topk", "-1"], ["--attention-topk", "-1"]),
    "k no number": (["--attention-topk", "many"], ["--attention-topk", "'many'"]),
    "ratio": (["--attention-topk", "0", "--attention-topk-ratio", "0.5"], ["--attention-topk-ratio", "0.5"]),
    "kernels even": (["--muse-kernels", "4"], ["--muse-kernels", "odd", "4"]),
    "kernels zero": (["--muse-kernels", "0"], ["--muse-kernels", "0"]),
    "kernels junk": (["--muse-kernels", "3;x"], ["--muse-kernels", "3;x"]),
    "heads": (["--encoder-attention-heads", "3"], ["--encoder-embed-dim", "16", "--encoder-attention-heads 3"]),
    "layerdrop": (["--encoder-layerdrop", "0.2"], ["--cross-view", "--encoder-layerdrop"]),
    "log_end": (["--log-end", "1.5"], ["--log-end", "[0, 1]", "1.5"]),
}

# Files and folders: (arguments, what the last line of stderr says). DIR is the folder of the tests.
FILES = {
    "data missing": (["DIR/nowhere"], ["DIR/nowhere"]),
    "data empty": (["DIR/empty"], ["DIR/empty"]),
    "lengths differ": (["DIR/uneven"], []),
    "checkpoint truncated": (["DIR/data-bin", "--restore-file", "DIR/truncated.pt"], ["DIR/truncated.pt"]),
    "checkpoint hostile": (["DIR/data-bin", "--restore-file", "DIR/hostile.pt"], []),
    "checkpoint of another": (
        ["DIR/data-bin", "--restore-file", "DIR/good/checkpoint_last.pt", "--block", "transformer"],
        ["DIR/good/checkpoint_last.pt", "ensure that the architectures match"],
    ),
    "save dir below a file": (["DIR/data-bin", "--save-dir", "DIR/file/save"], ["DIR/file/save"]),
}


class Hostile:
    """Writes a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    data_bin = make_data_bin(folder)
    (folder / "empty").mkdir()
    (folder / "file").write_text("a file")
    shutil.copytree(data_bin, folder / "uneven")
    for kind in ("bin", "idx"):
        shutil.copy(data_bin / f"valid.de-en.en.{kind}", folder / "uneven" / f"train.de-en.en.{kind}")
    return folder


@pytest.fixture(scope="module")
def outcomes(home):
    """Every command below, run once; a good training comes first and leaves the checkpoint that the others need."""
    train = ["fairseq_cli.train", "--user-dir", str(USER_DIR), *COMBINED, *TINY, *SCHEDULE, "--disable-validation"]
    cases = {"good": (["DIR/data-bin", "--max-update", "3", "--save-dir", "DIR/good"], 0)}
    cases |= {name: (["DIR/data-bin", *arguments], 0) for name, (arguments, _) in OPTIONS.items()}
    cases |= {name: (arguments, 0) for name, (arguments, _) in FILES.items()}
    cases["disk full"] = (["DIR/data-bin", "--max-update", "6", "--save-dir", "DIR/full"], 40_000)

    def spell(name, arguments):
        saving = ["--max-update", "1", "--save-dir", f"DIR/save-{name}"]
        return [word.replace("DIR", str(home)) for word in [*train, *saving, *arguments]]

    todo = {name: (spell(name, arguments), limit) for name, (arguments, limit) in cases.items()}
    for split in ("truncated", "hostile"):
        command = ["fairseq_cli.generate", str(home / "data-bin"), "--user-dir", str(USER_DIR), "--cpu"]
        todo[f"generate {split}"] = ([*command, "--path", str(home / f"{split}.pt")], 0)

    def perform(names):
        request = [{"command": todo[n][0], "largest_file": todo[n][1], "log": str(home / f"log-{n}")} for n in names]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        return subprocess.Popen(
            [sys.executable, "-c", FORKS],
            cwd=home,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ), json.dumps(request)

    # One process: it waits for the first command, so that the damaged files are made from its checkpoint meanwhile.
    process, _ = perform([])
    return process
