"""The figures that the commands left in the folders of experiments, for the pictures."""

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
"""Of experiments, in their order."""


RESULTS = ("evaluation", "ood", *(f"attack_{name}" for name in ATTACKS))
"""Of the commands, by their files."""

MAY_DIFFER = ("device", "eval_batch_size", "batch_size", "epsilons", "objectives", "scores", "others")
"""Options of results of one picture, which tells radii and objectives apart; other images are compared by content.

Results of earlier versions call the batch size by its old name.
"""


class Results:
    """The results that the commands left in the folder of an experiment.

    Args:
        folder: of ``train``, with results of ``evaluate``, ``ood`` and ``attack`` below it.

    Raises:
        OptionError: no finished run, or results of one command that were not made alike, or two of one model.
        DataError: arrays whose results are gone.
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
        if damaged := [path for path, content in results.items() if not isinstance(content, dict)]:
            raise DataError(f"{damaged[0]}: not the results of a command")
        for (one, first), (other, second) in combinations(results.items(), 2):
            _check_alike(one, first, other, second)
        return results

    def json(self, name: str) -> list[dict[str, Any]]:
        """The results of one command, of every model."""
        return list(self.results[name].values())

    def arrays(self, name: str) -> list[dict[str, np.ndarray]]:
        """Its arrays."""
        return [load_npz(path.with_suffix(".npz")) for path in self.results[name]]


def _check_alike(one: Path, first: dict[str, Any], other: Path, second: dict[str, Any]) -> None:
    """Of two models, and otherwise made alike, as far as their files say it: earlier ones say little."""
    made, model = (_made(first), _made(second)), "weights" if "inputs" in first and "inputs" in second else "model"
    shared = [name for name in made[0] if name in made[1] and name not in ("model", "weights")]
    if model == "weights":  # digests say it, wherever the images lie
        shared.remove("data")
    for name in shared:
        if made[0][name] != made[1][name]:
            values = f"{made[0][name]} and {made[1][name]}"
            raise OptionError(
                f"plot: {one} and {other} differ in {name}, {values}: keep those of one below an experiment"
            )
    if made[0][model] == made[1][model]:
        raise OptionError(f"plot: {one} and {other} are both of {first.get('model')}: keep one of them")


def _made(content: dict[str, Any]) -> dict[str, Any]:
    """How results were made: by their options, on which images, with which weights."""
    options = {name: value for name, value in content.get("options", {}).items() if name not in MAY_DIFFER}
    inputs = {f"inputs.{name}": value for name, value in content.get("inputs", {}).items()}
    weights = inputs.pop("inputs.model", "")
    return {name: content.get(name) for name in ("model", "data", "images")} | options | inputs | {"weights": weights}


Experiments = Mapping[str, Results]
"""By their names."""
