"""Docstrings are reStructuredText, as torch's and torch_geometric's: here they become the Markdown of the site."""

from __future__ import annotations

import logging
import re
import textwrap
from typing import Any

from griffe import Alias, Class, Extension, GriffeError, GriffeLoader, Module, Object

OURS = ("fairseq_ext", "graph", "vision_language")

ROLE = re.compile(r":(class|func|meth|mod|data|attr|exc):`(?:(?P<title>[^`<]+) <)?(~?)\.?([\w.]+)>?`")
FORMULA = re.compile(r":math:`([^`]*)`")
DISPLAYED = re.compile(r"^( *)\.\. math::[ ]*(.*)\n((?:\1 +.*\n|\n(?=\1 ))*)", re.MULTILINE)
LITERAL = re.compile(r"^( *)(.*?)(?<!:)::\n((?:\1 +.*\n|\n)+)", re.MULTILINE)
TABLE = re.compile(r"^( *)(=+(?: +=+)+)\n(?:(.*)\n\1\2\n)?((?:(?! *=+ ).*\n)*?)\1\2$", re.MULTILINE)
LINK = re.compile(r"`([^`<]+?)\s+<(https?://[^>]+)>`_+")
TITLE = re.compile(r"(?<![`:\w])`([^`\n]+)`(?![`_\w])")
PAPER = re.compile(r"(?<![\w/\[])arXiv[: ](\d{4}\.\d{4,5})")
SHARED = re.compile(r"^    (\w+(?:, \w+)+)(: .*\n(?: {5,}.*\n)*)", re.MULTILINE)
SHAPE = re.compile(r"^Shape:\n((?: {4}.*\n|\n)+)", re.MULTILINE)
CODE = re.compile(r"(```.*?^ *```|``.*?``|\$\$.*?\$\$|(?<![\w$])\$[^$]+\$)", re.DOTALL | re.MULTILINE)

logger = logging.getLogger("mkdocs.plugins.docstrings")


class Markup(Extension):
    """Rewrites each docstring once it is known what the names in it are."""

    def on_package(self, *, pkg: Module, loader: GriffeLoader, **kwargs: Any) -> None:
        self.on_object(obj=pkg, loader=loader)

    def on_module(self, *, mod: Module, **kwargs: Any) -> None:
        mod.members.pop("__all__", None)

    def on_object(self, *, obj: Object, loader: GriffeLoader, **kwargs: Any) -> None:
        if obj.docstring:
            obj.docstring.value = to_markdown(obj.docstring.value, obj, loader)


def to_markdown(text: str, obj: Object, loader: GriffeLoader) -> str:
    """A docstring of ``obj`` as Markdown."""
    text = TABLE.sub(_table, text + "\n")
    text = SHARED.sub(lambda entry: "".join(f"    {name}{entry[2]}" for name in entry[1].split(", ")), text)
    # The parser knows the plural alone, and no section of shapes.
    text = re.sub(r"^Example:$", "Examples:", text, flags=re.MULTILINE)
    text = SHAPE.sub(lambda shape: f"**Shape:**\n\n{textwrap.dedent(shape[1])}", text)
    text = DISPLAYED.sub(_displayed, text)
    text = LITERAL.sub(_literal, text)
    text = FORMULA.sub(lambda formula: f"${' '.join(formula[1].split())}$", text)
    parts = CODE.split(text)
    for index in range(0, len(parts), 2):  # between them lies code
        part = TITLE.sub(r"*\1*", LINK.sub(r"[\1](\2)", parts[index]))
        part = ROLE.sub(lambda role: _reference(role, obj, loader), part)
        parts[index] = PAPER.sub(r"[arXiv:\1](https://arxiv.org/abs/\1)", part)
    return "".join(parts).rstrip("\n")


def _displayed(formula: re.Match[str]) -> str:
    indent, first, rest = formula.groups()
    lines = [first, *textwrap.dedent(rest).splitlines()]
    body = "\n".join(line for line in lines if line.strip())
    if re.search(r"&|\\\\", body) and r"\begin" not in body:  # docutils does so
        body = f"\\begin{{aligned}}\n{body}\n\\end{{aligned}}"
    return textwrap.indent(f"$$\n{body}\n$$\n", indent)


def _literal(block: re.Match[str]) -> str:
    indent, before, code = block.groups()
    intro = f"{indent}{before}:\n\n" if before else ""
    fence = textwrap.indent(f"```python\n{textwrap.dedent(code).strip()}\n```\n", indent)
    return f"{intro}{fence}\n"


def _table(table: re.Match[str]) -> str:
    """A simple table. A row whose first cell is empty goes on with the row before it."""
    indent, border, head, body = table.groups()
    starts = [column.start() for column in re.finditer("=+", border)]
    ends = [*starts[1:], None]

    def cells(line: str) -> list[str]:
        line = line[len(indent) :]
        return [line[start:end].strip().replace("|", r"\|") for start, end in zip(starts, ends, strict=True)]

    rows = [cells(head or "")]
    for line in body.splitlines():
        row = cells(line)
        if row[0] or len(rows) == 1:
            rows.append(row)
        else:
            rows[-1] = [f"{old} {new}".strip() for old, new in zip(rows[-1], row, strict=True)]
    rows.insert(1, ["---"] * len(starts))
    return "\n".join(f"{indent}| {' | '.join(row)} |" for row in rows)


def _reference(role: re.Match[str], obj: Object, loader: GriffeLoader) -> str:
    """A link to the object where the site has a place for it, else its name."""
    kind, title, short, name = role.groups()
    call = "()" if kind in ("func", "meth") else ""
    shown = title or (name.rpartition(".")[2] if short else name) + call
    path = _path(name, obj, loader)
    if path and kind == "func" and _is_module(path, loader):  # a function that is named as its module
        path += f".{path.rpartition('.')[2]}"
    return f'<autoref identifier="{path}" optional>`{shown}`</autoref>' if path else f"`{shown}`"


def _path(name: str, obj: Object, loader: GriffeLoader) -> str | None:
    """The full path of what is ours; None for what belongs to another library."""
    first, _, rest = name.partition(".")
    if first in OURS:
        path = name
    else:
        try:
            path = obj.resolve(first) + (f".{rest}" if rest else "")
        except GriffeError:
            if rest or _has_foreign_base(obj):
                return None
            path = f"{obj.module.path}.{name}"
        if path.partition(".")[0] not in OURS:
            return None
    if path.partition(".")[0] not in loader.modules_collection:
        return path
    try:
        target = loader.modules_collection[path]
        return target.target_path if isinstance(target, Alias) else path
    except (KeyError, GriffeError):
        if _has_foreign_base(obj):
            return None
        logger.warning("%s: its docstring refers to %s, which does not exist", obj.path, name)
        return None


def _is_module(path: str, loader: GriffeLoader) -> bool:
    return path.partition(".")[0] in loader.modules_collection and loader.modules_collection[path].is_module


def _has_foreign_base(obj: Object) -> bool:
    """Whether ``obj`` is or lies in a class that inherits what is not analysed here."""
    owner = obj if obj.is_class else obj.parent
    return isinstance(owner, Class) and bool(owner.bases)
