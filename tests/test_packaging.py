"""The distribution agrees with itself, and fairseq finds the plugin by every spelling of ``--user-dir``."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest

import fairseq_ext
from tests.helpers import ROOT
from tests.test_floors import fits, imported

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PINS = re.findall(r"^([\w.-]+)==([\w.]+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)

# fairseq is imported once and every spelling is tried in a fork of it: what fairseq-train and its workers do, without
# their start-up.
DRIVER = """
import argparse, json, os, sys, traceback
from fairseq import utils
from fairseq.criterions import CRITERION_REGISTRY
from fairseq.models import ARCH_MODEL_REGISTRY

for case in json.loads(sys.argv[1]):
    sys.stdout.flush()
    if os.fork() == 0:
        try:
            os.chdir(case["cwd"])
            exec(case["before"])
            for again in range(2):
                utils.import_user_module(argparse.Namespace(user_dir=case["user_dir"]))
            import fairseq_ext
            report = ["transformer_ext" in ARCH_MODEL_REGISTRY, "label_smoothed_encouraging_loss" in CRITERION_REGISTRY]
            report += [fairseq_ext.compat.patched() != [], os.path.realpath(fairseq_ext.__file__)]
        except BaseException:
            report = traceback.format_exc()
        print(json.dumps(report), flush=True)
        os._exit(0)
    os.wait()
"""


def drive(cases, **environment):
    command = [sys.executable, "-c", DRIVER, json.dumps(cases)]
    # `-c` puts the working directory first on the path, which would hide what an installed console script sees.
    env = {**os.environ, "PYTHONSAFEPATH": "1", **environment}
    result = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines() if line.startswith(("[", '"'))]


def test_user_dir_relative_absolute_printed_and_already_imported(tmp_path):
    printed = subprocess.run(
        [sys.executable, "-m", "fairseq_ext.cli", "user-dir"], capture_output=True, text=True, cwd=ROOT, check=True
    )
    path = printed.stdout.strip()
    assert printed.stdout == f"{path}\n"
    put = f"import sys; sys.path.insert(0, {str(ROOT)!r})"
    cases = [
        {"user_dir": "fairseq_ext", "cwd": str(ROOT), "before": ""},
        {"user_dir": "./fairseq_ext/", "cwd": str(ROOT), "before": ""},
        {"user_dir": str(ROOT / "fairseq_ext"), "cwd": str(tmp_path), "before": ""},
        {"user_dir": path, "cwd": str(tmp_path), "before": ""},
        {"user_dir": path, "cwd": str(tmp_path), "before": f"{put}; import fairseq_ext.losses"},
    ]
    expected = [True, True, True, os.path.realpath(ROOT / "fairseq_ext" / "__init__.py")]
    assert drive(cases) == [expected] * len(cases)


def test_user_dir_by_name_in_a_normal_install(tmp_path):
    """Beside fairseq in site-packages, as pip installs it, the bare name works from any directory."""
    site = tmp_path / "site"
    here = Path(find_spec("fairseq").submodule_search_locations[0])
    shutil.copytree(here, site / "fairseq", ignore=shutil.ignore_patterns("examples", "__pycache__"))
    (site / "fairseq" / "examples").mkdir()
    shutil.copytree(ROOT / "fairseq_ext", site / "fairseq_ext")
    cases = [
        {"user_dir": "fairseq_ext", "cwd": str(tmp_path), "before": ""},
        {"user_dir": "fairseq_ext", "cwd": str(tmp_path), "before": "import fairseq_ext"},
        {"user_dir": str(site / "fairseq_ext"), "cwd": str(tmp_path), "before": "import fairseq_ext"},
    ]
    expected = [True, True, True, os.path.realpath(site / "fairseq_ext" / "__init__.py")]
    assert drive(cases, PYTHONPATH=str(site)) == [expected] * len(cases)


def test_user_dir_under_another_name(tmp_path):
    """A link works; a copy, which would register every model a second time, is refused with the path to use."""
    (tmp_path / "linked").symlink_to(ROOT / "fairseq_ext")
    shutil.copytree(ROOT / "fairseq_ext", tmp_path / "copied", ignore=shutil.ignore_patterns("__pycache__"))
    put = f"import sys; sys.path.insert(0, {str(ROOT)!r})"
    cases = [
        {"user_dir": "linked", "cwd": str(tmp_path), "before": ""},
        {"user_dir": str(tmp_path / "linked"), "cwd": str(ROOT), "before": f"{put}; import fairseq_ext"},
        {"user_dir": "copied", "cwd": str(tmp_path), "before": put},
        {"user_dir": str(tmp_path / "copied"), "cwd": str(tmp_path), "before": f"{put}; import fairseq_ext"},
        {"user_dir": "copied", "cwd": str(tmp_path), "before": ""},
    ]
    *linked, refused, refused_again, alone = drive(cases, PYTHONPATH="")
    assert linked == [[True, True, True, os.path.realpath(ROOT / "fairseq_ext" / "__init__.py")]] * 2
    message = f"--user-dir {tmp_path}/copied: another copy of fairseq_ext, under another name; use {ROOT}/fairseq_ext\n"
    assert refused.endswith(message) and refused_again.endswith(message)
    assert f"--user-dir {tmp_path}/copied: another copy of fairseq_ext" in alone.splitlines()[-1]


def test_register_after_a_light_import_and_in_a_spawned_worker(tmp_path):
    (tmp_path / "worker.py").write_text(
        "import argparse\nfrom fairseq import utils\nfrom fairseq.models import ARCH_MODEL_REGISTRY\n\n\n"
        "def work(user_dir):\n"
        "    utils.import_user_module(argparse.Namespace(user_dir=user_dir))\n"
        "    assert 'transformer_ext' in ARCH_MODEL_REGISTRY\n"
    )
    script = f"""
import sys
sys.path[:0] = [{str(ROOT)!r}, {str(tmp_path)!r}]
import fairseq_ext
assert "fairseq" not in sys.modules
fairseq_ext.register()
fairseq_ext.register()
from fairseq.models import ARCH_MODEL_REGISTRY
assert "transformer_ext" in ARCH_MODEL_REGISTRY
import multiprocessing, worker
process = multiprocessing.get_context("spawn").Process(target=worker.work, args=({str(ROOT / "fairseq_ext")!r},))
process.start()
process.join()
sys.exit(process.exitcode)
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_models_imported_first_come_with_the_repairs():
    script = "import fairseq_ext.models; from fairseq_ext import compat; assert compat.patched()"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 0, result.stderr


def test_constraints_pin_every_core_and_test_requirement():
    assert PINS[0] == ("torch", "2.13.0"), "torch comes first"
    pinned = {name.lower() for name, _ in PINS}
    extras = PROJECT["optional-dependencies"]
    own, *others = extras["test"]  # the first one names the extras whose tests need more
    used = re.fullmatch(r"fairseq-ext\[(.*)\]", own)[1].split(",")
    for line in [*PROJECT["dependencies"], *others, *(line for name in used for line in extras[name])]:
        assert re.match(r"[\w.-]+", line)[0].lower() in pinned, line


def test_the_extras_are_complete():
    extras = PROJECT["optional-dependencies"]
    languages = {"chinese", "japanese", "korean"}
    used = {"fairseq", "quickstart", "graph", "vl", "captions", "demo", "moses", "triton", "benchmarks", "docs"}
    assert set(extras) == languages | used | {"test", "all"}
    assert set(extras["all"][0].removeprefix("fairseq-ext[").removesuffix("]").split(",")) == set(extras) - {"all"}
    assert PROJECT["requires-python"] == ">=3.11,<3.13"


# What the code of a folder may expect beside the core. Of an entry of the table the longest path counts.
EXTRAS = {
    "fairseq_ext": ("fairseq",),
    "fairseq_ext/captions": ("fairseq", "captions", "vl"),
    "fairseq_ext/integrations": ("vl", "graph"),
    "fairseq_ext/modules": (),
    "fairseq_ext/losses": (),
    "fairseq_ext/kernels": ("triton",),
    "fairseq_ext/training": (),
    "fairseq_ext/training/accelerator.py": ("vl",),
    "fairseq_ext/training/pretrained.py": ("vl",),
    "graph": ("graph", "chinese"),
    "graph/label_graph/encoder.py": ("vl",),
    "vision_language": ("vl",),
    "examples/quickstart": ("fairseq", "quickstart"),
    "examples/translation": ("fairseq", "japanese", "korean", "moses"),
    "examples/language_modeling": ("fairseq",),
}
INSTALLED_AS = {
    "hydra": "hydra-core",
    "tokenizers": "transformers",
    "yaml": "pyyaml",
    "PIL": "pillow",
    "sklearn": "scikit-learn",
    "bitarray": "ve-fairseq",
    "fairseq": "ve-fairseq",
}
OPTIONAL = {"datasets", "timm", "sacremoses", "subword_nmt", "pycocoevalcap"}
"""Imported where they are there, or where an option asks for them."""


@pytest.mark.parametrize("path", [path for top in EXTRAS for path in sorted(ROOT.glob(f"{top}/**/*.py"))], ids=str)
def test_what_a_file_imports_is_installed_with_its_extra(path):
    relative = path.relative_to(ROOT).as_posix()
    top = max((top for top in EXTRAS if fits(relative, top)), key=len)
    extras = PROJECT["optional-dependencies"]
    lines = [*PROJECT["dependencies"], *(line for extra in EXTRAS[top] for line in extras[extra])]
    installed = {re.match(r"[\w.-]+", line)[0].lower().replace("_", "-") for line in lines}
    roots = {name.partition(".")[0] for name in imported(path)} - OPTIONAL - {"fairseq_ext", "graph", "vision_language"}
    foreign = roots - sys.stdlib_module_names - {"examples", "benchmarks"}
    assert {INSTALLED_AS.get(name, name).lower().replace("_", "-") for name in foreign} <= installed


def test_version_is_in_the_changelog():
    assert f"## [{fairseq_ext.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


FAKE = """#!/bin/sh
exec {python} -c 'import platform, sys
sys.version_info = ({version}, 7)
platform.python_version = lambda: "{dotted}.7"
platform.system = lambda: "{system}"
platform.machine = lambda: "{machine}"
exec(sys.argv[1])' "$2"
"""


@pytest.mark.parametrize(
    ("version", "system", "machine", "message"),
    [
        ("3, 10", "Linux", "x86_64", "found Python 3.10.7"),
        ("3, 13", "Linux", "x86_64", "found Python 3.13.7"),
        ("3, 12", "Darwin", "arm64", "on Darwin arm64"),
        ("3, 11", "Linux", "aarch64", "on Linux aarch64"),
        (None, "", "", "does not run"),
    ],
)
@pytest.mark.parametrize("goal", ["quickstart", "test"])
def test_make_refuses_what_cannot_work_in_one_line(goal, version, system, machine, message, tmp_path):
    python = tmp_path / "python"
    if version:
        dotted = version.replace(", ", ".")
        python.write_text(
            FAKE.format(python=sys.executable, version=version, dotted=dotted, system=system, machine=machine)
        )
        python.chmod(0o755)
    venv = tmp_path / "venv"
    command = ["make", "--no-print-directory", goal, f"PYTHON={python}", f"VENV={venv}"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    assert result.returncode != 0
    assert len((result.stdout + result.stderr).strip().splitlines()) == 1
    assert "fairseq-ext needs Python 3.11 or 3.12 on Linux x86_64" in result.stderr
    assert message in result.stderr
    assert not venv.exists()


def test_ci_runs_make_test():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert "make --no-print-directory test </dev/null" in script.read_text(encoding="utf-8")
