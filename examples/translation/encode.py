"""New text in the symbols of a prepared folder, for fairseq-interactive: cleaned and split as its corpus was.

    python -m examples.translation.encode new.txt --data data-bin/corpus | fairseq-interactive data-bin/corpus \\
        --path checkpoints/checkpoint_best.pt --beam 5 --remove-bpe sentencepiece

Line for line: what fairseq would read as a line end inside a sentence is gone, and blank lines stay.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from examples.translation.staging import MAX_TOKENS, WARN_UNKNOWN
from fairseq_ext.text import Preparation, dictionary_symbols, unknown_share
from fairseq_ext.training.files import read_lines
from fairseq_ext.training.interruption import run_command


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m examples.translation.encode",
        description="Cleans new text and splits it into the subwords of a prepared folder, line for line.",
    )
    parser.add_argument("text", help="a sentence a line, plain or .gz; - reads standard input")
    parser.add_argument("--data", type=Path, required=True, help="folder of examples.translation.prepare")
    args = parser.parse_args(argv)
    preparation = Preparation.of(args.data)
    encode = preparation.encoder()
    encoded = [encode(line) for line, _ in read_lines(args.text, keep_blank=True)]
    unknown = unknown_share(encoded, dictionary_symbols(args.data / f"dict.{preparation.source}.txt"))
    if unknown >= WARN_UNKNOWN:
        print(f"warning: {unknown:.2%} of the symbols are <unk>: is this the source language?", file=sys.stderr)
    for number, line in enumerate(encoded, 1):
        if len(line.split()) + 1 > MAX_TOKENS:
            problem = (
                f"more than {MAX_TOKENS - 1} symbols; fairseq-interactive skips it, or cuts it (--truncate-source)"
            )
            print(f"warning: {args.text}:{number}: {problem}", file=sys.stderr)
    sys.stdout.writelines(line + "\n" for line in encoded)


if __name__ == "__main__":
    sys.exit(run_command(main))
