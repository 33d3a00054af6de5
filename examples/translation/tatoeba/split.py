"""Splits a tab-separated list of sentence pairs into train, valid and test.

    python -m examples.translation.tatoeba.split deu.txt --columns 2 1 --source de --target en --out corpora/tatoeba

One sentence has many translations there, so a plain random split would put half of the test set into the training set.
Here valid and test are drawn pair by pair with sentences that occur in one pair only, and hence nowhere in train.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import Counter
from pathlib import Path

from fairseq_ext.text import clean
from fairseq_ext.training.errors import DataError, OptionError
from fairseq_ext.training.files import count_lines, read_lines, staged_folder
from fairseq_ext.training.interruption import run_command
from fairseq_ext.training.progress import Reporting, progress, reporting, say


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


def split(args: argparse.Namespace) -> None:
    if min(args.columns) < 1:
        raise OptionError(f"--columns count from 1, got {args.columns[0]} and {args.columns[1]}")
    pairs = []
    total = count_lines(args.pairs) if args.pairs.is_file() else None  # a pipe can be read only once
    for line, origin in progress(read_lines(args.pairs), "pairs", total=total, unit=" pairs"):
        columns = line.split("\t")
        if len(columns) < max(args.columns):
            problem = f"{len(columns)} columns, --columns asks for {max(args.columns)}"
            raise DataError(f"{origin}: {problem}")
        pairs.append((clean(columns[args.columns[0] - 1]), clean(columns[args.columns[1] - 1])))
    with staged_folder(args.out) as stage:
        for name, part in split_pairs(pairs, args.held_out, args.seed).items():
            for side, language in enumerate((args.source, args.target)):
                text = "".join(pair[side] + "\n" for pair in part)
                (stage / f"{name}.{language}").write_text(text, encoding="utf-8")
            say(f"{name}: {len(part):,} pairs")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m examples.translation.tatoeba.split",
        description="Train, valid and test that share no sentence, from a tab-separated list of pairs.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("pairs", type=Path, help="a pair a line, separated by tabs, plain or .gz, or - for stdin")
    parser.add_argument("--source", required=True, metavar="LANG", help="source language, for the file names")
    parser.add_argument("--target", required=True, metavar="LANG", help="target language, for the file names")
    parser.add_argument("--columns", type=int, nargs=2, default=[1, 2], help="columns of source and target, from 1")
    parser.add_argument("--held-out", type=int, default=3000, metavar="N", help="pairs in valid, and in test")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to make")
    Reporting.add_to(parser)
    args = parser.parse_args(argv)
    with reporting(args.quiet):
        split(args)
        say(f"results: {args.out}")


if __name__ == "__main__":
    sys.exit(run_command(main))
