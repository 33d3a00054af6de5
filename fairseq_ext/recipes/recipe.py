"""What a recipe is: a model preset, data, training and evaluation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fairseq_ext.recipes.presets import PRESETS
from fairseq_ext.recipes.settings import Settings

__all__ = ["Data", "Recipe", "values"]


def values(settings: Settings) -> dict[str, Any]:
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
        summary: one line; default: the preset's.
    """

    name: str
    method: str
    data: Data
    training: Settings
    evaluation: Settings
    arch: str = ""
    model: Settings = field(default_factory=dict)
    gpus: int = 1
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
