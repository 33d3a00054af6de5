"""Which images are trained on."""

from __future__ import annotations

import random
from collections.abc import Sequence

from fairseq_ext.training.errors import OptionError

__all__ = ["drawn"]


def drawn(keys: Sequence[str], valid: int, test: int, seed: int) -> dict[str, str]:
    """The split of each image, drawn.

    Raises:
        OptionError: ``valid`` and ``test`` leave none to train on.
    """
    if valid + test >= len(keys):
        raise OptionError(f"--valid and --test must leave some of the {len(keys)} images, got {valid} and {test}")
    shuffled = random.Random(seed).sample(keys, len(keys))
    held_out = {**dict.fromkeys(shuffled[:valid], "valid"), **dict.fromkeys(shuffled[valid : valid + test], "test")}
    return {key: held_out.get(key, "train") for key in keys}
