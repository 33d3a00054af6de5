"""JSON that every reader reads: it has no word for NaN and infinity."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

from fairseq_ext.training.errors import DataError

__all__ = ["json_text"]


def json_text(value: Any, origin: str = "", indent: int | None = None) -> str:
    """``value`` as JSON. A figure that is undefined is None, which is ``null``.

    Args:
        value: mappings, lists, texts and numbers.
        origin: what the value is of, for the message. Default: nothing.
        indent: of each level. Default: all in one line.

    Raises:
        DataError: names a number that is not finite.
    """
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)
    except ValueError:
        for name, number in _not_finite(value):
            raise DataError(
                f"{origin}{': ' if origin else ''}{name} is {number}, which is no result: a model or data are damaged, "
                "or a training diverged"
            ) from None
        raise


def _not_finite(value: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """The numbers that JSON cannot hold, named by the keys on the way to them."""
    if isinstance(value, float) and not math.isfinite(value):
        yield name or "the result", value
    elif isinstance(value, (dict, list, tuple)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _not_finite(item, f"{name}.{key}" if name else str(key))
