"""Tables made of the objects that the programs themselves read: presets, recipes, and the options of each command."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import sys
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, get_type_hints

from mkdocs.exceptions import PluginError

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from fairseq_ext.recipes import PRESETS, RECIPES
from fairseq_ext.training.options import flag

MARK = re.compile(r"^<!-- table: (\w+) ?([\w.]*) -->$", re.MULTILINE)


def on_page_markdown(markdown: str, page: Any, **kwargs: Any) -> str:
    """The page with a table in the place of each ``<!-- table: NAME ARGUMENT -->``."""

    def replace(mark: re.Match[str]) -> str:
        if mark[1] not in TABLES:
            raise PluginError(f"{page.file.src_uri}: there is no table {mark[1]!r}, only {', '.join(TABLES)}")
        return TABLES[mark[1]](*filter(None, [mark[2]]))

    return MARK.sub(replace, markdown)


def _table(head: list[str], rows: Iterable[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


def _presets() -> str:
    rows = []
    for name, preset in sorted(PRESETS.items()):
        sources = dict.fromkeys(setting.source for setting in preset.settings.values())
        rows.append([f"`{name}`", preset.summary, "; ".join(sources)])
    return _table(["`--arch`", "what it is", "sources of its values"], rows)


def _recipes() -> str:
    rows = [[f"`{name}`", f"`{recipe.alias}`", recipe.summary] for name, recipe in RECIPES.items()]
    return _table(["recipe", "the same by data and method", "what it is"], rows)


def _options(path: str) -> str:
    """Of the option set of this path."""
    module, _, name = path.rpartition(".")
    return _option_table([getattr(_imported(module), name)])


def _commands(module: str) -> str:
    """Of the program ``python -m MODULE``: a heading and a table for each of its commands."""
    program = _imported(f"{module}.__main__").main
    parts = []
    for name, function in program.commands.items():
        kinds = [kind for key, kind in get_type_hints(function).items() if key != "return"]
        summary = (inspect.getdoc(function) or "").partition("\n\n")[0]
        parts.append(f"### {program.prog} {name}\n\n{summary}\n\n{_option_table(kinds)}")
    return "\n\n".join(parts)


def _imported(module: str) -> Any:
    with warnings.catch_warnings(action="ignore"):  # of other libraries, to their developers
        return importlib.import_module(module)


def _option_table(kinds: list[Any]) -> str:
    return _table(["option", "default", "what it does"], [_row(item) for kind in kinds for item in _fields(kind)])


def _fields(kind: Any) -> list[dataclasses.Field[Any]]:
    return [item for item in dataclasses.fields(kind) if "help" in item.metadata]


def _row(item: dataclasses.Field[Any]) -> list[str]:
    metadata = item.metadata
    name = (
        item.name.upper() if metadata["positional"] else flag(f"no_{item.name}" if item.default is True else item.name)
    )
    about = re.sub(r"([*_<|])", r"\\\1", metadata["help"])
    if metadata["choices"]:
        about += f": {', '.join(f'`{choice}`' for choice in metadata['choices'] if choice)}"
    return [f"`{name}`", _default(item.default), about]


def _default(value: Any) -> str:
    if value is dataclasses.MISSING:
        return "required"
    if isinstance(value, bool):
        return "on" if value else "off"
    words = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return f"`{words}`" if words else ""


TABLES: dict[str, Callable[..., str]] = {
    "presets": _presets,
    "recipes": _recipes,
    "options": _options,
    "commands": _commands,
}
