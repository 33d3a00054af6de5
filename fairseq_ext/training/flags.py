"""The options that trainers share, one name each; a trainer gives them defaults of its own in a subclass."""

from __future__ import annotations

from dataclasses import dataclass

from fairseq_ext.options import OptionSet, option

__all__ = ["Device", "Runs"]


@dataclass(frozen=True, kw_only=True)
class Device(OptionSet):
    """Where to compute."""

    device: str = option("auto", "auto: the GPU where there is one; cpu, cuda, ...")


@dataclass(frozen=True, kw_only=True)
class Runs(Device):
    """Runs of an experiment; finished ones are not run again."""

    out: str = option("runs/experiment", "folder of results and models")
    seed: int = option(1, "first seed; the others count on", least=0)
    runs: int = option(1, "number of seeds", least=1)

    @property
    def seeds(self) -> dict[str, int]:
        """The name of each run, and its seed."""
        return {f"seed{seed}": seed for seed in range(self.seed, self.seed + self.runs)}
