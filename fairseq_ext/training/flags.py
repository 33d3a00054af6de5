"""The options that trainers share, one name each; a trainer gives them defaults of its own in a subclass."""

from __future__ import annotations

from dataclasses import dataclass

from fairseq_ext.training.options import OptionSet, check_seeds, option, seed_option
from fairseq_ext.training.runs import run_name

__all__ = ["PRECISIONS", "Device", "Precision", "Runs"]

PRECISIONS = ("no", "fp16", "bf16")


@dataclass(frozen=True, kw_only=True)
class Device(OptionSet):
    """Where to compute."""

    device: str = option("auto", "device to compute on: cpu, cuda, ...; auto: the GPU where there is one")


@dataclass(frozen=True, kw_only=True)
class Precision(OptionSet):
    """Number format of the forward pass."""

    mixed_precision: str = option("no", "number format of the forward pass", PRECISIONS)


@dataclass(frozen=True, kw_only=True)
class Runs(Device):
    """Runs of an experiment; finished ones are not run again."""

    out: str = option("runs/experiment", "folder of results and models")
    seed: int = seed_option(1, "first seed; the others count on")
    runs: int = option(1, "number of seeds", least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_seeds(self.seed, self.runs)

    @property
    def seeds(self) -> dict[str, int]:
        """The name of each run, and its seed."""
        return {run_name(seed=seed): seed for seed in range(self.seed, self.seed + self.runs)}
