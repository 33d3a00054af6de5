"""The site is built strictly, once; and what is wrong in a page ends the build."""

from __future__ import annotations

import ast
import importlib.util
import logging
import re
from typing import Any

import griffe
import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config
from mkdocs.exceptions import Abort, BuildError

from fairseq_ext.recipes import PRESETS, RECIPES
from tests.helpers import ROOT

PACKAGES = ("fairseq_ext", "graph", "vision_language")


def hook(name: str) -> Any:
    """A file of docs/hooks, which is no package."""
    spec = importlib.util.spec_from_file_location(f"site_{name}", ROOT / "docs" / "hooks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build_site(folder, **settings):
    """The pages of a strict build by name, and everything else that a browser reads."""
    logger = logging.getLogger("mkdocs")
    logger.propagate = False
    logger.setLevel(logging.INFO)  # below it no anchor is checked, and an import of fairseq opens the root logger
    config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder / "site"), strict=True, **settings)
    config.plugins.on_startup(command="build", dirty=False)
    build(config)
    files = [path for path in (folder / "site").rglob("*") if path.suffix in (".html", ".css", ".js")]
    return {path.relative_to(folder / "site").as_posix(): path.read_text(encoding="utf-8") for path in files}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return build_site(tmp_path_factory.mktemp("docs"))


def exported(path) -> list[str]:
    """The names of ``__all__``."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            texts = (part for part in ast.walk(node.value) if isinstance(part, ast.Constant))  # of starred tuples, too
            return [text.value for text in texts]
    return []


def public_names() -> set[str]:
    """What a package exports; where its ``__init__`` exports nothing of its files, what these do."""
    names = set()
    for top in PACKAGES:
        for init in (ROOT / top).rglob("__init__.py"):
            package = init.parent.relative_to(ROOT).as_posix().replace("/", ".")
            files = [path for path in init.parent.glob("*.py") if path.stem not in ("__init__", "__main__")]
            names |= {f"{package}.{name}" for name in exported(init)}
            if not exported(init) or package == "fairseq_ext":
                names |= {f"{package}.{path.stem}.{name}" for path in files for name in exported(path)}
    return names


def test_every_public_name_is_on_a_page(site):
    """``graph.renode.totoro`` is both a function and its module, and stands under the name of the latter."""
    anchors = {name for page in site.values() for name in re.findall(r'id="([\w.]+)"', page)}
    names = public_names()
    assert len(names) > 300
    assert {name for name in names if not {name, f"{name}.{name.rpartition('.')[2]}"} & anchors} == set()


def test_a_browser_asks_no_other_machine(site):
    foreign = re.compile(
        r"<(?:script|img|iframe|source)\b[^>]*\bsrc=[\"']?(?:https?:)?//[^\s>]*"
        r"|<link\b(?=[^>]*rel=[\"']?(?:stylesheet|preconnect|preload|icon))[^>]*href=[\"']?(?:https?:)?//[^\s>]*"
        r"|@import[^;]*//[^;]*|url\([\"']?(?:https?:)?//[^)]*"
    )
    assert {name: match[0] for name, text in site.items() if (match := foreign.search(text))} == {}


def test_pages_hold_no_markup_of_docstrings_or_formulas(site):
    pages = {name: page for name, page in site.items() if name.endswith(".html")}
    assert sum(page.count("<math ") for page in pages.values()) > 300
    code = re.compile(r"<(pre|code)\b.*?</\1>", re.DOTALL)
    left = re.compile(
        r":(?:class|func|meth|mod|data|math|attr):|\.\. math|arithmatex|(?<!\w)``|={4,}  ?={4,}|&gt;&gt;&gt;"
    )
    texts = {name: code.sub("", page) for name, page in pages.items()}
    assert {name: text[match.start() :][:80] for name, text in texts.items() if (match := left.search(text))} == {}


def test_tables_of_presets_recipes_and_options(site):
    page = site["howto/options.html"]
    assert [name for name in [*PRESETS, *RECIPES] if f"<code>{name}</code>" not in page] == []
    page = site["api/commands.html"]
    programs = [".".join(path.relative_to(ROOT).parent.parts) for path in ROOT.glob("[gv]*/*/__main__.py")]
    assert len(programs) >= 6
    assert [name for name in programs if f'">python -m {name} train' not in page] == []
    options = re.findall(r"<td><code>(\S+)</code></td>\s<td>(.*?)</td>\s<td>(.*?)</td>", page)
    assert (
        "--head-classes",
        "<code>0 1 2</code>",
        "numbers of the head classes, with --imbalance step (released: 0 1 2)",
    ) in options
    assert ("--weight-decay", "<code>0.0</code>", "weight decay of Adam (released: 0)") in options
    assert {("MODEL", "required"), ("--no-margin", "on"), ("--nbest", "<code>1</code>")} <= {row[:2] for row in options}


@pytest.mark.parametrize(
    "page",
    [
        "[a page](nowhere.md)",
        "[a part](index.md#nothing)",
        "[a file of the tree](../fairseq_ext/nothing.py)",
        "[an object][fairseq_ext.modules.Nothing]",
        "::: fairseq_ext.nothing",
        r"$\nosuchcommand{x}$",
        "<!-- table: nothing -->",
    ],
)
def test_what_is_wrong_ends_the_build(page, tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text(f"# A page\n\n{page}\n")
    with pytest.raises((Abort, BuildError)):
        build_site(tmp_path, docs_dir=str(tmp_path / "docs"), nav=["index.md"])


def test_a_page_that_is_not_listed_ends_the_build(tmp_path):
    (tmp_path / "docs").mkdir()
    for name in ("index", "second"):
        (tmp_path / "docs" / f"{name}.md").write_text("# A page\n")
    build_site(tmp_path, docs_dir=str(tmp_path / "docs"), nav=["index.md", "second.md"])
    with pytest.raises(Abort):
        build_site(tmp_path, docs_dir=str(tmp_path / "docs"), nav=["index.md"])


DOCSTRING = r'''
class Base:
    r"""First :math:`x_i`, :class:`Other`, :class:`~torch.nn.Linear`, ``a * b * c``, `A Title` (arXiv:1911.07013).

    .. math::
        a &= b \\
        c &= d

    ====  ==========
    name  meaning
    ====  ==========
    a|b   one that
          goes on
    ====  ==========

    ===  =====
    n    first
    m    last
    ===  =====

    As in::

        run(x)

    Args:
        p, q: sizes.

    Shape:
        - input: :math:`(N)`

    Example:
        >>> Base(1, 2)
    """

class Other:
    """:func:`nowhere`"""

    def run(self):
        """As :meth:`run of the base <graph.Base>`."""
'''


def test_docstrings_become_markdown(caplog):
    docstrings = hook("docstrings")
    loader = griffe.GriffeLoader()
    with griffe.temporary_visited_module(DOCSTRING, module_name="graph") as module:
        loader.modules_collection["graph"] = module
        text = docstrings.to_markdown(module["Base"].docstring.value, module["Base"], loader)
        with caplog.at_level(logging.WARNING, logger=docstrings.logger.name):
            logging.getLogger("mkdocs").propagate = True
            assert docstrings.to_markdown(module["Other"].docstring.value, module["Other"], loader) == "`nowhere()`"
    run = module["Other.run"]
    link = '<autoref identifier="graph.Base" optional>`run of the base`</autoref>'
    assert docstrings.to_markdown(run.docstring.value, run, loader) == f"As {link}."
    assert "graph.Other: its docstring refers to nowhere, which does not exist" in caplog.text
    assert text.startswith(
        'First $x_i$, <autoref identifier="graph.Other" optional>`Other`</autoref>, `Linear`, ``a * b * c``, *A Title* '
        "([arXiv:1911.07013](https://arxiv.org/abs/1911.07013)).\n\n"
        "$$\n\\begin{aligned}\na &= b \\\\\nc &= d\n\\end{aligned}\n$$\n\n"
        "| name | meaning |\n| --- | --- |\n| a\\|b | one that goes on |\n\n"
        "|  |  |\n| --- | --- |\n| n | first |\n| m | last |\n\n"
    )
    assert "As in:\n\n```python\nrun(x)\n```\n" in text
    assert "Args:\n    p: sizes.\n    q: sizes.\n\n**Shape:**\n\n- input: $(N)$\n\nExamples:\n" in text


@pytest.mark.parametrize(
    ("latex", "part"),
    [
        (r"\arg\max_i s_i", "<mo>arg</mo>"),
        (r"\text{normalized\_shape}", "<mtext>normalized_shape</mtext>"),
        (r"\frac{a}{b}", "<mfrac>"),
        (r"\log C", '<mi>log</mi><mspace width="0.17em"/><mi>C</mi>'),
    ],
)
def test_formulas_become_mathml(latex, part):
    formulas = hook("formulas")
    assert part in formulas.to_mathml(latex, display=True)
    page = formulas.on_page_content(rf'<p>x <span class="arithmatex">\({latex}\)</span></p>', None)
    assert page.startswith("<p>x <math ") and 'display="inline"' in page and part in page
