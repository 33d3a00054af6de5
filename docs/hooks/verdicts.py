"""Verdicts on the pages of the methods: the rows of the results that are about them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError

RESULTS = Path(__file__).resolve().parents[1] / "RESULTS.md"
MARK = re.compile(r"^<!-- verdicts: (.+) -->$", re.MULTILINE)
SHOWN = 4
"""Columns behind the method's name: what limits a verdict stands in the results."""


def on_page_markdown(markdown: str, page: Any, **kwargs: Any) -> str:
    """The page with a table in the place of ``<!-- verdicts: NAME, NAME -->``, of the methods whose names begin so."""

    def replace(mark: re.Match[str]) -> str:
        section = RESULTS.read_text(encoding="utf-8").partition("\n## Verdicts\n")[2].partition("\n## ")[0]
        head, _, *rows = [row.strip("| ").split(" | ") for row in section.splitlines() if row.startswith("|")]
        own = [cells for cells in rows if cells[0].startswith(tuple(mark[1].split(", ")))]
        if not own:
            raise PluginError(f"{page.file.src_uri}: the results have no verdict on {mark[1]}")
        table = [head, ["", *["---"] * SHOWN], *own]
        text = "\n".join(f"| {' | '.join(cells[1 : SHOWN + 1])} |" for cells in table)
        return text.replace("](#", "](../RESULTS.md#")

    return MARK.sub(replace, markdown)
