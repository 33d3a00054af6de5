"""What every trainer needs: the runs of an experiment in one ``results.json``, and the device."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import os
import platform
import re
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import torch

from fairseq_ext import kernels
from fairseq_ext.training.board import board_of_run
from fairseq_ext.training.checkpoint import CHECKPOINT
from fairseq_ext.training.errors import DataError, OptionError, first_few
from fairseq_ext.training.files import output_folder, read_json, write_json, writing_to
from fairseq_ext.training.json_values import is_finite
from fairseq_ext.training.locks import locked
from fairseq_ext.training.progress import Parts, refuse_processes
from fairseq_ext.training.settings import Settings

__all__ = ["Experiment", "environment", "run_name", "shared_results", "torch_device"]


def run_name(**numbers: int) -> str:
    """The name of a run, such as ``split0-init2`` of ``run_name(split=0, init=2)``."""
    return "-".join(f"{part}{number}" for part, number in numbers.items())


def environment(*packages: str, device: str | torch.device) -> dict[str, str | int]:
    """The environment that figures depend on: hardware, threads, and the versions of ``packages``.

    A GPU is named if it is the ``device`` that computes, with Triton's version and the reason if kernels are not used.

    Raises:
        OptionError: the environment variable ``FAIRSEQ_EXT_KERNELS`` is neither 0 nor 1.
    """
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    device = torch.device(device)
    return {
        "processor": models[0] if models else platform.machine(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        **(_card(device) if device.type == "cuda" else {}),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", *packages)},
    }


def _card(device: torch.device) -> dict[str, str]:
    try:
        unused = kernels.why_unused(device)
    except ValueError as error:
        raise OptionError(str(error)) from error
    triton = {"triton": version("triton")} if importlib.util.find_spec("triton") else {}
    return {"gpu": torch.cuda.get_device_name(device), "kernels": unused or "used", **triton}


def torch_device(name: str = "auto") -> torch.device:
    """The device of ``--device``; ``auto`` is the GPU if there is one.

    Raises:
        OptionError: a name that torch does not know, or a device that this machine does not have.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was compiled with CUDA
        raise OptionError(f"--device {name}: {str(error).splitlines()[0]}") from error


class Experiment:
    """Finished runs of equal settings, each under a name of its own.

    Every :meth:`add` rewrites ``results.json`` atomically: the settings, each run on one line with the
    :func:`environment` that it ran in and, over all runs, mean and population standard deviation of every number.
    Several commands of equal settings may fill one folder at the same time, each with runs of its own.

    Args:
        folder: the folder of ``results.json``; made if it is absent.
        settings: whatever changes the outcome of a run; best made by :meth:`Settings.of`, which knows the options'
            defaults.
        packages: distributions whose versions are recorded beside torch's.
        device: the device that the runs are trained on.

    Raises:
        OptionError: ``--out``: the folder has runs with other settings, or cannot be written.
        DataError: a damaged ``results.json``.

    Example:
        >>> experiment = Experiment(out, Settings.of(options, inputs={"data": digest(data)}), device=device)
        >>> experiment.complete({run_name(seed=seed): partial(train, seed) for seed in range(3)})  # {"accuracy": 0.81}
        >>> print(experiment.report("accuracy"))
        accuracy 0.81 ± 0.012
        3 runs: runs/experiment/results.json
    """

    def __init__(
        self,
        folder: str | Path,
        settings: Mapping[str, Any],
        packages: tuple[str, ...] = (),
        *,
        device: str | torch.device,
    ) -> None:
        self.file = Path(folder) / "results.json"
        self.settings = Settings(settings)
        self.environment = environment(*packages, device=device)
        self.runs = self._stored()
        output_folder(self.file.parent)  # a folder that cannot be written must not cost a run first

    def _stored(self) -> dict[str, dict[str, Any]]:
        """The runs that the file holds now."""
        if not self.file.exists():
            return {}
        content = self._read()
        if content["runs"]:
            self._refuse_other(content["settings"])
        return dict(content["runs"])

    def _read(self) -> dict[str, Any]:
        try:
            content = read_json(self.file)
        except (OSError, ValueError) as error:
            raise DataError(f"{self.file}: not JSON ({type(error).__name__}); delete it to start anew") from error
        if not isinstance(content, dict) or not all(
            isinstance(content.get(part), dict) for part in ("settings", "runs")
        ):
            raise DataError(f"{self.file}: not the results of an experiment; delete it to start anew")
        if other := sorted(content.keys() - {"settings", "runs", "summary"}):  # the next run would drop it
            raise DataError(f"{self.file}: holds {first_few(other)} beside settings, runs and summary")
        return content

    def _refuse_other(self, settings: Mapping[str, Any]) -> None:
        for name, before, now in self.settings.differing(settings):
            raise OptionError(
                f"--out: {self.file} holds runs with {name} = {before}, now {name} = {now}: "
                "choose another folder, or delete it"
            )

    def add(self, name: str, run: Mapping[str, Any]) -> None:
        """Keep a finished run, beside those that other commands have finished in the folder meanwhile.

        Raises:
            OptionError: those have other settings.
        """
        with writing_to(self.file.parent) as folder, locked(folder):
            self.runs |= {**self._stored(), name: {**run, "environment": self.environment}}
            content = {"settings": self.settings, "runs": self.runs, "summary": self.summary()}
            write_json(self.file, content, levels=2)

    def complete(
        self,
        runs: Mapping[str, Callable[[], Mapping[str, Any]]],
        accelerator: Any | None = None,
        checkpoints: str | Path | None = None,
    ) -> Self:
        """Train every run that is not finished.

        A finished run needs no checkpoint: its checkpoint is removed, and no other.

        Args:
            runs: functions that train, by the name of the run; called by all processes.
            accelerator: the processes, of which the first records. It is put back into its first state after each run,
                so that no run depends on those before. Default: a single process.
            checkpoints: the folder where a run keeps its checkpoint. Default: the folder of its name.

        Raises:
            OptionError: ``--out`` has runs with another kind of name, whose figures would be mixed with these; or there
                are several processes without an ``accelerator``, which would all train and write the same.
        """
        if accelerator is None:
            refuse_processes("this training")
        if other := [name for name in self.runs if _kind(name) not in map(_kind, runs)]:
            raise OptionError(
                f"--out: {self.file} holds the run {other[0]}, those of now are called {', '.join(runs)[:80]}: "
                "choose another folder, or delete it"
            )
        main = accelerator is None or accelerator.is_main_process
        if accelerator:
            accelerator.wait_for_everyone()  # all have read which runs are finished
        if main:
            self._drop_checkpoints(self.runs, checkpoints)  # left by a run that was killed before it removed them
        left = {name: run for name, run in runs.items() if name not in self.runs}
        with Parts(len(runs), len(runs) - len(left)) as parts:
            for name, run in parts.each(left.items()):
                with _unchanged(accelerator), board_of_run(self.file.parent, name):
                    record = run()
                if main:
                    self.add(name, record)
                    self._drop_checkpoints([name], checkpoints)
                else:
                    self.runs[name] = dict(record)
        return self

    def _drop_checkpoints(self, names: Iterable[str], checkpoints: str | Path | None) -> None:
        for name in names:
            folder = self.file.parent / name
            Path(checkpoints or folder, CHECKPOINT).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # a folder that holds a model stays
                folder.rmdir()

    def summary(self) -> dict[str, dict[str, float]]:
        """``{metric: {"mean", "std", "runs"}}`` of every number that all runs hold."""
        runs = list(self.runs.values())
        return {
            name: {
                "mean": statistics.fmean(run[name] for run in runs),
                "std": statistics.pstdev(run[name] for run in runs),
                "runs": len(runs),
            }
            for name in shared_results(runs)
        }

    def report(self, *names: str) -> str:
        """A line for each of ``names`` that all runs have, with its mean and population standard deviation."""
        summary = self.summary()
        lines = [
            f"{name} {summary[name]['mean']:.4g} ± {summary[name]['std']:.2g}" for name in names if name in summary
        ]
        return "\n".join([*lines, f"{len(self.runs)} runs: {self.file}"])


@contextlib.contextmanager
def _unchanged(accelerator: Any | None) -> Iterator[None]:
    """A context after which ``accelerator`` holds no model of the run, and scales losses as before it."""
    scaler = getattr(accelerator, "scaler", None)
    scale = copy.deepcopy(scaler.state_dict()) if scaler else {}
    try:
        yield
    finally:
        if accelerator:
            accelerator.free_memory()
        if scaler:
            scaler.load_state_dict(scale)


def _kind(name: str) -> str:
    """The name of a run without its numbers."""
    return re.sub(r"\d+", "", name)


def shared_results(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names of the numbers that all runs hold."""
    names = runs[0] if runs else {}
    # NaN, which earlier versions stored, counts as no figure, like None.
    return [name for name in names if all(is_finite(run.get(name)) for run in runs)]
