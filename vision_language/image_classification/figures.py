"""What the commands left in the folders of experiments, for the pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fairseq_ext.training.errors import DataError, OptionError, first_line
from fairseq_ext.training.files import read_json
from fairseq_ext.training.plotting import PALETTE

__all__ = ["COLOURS", "Experiments", "Figures"]

COLOURS = PALETTE
"""Of experiments, in their order."""


class Figures:
    """What the commands left in the folder of an experiment."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        content = read_json(folder / "results.json") if (folder / "results.json").exists() else None
        if not isinstance(content, dict) or not isinstance(content.get("runs"), dict) or not content["runs"]:
            raise OptionError(f"plot: {folder} holds no finished run of train")
        self.runs: list[dict[str, Any]] = list(content["runs"].values())
        self.settings: dict[str, Any] = content.get("settings") or {}

    def json(self, name: str) -> list[dict[str, Any]]:
        """The results of one command, of every model."""
        return [read_json(path) for path in sorted(self.folder.glob(f"**/{name}.json"))]

    def arrays(self, name: str) -> list[dict[str, np.ndarray]]:
        """Its arrays."""
        return [_read_arrays(path) for path in sorted(self.folder.glob(f"**/{name}.npz"))]


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except Exception as error:  # damage makes zipfile and NumPy raise many types
        raise DataError(f"{path}: damaged ({first_line(error)})") from error


Experiments = Mapping[str, Figures]
"""By their names."""
