"""What is given out: a wheel and a source distribution that are complete, and work where nothing else of ours is."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
import yaml

import fairseq_ext
from tests.fairseq_commands import FairseqCommands, FairseqServer
from tests.helpers import ROOT

PACKAGES = ("fairseq_ext", "graph", "vision_language")


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
def python(built, tmp_path_factory) -> Path:
    """Python of an environment with the wheel and the third-party packages of this one, and without this tree."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    command = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", "--quiet"]
    subprocess.run([*command, "--ignore-installed", *built.glob("*.whl")], check=True)
    # Only now: pip takes an editable install for the one to replace. The files *.pth of these folders are not read.
    paths = {sysconfig.get_path(kind) for kind in ("purelib", "platlib")}
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "third_party.pth").write_text("\n".join(paths), encoding="utf-8")
    return python


@pytest.fixture
def outside(tmp_path, monkeypatch) -> Path:
    """An empty folder to work in, from where nothing leads to this tree."""
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.setenv("PYTHONSAFEPATH", "1")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_wheel_works_in_an_environment_of_its_own(python, outside):
    script = f"import {', '.join(PACKAGES)}; print([{', '.join(PACKAGES)}])"
    result = subprocess.run([python, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.count(str(python.parents[1])) == len(PACKAGES), result.stdout
    command = [python.with_name("fairseq-ext"), "user-dir"]
    user_dir = Path(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())
    assert python.parents[1] in user_dir.parents

    hydra = ["--config-dir", user_dir / "conf", "--config-name", "muse_iwslt_de_en", "--cfg", "job"]
    commands = {
        "transformer_ext": ["fairseq_ext.cli", "list"],
        "problem": ["fairseq_ext.cli", "doctor"],
        "--arch muse_iwslt_de_en": ["fairseq_ext.cli", "recipe", "muse_iwslt_de_en"],
        "label_smoothed_encouraging_loss": [
            "fairseq_cli.train",
            "--user-dir",
            user_dir,
            "--arch",
            "transformer_ext",
            "--help",
        ],
        "block: muse": ["fairseq_cli.hydra_train", *hydra, f"common.user_dir={user_dir}"],
        "train-large": ["graph.renode", "--help"],
        "synthesize": ["vision_language.iais", "--help"],
    }
    server = FairseqServer(str(python), path="")
    fairseq = FairseqCommands(outside, server)
    outcomes = fairseq.run_together(list(commands.values()))
    server.close()
    for text, command, outcome in zip(commands, commands.values(), outcomes, strict=True):
        assert outcome.code == 0 and text in outcome.output, (command, outcome)


def test_the_citation_is_that_of_the_software_and_its_papers():
    """What the schema of version 1.2.0 requires (citation-file-format.github.io), and what must not drift apart."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert (citation["cff-version"], citation["type"]) == ("1.2.0", "software")
    assert citation["version"] == fairseq_ext.__version__
    assert (citation["license"], citation["authors"]) == (project["license"], project["authors"])
    for work in citation["references"]:
        assert {"type", "title", "authors"} <= work.keys() and work["type"] in ("article", "conference-paper")
        assert all(
            "family-names" in author and author.keys() <= {"family-names", "given-names"} for author in work["authors"]
        )
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    systems = re.findall(r"^\|[^|]*\| \[[\d.]+\]\(https://arxiv\.org/abs/([\d.]+)", readme, re.MULTILINE)
    assert [work["url"].rpartition("/")[2] for work in citation["references"]] == systems
