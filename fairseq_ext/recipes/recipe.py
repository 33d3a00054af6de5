"""The parts of a recipe: a model preset, data, training and evaluation."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from fairseq_ext.recipes.presets import PRESETS
from fairseq_ext.training.sources import SourcedValues

__all__ = ["Data", "Recipe", "values"]

LONGEST = 1024
"""Tokens of the longest sentence that fairseq's models read by default."""


def values(settings: SourcedValues) -> dict[str, Any]:
    """The values without their sources."""
    return {option: setting.value for option, setting in settings.items()}


@dataclass(frozen=True)
class Data:
    """A data set: how its folder is prepared, and how an evaluation is scored.

    Args:
        name: name of the folder in ``examples/translation``, or of the corpus.
        folder: where the recipe's commands look for the data set.
        prepare: the command that makes ``{data}``.
        score: the command that prints the score of the output that the evaluation wrote to ``{save}``; it fails if
            there is no score.
    """

    name: str
    folder: str
    prepare: str
    score: str


@dataclass(frozen=True)
class Recipe:
    """How one published or comparable result is made, each value with its source.

    Args:
        name: name of the recipe, and of its file in ``conf/``.
        method: short name; ``DATA/METHOD`` is another name of the recipe.
        data: the data set that the recipe trains and tests on.
        training: options of ``fairseq-train``.
        evaluation: ``average``, how many of the last epoch checkpoints are averaged, or else ``checkpoint``, which one
            is taken; and options of ``fairseq-generate`` or ``fairseq-eval-lm``.
        arch: the model preset; default: the preset with the recipe's name.
        model: model options in which the recipe departs from its preset.
        gpus: the number of GPUs that ``update_freq`` is meant for.
        times: how many times the recipe's tokens an update sees; not 1 if they cannot be divided among ``gpus``.
        summary: a line about the recipe; default: the preset's.
    """

    name: str
    method: str
    data: Data
    training: SourcedValues
    evaluation: SourcedValues
    arch: str = ""
    model: SourcedValues = field(default_factory=dict)
    gpus: int = 1
    times: Fraction = Fraction(1)
    summary: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "arch", self.arch or self.name)
        object.__setattr__(self, "summary", self.summary or PRESETS[self.arch].summary)

    @property
    def alias(self) -> str:
        """``DATA/METHOD``."""
        return f"{self.data.name}/{self.method}"

    def update_freq(self, gpus: int) -> int:
        """Batches that each of ``gpus`` gathers, so that an update sees at least as many batches as in the recipe."""
        return -(-self.training["update_freq"].value * self.gpus // gpus)

    def per_gpu(self, gpus: int) -> tuple[dict[str, int], Fraction]:
        """The settings for updates of the recipe's tokens on ``gpus``, and how many times these an update really sees.

        ``update_freq`` is divided first, then the size of a batch, if that leaves whole samples, or room for the
        longest sentence.
        """
        training, steps = values(self.training), self.update_freq(gpus)
        share = Fraction(training["update_freq"] * self.gpus, steps * gpus)
        sizes = {option: training[option] * share for option in ("max_tokens", "batch_size") if option in training}
        tokens, sample = sizes.get("max_tokens", Fraction(LONGEST)), training.get("tokens_per_sample")
        divides = all(size.denominator == 1 for size in sizes.values())
        if divides and (tokens % sample == 0 if sample else tokens >= LONGEST):
            return {"update_freq": steps, **{option: int(size) for option, size in sizes.items()}}, Fraction(1)
        return {"update_freq": steps}, 1 / share
