"""What a recipe is: a model preset, data, training and evaluation."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from fairseq_ext.recipes.presets import PRESETS
from fairseq_ext.recipes.settings import SourcedValues

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
        name: of the folder in ``examples/translation`` or of the corpus.
        folder: where the recipe's commands look for it.
        prepare: the command that makes ``{data}``.
        score: the command that prints the figure of what the evaluation wrote to ``{save}``; it fails without one.
    """

    name: str
    folder: str
    prepare: str
    score: str


@dataclass(frozen=True)
class Recipe:
    """How one published or comparable result is made, each value with its source.

    Args:
        name: of the recipe, and of its file in ``conf/``.
        method: short name; ``DATA/METHOD`` is another name of the recipe.
        data: what it is trained and tested on.
        training: options of ``fairseq-train``.
        evaluation: ``average``, how many last epoch checkpoints are averaged, or else ``checkpoint``, which one is
            taken; and options of ``fairseq-generate`` or ``fairseq-eval-lm``.
        arch: the model preset; default: the one of this name.
        model: model options in which the recipe departs from its preset.
        gpus: for how many the ``update_freq`` is.
        times: how many times the recipe's tokens an update sees; not 1 where ``gpus`` do not divide them.
        summary: one line; default: the preset's.
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
        """Batches that each of ``gpus`` gathers, so that an update sees at least as many as the recipe's."""
        return -(-self.training["update_freq"].value * self.gpus // gpus)

    def per_gpu(self, gpus: int) -> tuple[dict[str, int], Fraction]:
        """The settings with which an update of ``gpus`` sees the recipe's tokens, and how many times those it sees.

        ``update_freq`` is divided first, then the size of a batch: into whole samples, or so that it still holds the
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
