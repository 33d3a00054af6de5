"""Bits per character from the log of fairseq-eval-lm.

    fairseq-eval-lm DATA --path MODEL ... > eval.log 2>&1
    python -m examples.language_modeling.bpc eval.log --data DATA

fairseq-eval-lm prints the mean loss of a *symbol* in base 2. Multiplied by the number of symbols and divided by that of
characters, it is bits per character. Both numbers come from the preparation and count the whole text, so an evaluation
that left out symbols is refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from fairseq_ext.training.errors import DataError
from fairseq_ext.training.files import read_json, read_lines
from fairseq_ext.training.options import SPLITS, OptionSet, option
from fairseq_ext.training.program import Program

main = Program("examples.language_modeling.bpc")


@dataclass(frozen=True, kw_only=True)
class Options(OptionSet):
    """The log, and the data that were evaluated."""

    log: str = option(help="file with what fairseq-eval-lm printed (stdout and stderr)", positional=True)
    data: str = option(help="folder that examples.language_modeling.prepare wrote")
    subset: str = option("test", "split that was evaluated", SPLITS)


def bits_per_character(log: str, tokens: int, characters: int) -> float:
    """``loss_base_2 * tokens / characters``.

    Raises:
        ValueError: the log holds no result, or one of another number of symbols than ``tokens``.
    """
    loss = re.findall(r"Loss \(base 2\): ([\d.]+), Perplexity", log)
    evaluated = re.findall(r"Evaluated ([\d,]+) tokens", log)
    if not loss or not evaluated:
        raise ValueError("the log holds no 'Loss (base 2)': is it the output of fairseq-eval-lm?")
    seen = int(evaluated[-1].replace(",", ""))
    if seen != tokens:
        raise ValueError(f"the evaluation covered {seen:,} of {tokens:,} symbols; add --required-batch-size-multiple 1")
    return float(loss[-1]) * tokens / characters


@main.only
def show(options: Options) -> str:
    """Bits per character from a log of fairseq-eval-lm.

    Raises:
        DataError: a log without a result, or one of another number of symbols than the split has; a folder that
            :mod:`examples.language_modeling.prepare` did not write.
    """
    prepared = Path(options.data) / "prepare.json"
    try:
        split = read_json(prepared)["splits"][options.subset]
        tokens, characters = split["tokens"], split["characters"]
    except (KeyError, TypeError) as error:
        raise DataError(f"{prepared}: no folder of examples.language_modeling.prepare (no {error})") from error
    try:
        value = bits_per_character("\n".join(line for line, _ in read_lines(options.log)), tokens, characters)
    except ValueError as error:
        raise DataError(f"{options.log}: {error}") from error
    return f"{options.subset}: {value:.4f} bits per character ({characters:,} characters)"


if __name__ == "__main__":
    main()
