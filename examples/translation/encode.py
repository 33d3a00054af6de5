"""New text in the symbols of a prepared folder, for fairseq-interactive: cleaned and split as its corpus was.

    python -m examples.translation.encode new.txt --data data-bin/corpus | fairseq-interactive data-bin/corpus \\
        --path checkpoints/checkpoint_best.pt --beam 5 --remove-bpe sentencepiece

Line for line: what fairseq would read as a line end inside a sentence is gone, and blank lines stay.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from examples.translation.staging import MAX_TOKENS, WARN_UNKNOWN
from fairseq_ext.text import clean, dictionary_symbols, subword_encoder, unknown_share
from fairseq_ext.training.errors import DataError
from fairseq_ext.training.files import read_json, read_lines


def encode(lines: list[str], data: Path) -> list[str]:
    """``lines`` of the source language, as ``examples.translation.prepare`` wrote those of ``data``."""
    settings = _settings(data)
    split = subword_encoder(settings["bpe"], data)
    cleaned = [clean(line, settings["unicode"]) for line in lines]
    return [split(line.lower() if settings["lowercase"] else line) for line in cleaned]


def _settings(data: Path) -> dict[str, Any]:
    try:
        settings = read_json(data / "prepare.json")["settings"]
        return {name: settings[name] for name in ("source", "bpe", "unicode", "lowercase")}
    except (KeyError, TypeError) as error:
        raise DataError(f"{data / 'prepare.json'}: no folder of examples.translation.prepare (no {error})") from error


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m examples.translation.encode",
        description="Cleans new text and splits it into the subwords of a prepared folder, line for line.",
    )
    parser.add_argument("text", help="a sentence a line, plain or .gz; - reads standard input")
    parser.add_argument("--data", type=Path, required=True, help="folder of examples.translation.prepare")
    args = parser.parse_args(argv)
    encoded = encode([line for line, _ in read_lines(args.text, keep_blank=True)], args.data)
    source = _settings(args.data)["source"]
    unknown = unknown_share(encoded, dictionary_symbols(args.data / f"dict.{source}.txt"))
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
    main(sys.argv[1:])
