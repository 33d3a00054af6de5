"""The runs of one experiment (splits x seeds, folds, ...) in one ``results.json``, so that a killed one goes on."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from .errors import OptionError
from .files import read_json, write_json

__all__ = ["Experiment", "environment"]


def environment(*packages: str) -> dict[str, str | int]:
    """What measured figures depend on beside the code: hardware, threads, and the versions of ``packages``."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return {
        "processor": models[0] if models else platform.machine(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        **gpu,
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", *packages)},
    }


class Experiment:
    """Finished runs of equal settings, each under a name of its own.

    Every :meth:`add` rewrites ``results.json`` atomically: the settings, the :func:`environment`, each run and, over
    all runs, mean and population standard deviation of every number.

    Args:
        folder: holds ``results.json``; made where absent.
        settings: whatever changes the outcome of a run, as JSON.
        packages: distributions whose versions are recorded beside torch's.

    Raises:
        OptionError: ``--out`` where the folder holds runs of other settings, or cannot be written.

    Example:
        >>> experiment = Experiment(out, vars(options))
        >>> for seed in range(3):
        ...     name = f"seed{seed}"
        ...     if name not in experiment.runs:
        ...         experiment.add(name, train(seed))  # {"accuracy": 0.81, ...}
        >>> experiment.summary()["accuracy"]["mean"]
    """

    def __init__(self, folder: str | Path, settings: Mapping[str, Any], packages: tuple[str, ...] = ()) -> None:
        self.file = Path(folder) / "results.json"
        self.settings = {
            name: str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
            for name, value in settings.items()
        }
        self.environment = environment(*packages)
        self.runs: dict[str, dict[str, Any]] = {}
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OptionError(f"--out: cannot write to {folder}: {error.strerror}") from error
        if self.file.exists():
            found = read_json(self.file)
            self._refuse_other(found["settings"])
            self.runs = found["runs"]

    def _refuse_other(self, found: Mapping[str, Any]) -> None:
        for name in sorted({*found, *self.settings}):
            before, now = found.get(name), self.settings.get(name)
            if before != now:
                raise OptionError(
                    f"--out: {self.file} holds runs with {name} = {before}, now {name} = {now}: "
                    "choose another folder, or delete it"
                )

    def add(self, name: str, run: Mapping[str, Any]) -> None:
        """Keep a finished run."""
        self.runs[name] = dict(run)
        content = {
            "settings": self.settings,
            "environment": self.environment,
            "runs": self.runs,
            "summary": self.summary(),
        }
        write_json(self.file, content)

    def summary(self) -> dict[str, dict[str, float]]:
        """``{metric: {"mean", "std", "runs"}}`` of every number that all runs hold."""
        runs = list(self.runs.values())
        shared = [
            key for key in (runs[0] if runs else {}) if all(isinstance(run.get(key), (int, float)) for run in runs)
        ]
        return {
            name: {
                "mean": statistics.fmean(run[name] for run in runs),
                "std": statistics.pstdev(run[name] for run in runs),
                "runs": len(runs),
            }
            for name in shared
        }
