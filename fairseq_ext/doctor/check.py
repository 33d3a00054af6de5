"""The result of one check of the doctor."""

from __future__ import annotations

from typing import Any, NamedTuple

__all__ = ["Check"]


class Check(NamedTuple):
    """A value for ``--json``, the same as lines of text, and what is wrong: each problem with what to do."""

    value: Any
    text: str
    problems: list[str] = []  # noqa: RUF012 - nobody appends to a default
