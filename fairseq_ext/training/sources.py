"""The values of a recipe: each under the name of its option, with the source that states it.

A set of values is a plain dictionary, so that ``a | b`` is ``a`` with ``b`` on top.
"""

from __future__ import annotations

from typing import Any, NamedTuple

__all__ = ["OURS", "Setting", "SourcedValues", "by"]

OURS = "our choice"
"""The source of what nobody published."""


class Setting(NamedTuple):
    """A value and where it was published."""

    value: Any
    source: str


SourcedValues = dict[str, Setting]


def by(source: str, **values: Any) -> SourcedValues:
    """The ``values`` that ``source`` has."""
    return {option: Setting(value, source) for option, value in values.items()}
