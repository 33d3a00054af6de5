"""What a stored measurement holds: which data it was measured on, and whether another one may take its place."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fairseq_ext.training.files import output_folder, read_json, write_json
from fairseq_ext.training.json_values import json_text
from fairseq_ext.training.settings import digest, file_digest

DIGEST = "data_digest"
"""The key of :func:`data_digest` in a content; contents of earlier versions have none."""
PLACES = ("run", "translations")
"""Of a row: where something of it is kept."""


def data_digest(paths: Sequence[Path]) -> str:
    """Of the names and contents of all files in ``paths``, which are files and folders; empty where one is absent."""
    if not paths or not all(path.exists() for path in paths):
        return ""
    named = []
    for path in paths:
        files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
        named += [[file.relative_to(path.parent).as_posix(), file_digest(file)] for file in files]
    return digest(*named)


def covers(content: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether every finished run of ``other`` is one of ``content``, with the same figures."""
    rows, others = (each.get("rows", []) for each in (content, other))
    return _within(other.get("runs_of", {}), content.get("runs_of", {})) and all(
        any(_within(one, row) for row in rows) for one in others
    )


def _within(part: Any, whole: Any) -> bool:
    if isinstance(part, dict) and isinstance(whole, dict):
        return all(key in whole and _within(value, whole[key]) for key, value in part.items() if key not in PLACES)
    return bool(part == whole)


def aside_of(file: Path, out: Path) -> Path:
    """Where a measurement is kept that does not take the place of the stored ``file``."""
    return out / "measured" / file.name


def store(content: dict[str, Any], file: Path, out: Path, replace: bool) -> Path | None:
    """Write a content, where one stands only if that one's runs are all among its own.

    Args:
        content: what is measured so far.
        file: of ``docs/results``.
        out: folder of the runs.
        replace: write it in any case.

    Returns:
        Where it was written instead; None where ``file`` has it, or has more of the same runs already.
    """
    content = json.loads(json_text(content, str(file)))  # as it will be read: lists, and keys of text
    before = {} if replace or not file.exists() else read_json(file)
    if covers(content, before):
        write_json(file, content)
    elif not covers(before, content):
        aside = aside_of(file, out)
        output_folder(aside.parent)
        write_json(aside, content)
        return aside
    return None
