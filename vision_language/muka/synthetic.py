"""Made-up labelled texts, for a try without data: each is a few words of its class."""

from __future__ import annotations

import random
from dataclasses import dataclass

from fairseq_ext.training.files import replacing, writing_to
from fairseq_ext.training.options import SPLITS, OptionSet, option, seed_option

__all__ = ["WORDS", "synthesize"]

WORDS = {
    "cooking": "soup bread oven salt flour".split(),
    "garden": "rose seed rain soil fence".split(),
    "music": "song drum choir tune piano".split(),
    "sport": "goal team race ball match".split(),
}


@dataclass(frozen=True, kw_only=True)
class SyntheticTexts(OptionSet):
    """The made-up texts."""

    out: str = option("runs/muka/texts", "folder to write")
    texts: int = option(1000, "texts of all splits together", least=40)
    seed: int = seed_option(0, "seed of all that is drawn")


def synthesize(options: SyntheticTexts) -> str:
    """Write made-up texts of four classes, for a try without data.

    The splits hold 80, 10 and 10 in 100, with all classes equally frequent; a text holds three to six words of its
    class. Equal options give equal files.

    Raises:
        OptionError: a folder that cannot be written.
    """
    generator = random.Random(options.seed)
    labels = list(WORDS)
    lines = [_line(labels[number % len(labels)], generator) for number in range(options.texts)]
    held_out = options.texts // 10
    cuts = (0, options.texts - 2 * held_out, options.texts - held_out, options.texts)
    with writing_to(options.out) as out:
        for split, begin, end in zip(SPLITS, cuts, cuts[1:], strict=False):
            with replacing(out / f"{split}.tsv") as partial:
                partial.write_text("".join(lines[begin:end]), encoding="utf-8")
    return f"{options.texts} texts in {options.out}"


def _line(label: str, generator: random.Random) -> str:
    return f"{label}\t{' '.join(generator.choices(WORDS[label], k=generator.randint(3, 6)))}\n"
