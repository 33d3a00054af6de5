"""Made-up labelled texts, for a try without data: each is a few words of its class."""

from __future__ import annotations

import random
from pathlib import Path

from fairseq_ext.training.errors import OptionError
from fairseq_ext.training.files import replacing, writing_to
from vision_language.muka.data import SPLITS

__all__ = ["WORDS", "synthesize"]

WORDS = {
    "cooking": "soup bread oven salt flour".split(),
    "garden": "rose seed rain soil fence".split(),
    "music": "song drum choir tune piano".split(),
    "sport": "goal team race ball match".split(),
}


def synthesize(out: str | Path, texts: int = 1000, seed: int = 0) -> None:
    """Write a folder with splits of 80, 10 and 10 in 100, in which all classes are equally frequent.

    A text holds three to six words of its class.

    Args:
        out: the folder.
        texts: of all splits together, at least 40.
        seed: equal arguments give equal files.

    Raises:
        OptionError: too few texts, or a folder that cannot be written.
    """
    if texts < 40:
        raise OptionError(f"--texts must be at least 40, got {texts}")
    generator = random.Random(seed)
    labels = list(WORDS)
    lines = [_line(labels[number % len(labels)], generator) for number in range(texts)]
    held_out = texts // 10
    cuts = (0, texts - 2 * held_out, texts - held_out, texts)
    with writing_to(out) as out:
        for split, begin, end in zip(SPLITS, cuts, cuts[1:], strict=False):
            with replacing(out / f"{split}.tsv") as partial:
                partial.write_text("".join(lines[begin:end]), encoding="utf-8")


def _line(label: str, generator: random.Random) -> str:
    return f"{label}\t{' '.join(generator.choices(WORDS[label], k=generator.randint(3, 6)))}\n"
