"""Verdicts on the pages of the methods: the rows of the results that are about them, with what limits each."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError

RESULTS = Path(__file__).resolve().parents[1] / "RESULTS.md"
MARK = re.compile(r"^<!-- verdicts: (.+) -->$", re.MULTILINE)
NOTE = re.compile(r"^(\d+)\. \*\w+\*, (.+)$", re.MULTILINE)


def on_page_markdown(markdown: str, page: Any, **kwargs: Any) -> str:
    """The page with a table in the place of ``<!-- verdicts: NAME; NAME -->``, of the methods of these names."""

    def replace(mark: re.Match[str]) -> str:
        section = RESULTS.read_text(encoding="utf-8").partition("\n## Verdicts\n")[2].partition("\n## ")[0]
        head, _, *rows = [row.strip("|").split(" | ") for row in section.splitlines() if row.startswith("|")]
        names, notes = mark[1].split("; "), dict(NOTE.findall(section))
        if lacking := [name for name in names if not any(is_of(name, cells[0].strip()) for cells in rows)]:
            raise PluginError(f"{page.file.src_uri}: the results have no verdict on {', '.join(lacking)}")
        own = [cells for cells in rows if any(is_of(name, cells[0].strip()) for name in names)]
        table = [head, ["", *["---"] * (len(head) - 1)], *([*cells[:-1], _in_words(cells[-1], notes)] for cells in own)]
        text = "\n".join(f"| {' | '.join(cell.strip() for cell in cells[1:])} |" for cells in table)
        return text.replace("](#", "](../RESULTS.md#")

    return MARK.sub(replace, markdown)


def is_of(name: str, method: str) -> bool:
    """Whether a row is about the method of a name: a part of it stands after a comma or in brackets."""
    return method == name or method.startswith((f"{name}, ", f"{name} ("))


def _in_words(limits: str, notes: dict[str, str]) -> str:
    """The limits of a row, which are numbers of notes, as what the notes say."""
    each = (part.partition(" ")[::2] for part in limits.strip().split("; ") if part)
    return "; ".join(f"*{cause}*, {notes[number]}" for cause, numbers in each for number in numbers.split(", "))
