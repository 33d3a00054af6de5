"""New text in the symbols of a prepared folder, for fairseq-interactive: cleaned and split as its corpus was.

    python -m examples.translation.encode new.txt --data data-bin/corpus | fairseq-interactive data-bin/corpus \\
        --path checkpoints/checkpoint_best.pt --beam 5 --remove-bpe sentencepiece

Line for line: what fairseq would read as a line end inside a sentence is gone, and blank lines stay.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from examples.translation.staging import MAX_TOKENS, WARN_UNKNOWN
from fairseq_ext.text import Preparation, dictionary_symbols, unknown_share
from fairseq_ext.training.files import read_lines
from fairseq_ext.training.options import OptionSet, option
from fairseq_ext.training.program import Program
from fairseq_ext.training.progress import warn

main = Program("examples.translation.encode")


@dataclass(frozen=True, kw_only=True)
class Options(OptionSet):
    """Which text, and in which symbols."""

    text: str = option(help="text, a sentence a line, plain or .gz; - reads standard input", positional=True)
    data: str = option(help="folder that examples.translation.prepare wrote")


@main.only
def encode(options: Options) -> None:
    """Clean new text and split it into the subwords of a prepared folder, line for line.

    Raises:
        DataError: a damaged text, or a folder that is none of ``examples.translation.prepare``.
    """
    data = Path(options.data)
    preparation = Preparation.of(data)
    symbols = preparation.encoder()
    encoded = [symbols(line) for line, _ in read_lines(options.text, keep_blank=True)]
    unknown = unknown_share(encoded, dictionary_symbols(data / f"dict.{preparation.source}.txt"))
    if unknown >= WARN_UNKNOWN:
        warn(f"{unknown:.2%} of the symbols are <unk>: is this the source language?")
    for number, line in enumerate(encoded, 1):
        if len(line.split()) + 1 > MAX_TOKENS:
            problem = (
                f"more than {MAX_TOKENS - 1} symbols; fairseq-interactive skips it, or cuts it (--truncate-source)"
            )
            warn(f"{options.text}:{number}: {problem}")
    sys.stdout.writelines(line + "\n" for line in encoded)


if __name__ == "__main__":
    main()
