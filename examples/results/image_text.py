"""The text and the pictures of image classification's results."""

from typing import Any
from pathlib import Path


def section(contents: list[dict[str, Any]]) -> str:
    return "## Images\n"


def pictures(contents: list[dict[str, Any]], folder: Path) -> None:
    pass
