"""What is given out: a wheel and a source distribution that are complete, and work where nothing else of ours is."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import fairseq_ext
from tests.fairseq_commands import FairseqCommands, FairseqServer, Outcome
from tests.helpers import ROOT

PACKAGES = ("fairseq_ext", "graph", "vision_language")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def tree() -> list[str]:
    """Every file of the project, as a fresh clone of it would have."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return [name for name in names if (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """The folder with the source distribution, and with the wheel that is built from it."""
    copy, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("dist")
    for name in tree():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, copy / name)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(copy)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "WARNING" not in result.stdout + result.stderr  # of what setuptools will refuse one day
    return out


def test_both_distributions_are_complete(built):
    (source,) = built.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        carried = {name.partition("/")[2] for name in archive.getnames()}
    assert set(tree()) <= carried
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        installed = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert installed == {name for name in tree() if name.startswith(tuple(f"{package}/" for package in PACKAGES))}
    assert {f"{package}/py.typed" for package in PACKAGES} <= installed


@pytest.fixture(scope="module")
def site(built, tmp_path_factory) -> Path:
    """The wheel as pip installs it."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--quiet", "--target", folder]
    subprocess.run([*command, *built.glob("*.whl")], check=True)
    return folder


def environment(folder: Path, *paths: object) -> Path:
    """Python of an empty environment that finds packages in ``paths``. Files ``*.pth`` are not read there."""
    venv.create(folder, with_pip=False, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "paths.pth").write_text("\n".join(map(str, paths)), encoding="utf-8")
    return folder / "bin" / "python"


@pytest.fixture
def outside(tmp_path, monkeypatch) -> Path:
    """An empty folder to work in, from where nothing leads to this tree."""
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.setenv("PYTHONSAFEPATH", "1")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def outcomes_of(commands: list[list[object]], folder: Path, python: Path, **server: str) -> list[Outcome]:
    started = FairseqServer(str(python), path="", **server)
    outcomes = FairseqCommands(folder, started).run_together(commands)
    started.close()
    return outcomes


def test_the_wheel_works_without_the_tree(site, outside, tmp_path):
    python = environment(tmp_path / "venv", site, sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))
    script = f"import {', '.join(PACKAGES)}; print([{', '.join(PACKAGES)}])"
    result = subprocess.run([python, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.count(str(site)) == len(PACKAGES), result.stdout
    command = [python, site / "bin" / "fairseq-ext", "user-dir"]
    user_dir = Path(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())
    assert user_dir == site / "fairseq_ext"

    hydra = ["--config-dir", user_dir / "conf", "--config-name", "muse_iwslt_de_en", "--cfg", "job"]
    train = ["--user-dir", user_dir, "--arch", "transformer_ext", "--help"]
    commands = {
        "transformer_ext": ["fairseq_ext.cli", "list"],
        '"problems"': ["fairseq_ext.cli", "doctor", "--json"],
        "--arch muse_iwslt_de_en": ["fairseq_ext.cli", "recipe", "muse_iwslt_de_en"],
        "label_smoothed_encouraging_loss": ["fairseq_cli.train", *train],
        "block: muse": ["fairseq_cli.hydra_train", *hydra, f"common.user_dir={user_dir}"],
        "train-large": ["graph.renode", "--help"],
        "synthesize": ["vision_language.iais", "--help"],
    }
    outcomes = outcomes_of(list(commands.values()), outside, python)
    for text, command, outcome in zip(commands, commands.values(), outcomes, strict=True):
        assert outcome.code == 0 and text in outcome.output, (command, outcome)
    report = json.loads(outcomes[1].stdout)
    assert report["packages"].keys() - {"(core)"} == PROJECT["optional-dependencies"].keys() - {"all"}
    assert report["packages"]["fairseq"]["hydra-core"]["supported"] == ">=1.3.2,<1.4"


def required(names: list[str]) -> set[str]:
    """Distributions that are installed here, and all that they need without any extra."""
    known: set[str] = set()
    while names:
        name = canonicalize_name(names.pop())
        if name not in known:
            known.add(name)
            requirements = map(Requirement, metadata.requires(name) or ())
            names += [each.name for each in requirements if each.marker is None or each.marker.evaluate({"extra": ""})]
    return known


LIGHT = ["losses", "modules", "integrations", "training", "regions", "recipes", "captions"]
# Modules that are there for those who have the extra.
OF_EXTRAS = {"fairseq_ext.training.accelerator", "fairseq_ext.training.pretrained"}


def test_without_any_extra_the_rest_works_and_says_what_is_missing(site, outside, tmp_path):
    core = tmp_path / "core"
    core.mkdir()
    for name in required([Requirement(line).name for line in PROJECT["dependencies"]]):
        files = metadata.distribution(name).files
        for top in {file.parts[0] for file in files} - {"..", "__pycache__", "bin", "share"}:
            (core / top).symlink_to(files[0].locate().parents[len(files[0].parts) - 1] / top)
    python = environment(tmp_path / "venv", site, core)
    modules = [
        f"fairseq_ext.{package}.{module.stem}"
        for package in LIGHT
        for module in sorted((site / "fairseq_ext" / package).glob("*.py"))
        if not module.stem.startswith("__")
    ]
    script = f"import graph, vision_language, fairseq_ext.kernels, {', '.join({*modules} - OF_EXTRAS)}"
    (core / "light.py").write_text(script, encoding="utf-8")
    commands = {
        ("light",): (0, ""),
        ("fairseq_ext.cli", "doctor"): (0, "missing: ve-fairseq, hydra-core"),
        ("fairseq_ext.cli", "doctor", "graph"): (1, "pip install 'fairseq-ext[graph]'"),
        ("fairseq_ext.cli", "recipe"): (0, "muse_iwslt_de_en"),
        ("fairseq_ext.cli", "list"): (2, "pip install 'fairseq-ext[fairseq]'"),
        ("fairseq_ext.cli", "translate", "model"): (2, "pip install 'fairseq-ext[fairseq]'"),
        ("fairseq_ext.cli", "average", "--inputs", "a", "--output", "b"): (2, "pip install 'fairseq-ext[fairseq]'"),
        ("fairseq_ext.cli", "captions", "synthesize", "--help"): (0, "--out"),
        ("graph.renode", "--help"): (2, "pip install 'fairseq-ext[graph]'"),
        ("graph.graph_classification", "--help"): (2, "pip install 'fairseq-ext[graph]'"),
        ("graph.label_graph", "synthesize", "--help"): (0, "--out"),
        ("vision_language.iais", "--help"): (2, "pip install 'fairseq-ext[vl]'"),
        ("vision_language.image_classification", "--help"): (2, "pip install 'fairseq-ext[vl]'"),
        ("vision_language.muka", "--help"): (2, "pip install 'fairseq-ext[vl]'"),
    }
    outcomes = outcomes_of([list(command) for command in commands], outside, python, imports="import torch")
    for command, (code, text), outcome in zip(commands, commands.values(), outcomes, strict=True):
        assert outcome.code == code and text in outcome.output and not outcome.traceback, (command, outcome)
        assert code != 2 or len(outcome.output.splitlines()) == 1, (command, outcome)


def test_the_citation_is_that_of_the_software_and_its_papers():
    """What the schema of version 1.2.0 requires (citation-file-format.github.io), and what must not drift apart."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert (citation["cff-version"], citation["type"]) == ("1.2.0", "software")
    assert citation["version"] == fairseq_ext.__version__
    assert (citation["license"], citation["authors"]) == (PROJECT["license"], PROJECT["authors"])
    for work in citation["references"]:
        assert {"type", "title", "authors"} <= work.keys() and work["type"] in ("article", "conference-paper")
        assert all(
            "family-names" in author and author.keys() <= {"family-names", "given-names"} for author in work["authors"]
        )
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    systems = re.findall(r"^\|[^|]*\| \[[\d.]+\]\(https://arxiv\.org/abs/([\d.]+)", readme, re.MULTILINE)
    assert [work["url"].rpartition("/")[2] for work in citation["references"]] == systems
