"""Every published recipe, defined once: model preset, data, training and evaluation, each value with its source.

The presets of ``--arch``, the files of ``conf/`` for hydra, and the commands that ``fairseq-ext recipe`` prints and
``examples/translation`` runs are all made from the tables here, which load neither fairseq nor torch.
"""

from __future__ import annotations

import difflib

from fairseq_ext.recipes.captioning import CAPTIONING
from fairseq_ext.recipes.equal_settings import EQUAL_SETTINGS
from fairseq_ext.recipes.iwslt import IWSLT_RECIPES
from fairseq_ext.recipes.language_modeling import LANGUAGE_MODELING
from fairseq_ext.recipes.presets import PRESETS, Preset
from fairseq_ext.recipes.recipe import Data, Recipe, values
from fairseq_ext.recipes.wmt import WMT_RECIPES
from fairseq_ext.training.errors import OptionError
from fairseq_ext.training.sources import OURS, Setting, SourcedValues

__all__ = [
    "OURS",
    "PRESETS",
    "RECIPES",
    "Data",
    "Preset",
    "Recipe",
    "Setting",
    "SourcedValues",
    "find",
    "values",
]

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe for recipe in (*IWSLT_RECIPES, *WMT_RECIPES, *EQUAL_SETTINGS, *LANGUAGE_MODELING, *CAPTIONING)
}


def find(name: str) -> Recipe:
    """The recipe of this name, or of ``DATA/METHOD`` such as ``iwslt14_de_en/muse``.

    Raises:
        OptionError: there is no such recipe; the message has the nearest names.
    """
    names = RECIPES | {recipe.alias: recipe for recipe in RECIPES.values()}
    if name in names:
        return names[name]
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
    hint = f"did you mean {', '.join(near)}? " if near else ""
    raise OptionError(f"recipe {name!r}: there is none of this name; {hint}`fairseq-ext recipe` lists all of them")
