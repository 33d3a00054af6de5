"""The presets of :mod:`fairseq_ext.recipes.presets` as fairseq's ``--arch``.

A preset only sets defaults of ``transformer_ext``, or of its form for another task: an option of the command line wins.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fairseq.models import register_model_architecture

import fairseq_ext.models.captioning
import fairseq_ext.models.language_model
import fairseq_ext.models.transformer  # noqa: F401  (a preset needs its model registered)
from fairseq_ext.models.ext_options import ExtOptions
from fairseq_ext.recipes import PRESETS, Preset, values
from fairseq_ext.training.options import idle_fields


def _architecture(name: str, preset: Preset) -> Callable[[Any], None]:
    defaults = values(preset.settings)

    def fill_in(args: Any) -> None:
        if preset.model == "transformer_lm_ext" and hasattr(args, "decoder_embed_dim"):
            # fairseq's bare model reads and writes vectors of width 512; its named models follow the width, as here
            for option in ("decoder_input_dim", "decoder_output_dim"):
                setattr(args, option, getattr(args, option, args.decoder_embed_dim))
        left_open = {option: value for option, value in defaults.items() if not hasattr(args, option)}
        for option, value in left_open.items():
            setattr(args, option, value)
        # an option that the user's other choices make idle (muse_input_dropout, with --block transformer) is not set
        for option in idle_fields(args, ExtOptions):
            if option in left_open:
                setattr(args, option, getattr(ExtOptions, option))

    fill_in.__name__ = name
    fill_in.__doc__ = preset.summary
    return fill_in


for _name, _preset in PRESETS.items():
    register_model_architecture(_preset.model, _name)(_architecture(_name, _preset))
