"""A recipe as a hydra file, for ``fairseq-hydra-train``."""

from __future__ import annotations

from typing import Any

import yaml

from fairseq_ext.recipes.presets import PRESETS
from fairseq_ext.recipes.recipe import Recipe
from fairseq_ext.recipes.sections import SECTIONS
from fairseq_ext.training.sources import SourcedValues

__all__ = ["to_yaml"]

HEAD = """# @package _global_
# {summary}
# Made by `make recipes` from fairseq_ext/recipes; what follows each value is its source.
# fairseq-hydra-train --config-dir "$(fairseq-ext user-dir)/conf" --config-name {name} \\
#   common.user_dir="$(fairseq-ext user-dir)" task.data=DATA_BIN
# update_freq is for {gpus} GPU{s}; without a GPU: common.cpu=true common.fp16=false
"""
RATE = {"adagrad": ["  lr: ${optimization.lr}"]}
"""What an optimizer of fairseq's that has no dataclass is not told by hydra otherwise."""
LISTS = ("lr", "update_freq")  # fairseq takes one value for each of the first epochs


def to_yaml(recipe: Recipe) -> str:
    """The text of ``conf/NAME.yaml``: model and training; hydra has no commands for the evaluation."""
    sections = {
        section: {option: recipe.training[option] for option in options if option in recipe.training}
        for section, options in SECTIONS.items()
    }
    lines = [HEAD.format(summary=recipe.summary, name=recipe.name, gpus=recipe.gpus, s="s" * (recipe.gpus > 1))]
    for section, settings in sections.items():
        lines += _section(section, settings, {"common": "user_dir", "task": "data"}.get(section))
        if section == "task":
            preset = PRESETS[recipe.arch]
            lines += ["model:", f"  _name: {preset.model}", *_options(preset.settings | recipe.model), ""]
    return "\n".join(lines).rstrip() + "\n"


def _section(name: str, settings: SourcedValues, left_to_the_user: str | None) -> list[str]:
    if not settings:
        return []
    others = settings.copy()
    chosen = {"_name": others.pop(name)} if name in others else {}
    mandatory = [f"  {left_to_the_user}: ???"] if left_to_the_user else []
    rate = RATE.get(settings[name].value, []) if chosen else []
    return [f"{name}:", *_options(chosen), *mandatory, *rate, *_options(others), ""]


def _options(settings: SourcedValues) -> list[str]:
    lines = [
        (f"  {option}: {_scalar([value] if option in LISTS else value)}", source)
        for option, (value, source) in settings.items()
    ]
    return [f"{line:<44}  # {source}" for line, source in lines]


def _scalar(value: Any) -> str:
    return yaml.safe_dump([value], default_flow_style=True, width=1000).strip()[1:-1]
