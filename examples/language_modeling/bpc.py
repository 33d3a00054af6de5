"""Bits per character from the log of fairseq-eval-lm.

    fairseq-eval-lm DATA --path MODEL ... > eval.log 2>&1
    python -m examples.language_modeling.bpc eval.log --data DATA

fairseq-eval-lm prints the mean loss of a *symbol* in base 2. Bits per character is that loss times symbols per
character; the two counts come from the preparation, and the evaluation must have covered every symbol.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from fairseq_ext.training.errors import DataError
from fairseq_ext.training.files import read_json, read_lines
from fairseq_ext.training.interruption import run_command


def bits_per_character(log: str, tokens: int, characters: int) -> float:
    """``loss_base_2 * tokens / characters``.

    Raises:
        ValueError: the log holds no result, or not one over all ``tokens`` symbols.
    """
    loss = re.findall(r"Loss \(base 2\): ([\d.]+), Perplexity", log)
    evaluated = re.findall(r"Evaluated ([\d,]+) tokens", log)
    if not loss or not evaluated:
        raise ValueError("the log holds no 'Loss (base 2)': is it the output of fairseq-eval-lm?")
    seen = int(evaluated[-1].replace(",", ""))
    if seen != tokens:
        raise ValueError(f"the evaluation covered {seen:,} of {tokens:,} symbols; add --required-batch-size-multiple 1")
    return float(loss[-1]) * tokens / characters


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m examples.language_modeling.bpc", description="Bits per character from a log of fairseq-eval-lm."
    )
    parser.add_argument("log", type=Path, help="what fairseq-eval-lm printed (stdout and stderr)")
    parser.add_argument("--data", type=Path, required=True, help="folder of examples.language_modeling.prepare")
    parser.add_argument("--subset", choices=("train", "valid", "test"), default="test", help="default: test")
    return parser


def main(argv: list[str] | None = None) -> None:
    args = parser().parse_args(argv)
    prepared = args.data / "prepare.json"
    try:
        split = read_json(prepared)["splits"][args.subset]
        tokens, characters = split["tokens"], split["characters"]
    except (KeyError, TypeError) as error:
        raise DataError(f"{prepared}: no folder of examples.language_modeling.prepare (no {error})") from error
    try:
        value = bits_per_character("\n".join(line for line, _ in read_lines(args.log)), tokens, characters)
    except ValueError as error:
        raise DataError(f"{args.log}: {error}") from error
    print(f"{args.subset}: {value:.4f} bits per character ({characters:,} characters)")


if __name__ == "__main__":
    sys.exit(run_command(main))
