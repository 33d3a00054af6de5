"""Who may import whom: the torch-only floors never load fairseq, and the trainers do not know each other."""

from __future__ import annotations

import ast
import json
import subprocess
import sys

import pytest

from tests.helpers import ROOT

TORCH_ONLY = sorted([*ROOT.glob("fairseq_ext/modules/**/*.py"), *ROOT.glob("fairseq_ext/losses/**/*.py")])


def imported(path) -> set[str]:
    """The absolute names of everything that a file imports, at any depth of its code."""
    package = path.relative_to(ROOT).parent.parts
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names.update(f"{module}.{alias.name}" for alias in node.names)
    return names


def starts_with(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


@pytest.mark.parametrize(
    ("statement", "forbidden"),
    [
        ("import fairseq_ext", ["torch", "fairseq"]),
        ("import fairseq_ext.losses", ["fairseq", "hydra", "omegaconf", "transformers", "torch_geometric"]),
        ("import fairseq_ext.modules", ["fairseq", "hydra", "omegaconf", "transformers", "torch_geometric"]),
        ("import graph", ["fairseq", "vision_language", "transformers", "torch_geometric"]),
        # torch_geometric itself imports transformers where it is installed.
        ("import graph.renode.train", ["fairseq", "hydra", "vision_language"]),
        ("import graph.renode.large", ["fairseq", "hydra", "vision_language"]),
        ("import graph.label_graph.train", ["fairseq", "hydra", "vision_language", "transformers"]),
        ("import graph.graph_classification.train", ["fairseq", "hydra", "vision_language"]),
        ("import vision_language", ["fairseq", "graph", "torch", "transformers", "torch_geometric"]),
        ("import vision_language.iais.train", ["fairseq", "hydra", "graph", "torch_geometric"]),
        ("import vision_language.muka.train", ["fairseq", "hydra", "graph", "torch_geometric"]),
    ],
)
def test_import_stays_on_its_floor(statement, forbidden):
    script = f"{statement}; import json, sys; print(json.dumps(sorted(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    loaded = json.loads(result.stdout)
    assert not [name for name in loaded if starts_with(name, *forbidden)]


@pytest.mark.parametrize("path", TORCH_ONLY, ids=lambda path: str(path.relative_to(ROOT)))
def test_blocks_and_losses_import_only_torch(path):
    bindings = ["fairseq_ext.models", "fairseq_ext.criterions", "fairseq_ext.compat", "fairseq_ext.cli"]
    upstairs = ["graph", "vision_language", "examples", "benchmarks", "transformers", "torch_geometric", "hydra"]
    assert not [name for name in imported(path) if starts_with(name, "fairseq", *bindings, *upstairs)]


@pytest.mark.parametrize(("package", "other"), [("graph", "vision_language"), ("vision_language", "graph")])
def test_trainers_do_not_know_each_other(package, other):
    files = list(ROOT.glob(f"{package}/**/*.py"))
    assert files
    for path in files:
        assert not [name for name in imported(path) if starts_with(name, other, "fairseq")], path


def test_the_tests_see_every_kind_of_import(tmp_path, monkeypatch):
    folder = tmp_path / "fairseq_ext" / "modules"
    folder.mkdir(parents=True)
    (folder / "x.py").write_text(
        "import a.b as c\nfrom ..models import y\nfrom . import z\ndef f():\n    from fairseq import utils\n"
    )
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    assert imported(folder / "x.py") == {"a.b", "fairseq_ext.models.y", "fairseq_ext.modules.z", "fairseq.utils"}
