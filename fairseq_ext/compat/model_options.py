"""The options of a checkpoint that say what its model computes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["OF_TRAINING", "first_difference", "model_options"]

OF_TRAINING = re.compile(
    r"_name|arch|.*drop.*|.*init|quant_noise.*|checkpoint_activations|offload_activations|min_params_to_wrap|.*_path"
    r"|.*layers_to_keep|max_.*_positions|tokens_per_sample|norm_detach|attention_span_loss|muse_no_fuse|tpu|export|data"
    r"|.*base_(layers|sublayers|shuffle)|.*xformers_att_config"
)
"""Model options that change the training, the storage or the speed, but not what given weights compute."""

# The namespace of an architecture without a dataclass holds all options of the program: these are the model's.
_OF_MODEL = re.compile(r"(encoder|decoder|no_scale|no_token|share|layernorm|cross_self|no_cross)_.*|activation_fn")


def model_options(state: Mapping[str, Any]) -> dict[str, Any]:
    """The model's options in a checkpoint's ``cfg`` or ``args``, named ``outer.inner`` within a group."""
    config = state.get("cfg") or {}
    model = (config.get("model") if hasattr(config, "get") else None) or state.get("args")
    if isinstance(model, Mapping):
        return {name: value for name, value in _flat(model) if not OF_TRAINING.fullmatch(name.rpartition(".")[2])}
    return {
        name: value
        for name, value in getattr(model, "__dict__", {}).items()
        if _OF_MODEL.fullmatch(name) and not OF_TRAINING.fullmatch(name)
    }


def _flat(options: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in options.items():
        if isinstance(value, Mapping):
            if not OF_TRAINING.fullmatch(name):
                yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def first_difference(options: Mapping[str, Any], others: Mapping[str, Any]) -> str | None:
    """The first option that both have, with different values.

    An option that only one of them has is newer than the other training, and tells nothing about it.
    """
    return next((name for name in options if name in others and options[name] != others[name]), None)
