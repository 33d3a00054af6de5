"""Tables of presets and recipes, from the tables that ``--arch`` and ``fairseq-ext recipe`` are made of."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from fairseq_ext.recipes import PRESETS, RECIPES

MARK = re.compile(r"^<!-- table: (\w+) -->$", re.MULTILINE)


def on_page_markdown(markdown: str, page: Any, **kwargs: Any) -> str:
    """The page with a table in the place of each ``<!-- table: NAME -->``."""

    def replace(mark: re.Match[str]) -> str:
        if mark[1] not in TABLES:
            raise PluginError(f"{page.file.src_uri}: there is no table {mark[1]!r}, only {', '.join(TABLES)}")
        head, *rows = TABLES[mark[1]]()
        return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])

    return MARK.sub(replace, markdown)


def _presets() -> Iterable[list[str]]:
    yield ["`--arch`", "what it is", "sources of its values"]
    for name, preset in sorted(PRESETS.items()):
        sources = dict.fromkeys(setting.source for setting in preset.settings.values())
        yield [f"`{name}`", preset.summary, "; ".join(sources)]


def _recipes() -> Iterable[list[str]]:
    yield ["recipe", "the same by data and method", "what it is"]
    for name, recipe in RECIPES.items():
        yield [f"`{name}`", f"`{recipe.alias}`", recipe.summary]


TABLES: dict[str, Callable[[], Iterable[list[str]]]] = {"presets": _presets, "recipes": _recipes}
