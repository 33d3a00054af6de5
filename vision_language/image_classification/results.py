"""The results that the commands wrote into the folders of experiments, read for the figures."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from fairseq_ext.training.arrays import load_npz
from fairseq_ext.training.errors import DataError, OptionError
from fairseq_ext.training.files import read_json
from fairseq_ext.training.plotting import PALETTE
from vision_language.image_classification.attacks import ATTACKS

__all__ = ["COLOURS", "Experiments", "Results"]

COLOURS = PALETTE
"""Colours of the experiments, in their order."""


RESULTS = ("evaluation", "ood", *(f"attack_{name}" for name in ATTACKS))
"""Names of the files in which the commands keep their results."""

MAY_DIFFER = ("device", "eval_batch_size", "epsilons", "objectives", "scores", "others")
"""Options in which the results of one figure may differ.

A figure tells radii and objectives apart, and the images of ``others`` are compared by content.
"""


class Results:
    """The results that the commands wrote into the folder of an experiment.

    Args:
        folder: folder that ``train`` wrote, with results of ``evaluate``, ``ood`` and ``attack`` below it.

    Raises:
        OptionError: no finished run, two results of one command with different options, or two for the same model.
        DataError: damaged results, or an ``.npz`` file without its ``.json``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        content = read_json(folder / "results.json") if (folder / "results.json").exists() else None
        if not isinstance(content, dict) or not isinstance(content.get("runs"), dict) or not content["runs"]:
            raise OptionError(f"plot: {folder} holds no finished run of train")
        self.runs: list[dict[str, Any]] = list(content["runs"].values())
        self.settings: dict[str, Any] = content.get("settings") or {}
        self.results = {name: self._results(name) for name in RESULTS}

    def _results(self, name: str) -> dict[Path, dict[str, Any]]:
        for path in self.folder.glob(f"**/{name}.npz"):
            if not path.with_suffix(".json").exists():
                raise DataError(f"{path}: {name}.json is not beside it")
        results = {path: read_json(path) for path in sorted(self.folder.glob(f"**/{name}.json"))}
        if damaged := [path for path, content in results.items() if not _is_complete(content)]:
            raise DataError(f"{damaged[0]}: not the results of a command, which hold its options and inputs")
        for (one, first), (other, second) in combinations(results.items(), 2):
            _check_alike(one, first, other, second)
        return results

    def json(self, name: str) -> list[dict[str, Any]]:
        """The results of one command, for every model."""
        return list(self.results[name].values())

    def arrays(self, name: str) -> list[dict[str, np.ndarray]]:
        """The arrays of one command, for every model."""
        return [load_npz(path.with_suffix(".npz")) for path in self.results[name]]


def _is_complete(content: Any) -> bool:
    """Whether results say how they were made, and of which weights."""
    parts = [content.get(part) for part in ("options", "inputs")] if isinstance(content, dict) else []
    return bool(parts) and all(isinstance(part, dict) for part in parts) and "model" in content["inputs"]


def _check_alike(one: Path, first: dict[str, Any], other: Path, second: dict[str, Any]) -> None:
    """Refuse two results for the same weights, or that were made in different ways."""
    made = _made(first), _made(second)
    for name in (name for name in made[0] if name in made[1]):  # ``others`` may be in one alone
        if made[0][name] != made[1][name]:
            values = f"{made[0][name]} and {made[1][name]}"
            raise OptionError(
                f"plot: {one} and {other} differ in {name}, {values}: keep those of one below an experiment"
            )
    if first["inputs"]["model"] == second["inputs"]["model"]:
        raise OptionError(f"plot: {one} and {other} are both of {first.get('model')}: keep one of them")


def _made(content: dict[str, Any]) -> dict[str, Any]:
    """How results were made: the options, the number of images, and digests that say which, wherever they lie."""
    options = {name: value for name, value in content["options"].items() if name not in MAY_DIFFER}
    inputs = {f"inputs.{name}": value for name, value in content["inputs"].items() if name != "model"}
    return {"images": content.get("images"), **options, **inputs}


Experiments = Mapping[str, Results]
"""The results of experiments, by the experiments' names."""
