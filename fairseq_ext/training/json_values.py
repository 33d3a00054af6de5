"""JSON with one meaning: no name twice in a mapping, texts of whole characters, numbers that fit into float64."""

from __future__ import annotations

import json
import math
import re
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

from fairseq_ext.training.errors import DataError

__all__ = ["is_finite", "is_number", "json_text", "parse_json"]

SURROGATE = re.compile("[\ud800-\udfff]")
HALF = re.compile(r"\\u[dD][89a-fA-F]")
ESCAPE = re.compile(r"\\(?:u[dD][89abAB]..\\u[dD][c-fC-F]..|(u[dD][89a-fA-F]..)|.)", re.DOTALL)
"""Each escape of a JSON text; its group is one of half a character alone."""
LARGE = re.compile(r"\d{309}")
FILE_NAME = re.compile(r"u[dD][cC][89a-fA-F].")
"""What stands for a byte of a file name that is not UTF-8, in Python and hence in what :func:`json_text` writes."""


def parse_json(text: str, origin: str, kind: str, file_names: bool = False) -> Any:
    """The value of a JSON text.

    Args:
        text: the JSON.
        origin: where the text stands, for messages.
        kind: what the text should be, for messages.
        file_names: whether the text may have file names that are not UTF-8, as :func:`json_text` writes them.

    Raises:
        DataError: the text is not JSON, a name occurs twice in a mapping, a string has half of a character (a lone
            surrogate), which cannot be written, or a whole number is beyond float64, so that no array can hold it.
    """

    def mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) < len(pairs):
            ((name, _),) = Counter(name for name, _ in pairs).most_common(1)
            raise DataError(f"{origin}: the name {name!r} stands twice in a mapping")
        return value

    def integer(digits: str) -> int:
        number = int(digits)
        if abs(number) > sys.float_info.max:
            raise DataError(f"{origin}: a number of {len(digits.lstrip('-'))} digits is too large")
        return number

    hooks: dict[str, Any] = {"parse_int": integer} if LARGE.search(text) else {}  # it would slow down other files
    try:
        value = json.loads(text, object_pairs_hook=mapping, **hooks)
    except DataError:
        raise
    except (ValueError, RecursionError) as error:  # hostile nesting
        raise DataError(f"{origin}: not a JSON {kind}: {error}") from error
    if HALF.search(text):
        for escape in ESCAPE.finditer(text):
            if escape[1] and not (file_names and FILE_NAME.fullmatch(escape[1])):
                place = f"{escape[0]} at character {escape.start() + 1}"
                raise DataError(f"{origin}: a text holds half of a character ({place})")
    return value


def json_text(value: Any, origin: str = "", indent: int | None = None, levels: int = 0) -> str:
    """``value`` as JSON that can be written as UTF-8, the bytes of file names that are not UTF-8 as escapes.

    Args:
        value: mappings, lists, texts and numbers; an undefined figure is None, which is written as ``null``.
        origin: what the value belongs to, for the message. Default: nothing.
        indent: spaces of each level. Default: all in one line.
        levels: in place of ``indent``, how many levels of mappings have each entry on a line of its own; what is below
            is in that line. Default: 0.

    Raises:
        DataError: a number that is not finite, which JSON cannot express; the message names it.
    """
    try:
        text = _in_lines(value, levels, indent)
    except ValueError:
        for name, number in _not_finite(value):
            raise DataError(
                f"{origin}{': ' if origin else ''}{name} is {number}, which is no result: a model or data are damaged, "
                "or a training diverged"
            ) from None
        raise
    return SURROGATE.sub(lambda half: f"\\u{ord(half[0]):04x}", text)


def _in_lines(value: Any, levels: int, indent: int | None = None, margin: str = "") -> str:
    """JSON of which the outer ``levels`` are laid out; json lays all out or nothing, and all without its C encoder."""
    if not levels or not isinstance(value, dict) or not value:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)
    inner = f"{margin}  "
    entries = (
        f"{inner}{json.dumps(key, ensure_ascii=False)}: {_in_lines(item, levels - 1, margin=inner)}"
        for key, item in value.items()
    )
    return "{\n" + ",\n".join(entries) + f"\n{margin}}}"


def _not_finite(value: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """The numbers that JSON cannot hold, named by the keys on the way to them."""
    if isinstance(value, float) and not math.isfinite(value):
        yield name or "the result", value
    elif isinstance(value, (dict, list, tuple)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _not_finite(item, f"{name}.{key}" if name else str(key))


def is_number(value: Any) -> bool:
    """Whether a value of JSON is a number; true and false are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_finite(value: Any) -> bool:
    """Whether a value of JSON is a number that a float can hold."""
    return is_number(value) and abs(value) <= sys.float_info.max
