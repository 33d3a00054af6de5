"""Splits a tab-separated list of sentence pairs into train, valid and test.

    python -m examples.translation.tatoeba.split deu.txt --columns 2 1 --source de --target en --out corpora/tatoeba

One sentence has many translations there, so a plain random split would put half of the test set into the training set.
Here valid and test are drawn pair by pair with sentences that occur in one pair only, and hence nowhere in train.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from fairseq_ext.text import clean
from fairseq_ext.training.errors import DataError, OptionError
from fairseq_ext.training.files import count_lines, read_lines, staged_folder
from fairseq_ext.training.options import OptionSet, option, seed_option
from fairseq_ext.training.program import Program
from fairseq_ext.training.progress import progress, say

main = Program("examples.translation.tatoeba.split")


@dataclass(frozen=True, kw_only=True)
class Options(OptionSet):
    """Which pairs, and where to.

    Raises:
        OptionError: a value that is not allowed.
    """

    pairs: str = option(
        help="file of pairs, one a line, separated by tabs, plain or .gz, or - for stdin", positional=True
    )
    source: str = option(help="source language, for the file names")
    target: str = option(help="target language, for the file names")
    columns: tuple[int, ...] = option((1, 2), "columns of source and target, from 1")
    held_out: int = option(3000, "pairs in valid, and in test", least=1)
    seed: int = seed_option(1, "seed of the draw")
    out: str = option(help="folder to make")

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.columns) != 2 or min(self.columns) < 1:
            raise OptionError(f"--columns must be two numbers from 1 on, got {' '.join(map(str, self.columns))}")


def split_pairs(pairs: list[tuple[str, str]], held_out: int, seed: int) -> dict[str, list[tuple[str, str]]]:
    """``held_out`` pairs each for valid and test, of sentences that occur in no other pair; the rest is train."""
    pairs = list(dict.fromkeys(pairs))
    sources, targets = Counter(source for source, _ in pairs), Counter(target for _, target in pairs)
    unique = [pair for pair in pairs if sources[pair[0]] == targets[pair[1]] == 1]
    if len(unique) < 2 * held_out or len(pairs) <= 2 * held_out:
        problem = f"only {len(unique)} of {len(pairs)} pairs share no sentence with another"
        raise OptionError(f"--held-out {held_out}: {problem}")
    drawn = random.Random(seed).sample(unique, 2 * held_out)
    taken = set(drawn)
    train = [pair for pair in pairs if pair not in taken]
    return {"train": train, "valid": drawn[:held_out], "test": drawn[held_out:]}


@main.only
def split(options: Options) -> None:
    """Train, valid and test that share no sentence, from a tab-separated list of pairs.

    Raises:
        DataError: a line with too few columns, or a damaged file.
        OptionError: more pairs to hold out than there are, or a folder that cannot be made.
    """
    pairs = []
    total = count_lines(options.pairs) if Path(options.pairs).is_file() else None  # a pipe can be read only once
    for line, origin in progress(read_lines(options.pairs), "pairs", total=total, unit=" pairs"):
        columns = line.split("\t")
        if len(columns) < max(options.columns):
            problem = f"{len(columns)} columns, --columns asks for {max(options.columns)}"
            raise DataError(f"{origin}: {problem}")
        pairs.append((clean(columns[options.columns[0] - 1]), clean(columns[options.columns[1] - 1])))
    with staged_folder(options.out) as stage:
        for name, part in split_pairs(pairs, options.held_out, options.seed).items():
            for side, language in enumerate((options.source, options.target)):
                text = "".join(pair[side] + "\n" for pair in part)
                (stage / f"{name}.{language}").write_text(text, encoding="utf-8")
            say(f"{name}: {len(part):,} pairs")


if __name__ == "__main__":
    main()
