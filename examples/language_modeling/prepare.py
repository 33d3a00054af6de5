"""From one text file to a folder for fairseq's language modelling task.

    python -m examples.language_modeling.prepare --input enwik8 --split 90000000 5000000 5000000 --out data-bin/enwik8

With ``--symbols bytes`` (the default) every byte is one symbol, written as its decimal value, and a line feed is
fairseq's end of sentence, so that a corpus of N bytes gives N predictions and the loss in base 2 is bits per character
as enwik8 is reported. With ``--symbols sentencepiece`` the symbols are subwords learned on the training part.
The parts are consecutive: training text first, then valid, then test.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

from examples.translation.staging import check_unknown, fairseq_preprocess
from fairseq_ext.text import learn_subwords, subword_encoder
from fairseq_ext.training.errors import DataError, OptionError
from fairseq_ext.training.files import read_bytes, staged_folder, write_json
from fairseq_ext.training.progress import Reporting, progress, reporting, say

SPLITS = ("train", "valid", "test")


def cut(data: bytes, sizes: list[int] | None, at_lines: bool) -> list[bytes]:
    """Three consecutive parts of ``sizes`` bytes (default 90/5/5 %); ``at_lines`` moves each cut to a line end."""
    if sizes is None:
        small = len(data) // 20
        sizes = [len(data) - 2 * small, small, small]
    if min(sizes) < 1 or sum(sizes) > len(data):
        raise OptionError(
            f"--split {' '.join(map(str, sizes))} needs three positive sizes of at most {len(data)} bytes together"
        )
    ends = [sizes[0], sizes[0] + sizes[1], sum(sizes)]
    if at_lines:
        ends = [data.find(b"\n", end - 1) + 1 or len(data) for end in ends]
    parts = [data[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    for split, part in zip(SPLITS, parts, strict=True):
        if not part:
            raise OptionError(f"--split: nothing is left for {split}; the lines of this file are too long")
    return parts


def byte_symbols(parts: list[bytes], stage: Path) -> list[str]:
    """Writes the parts as numbers, and a dictionary of the bytes that occur; returns the preprocess options."""
    counts: Counter[int] = Counter(parts[0])
    # The alphabet is a property of the format: a byte that only valid or test uses must not become <unk>.
    for part in parts[1:]:
        counts.update(dict.fromkeys(set(part) - counts.keys(), 0))
    counts.pop(ord("\n"), None)
    dictionary = stage / "symbols" / "dict.txt"
    dictionary.write_text("".join(f"{symbol} {count}\n" for symbol, count in counts.most_common()))
    for split, part in zip(SPLITS, parts, strict=True):
        with (stage / "symbols" / split).open("w") as out:
            for line in progress(part.removesuffix(b"\n").split(b"\n"), split, unit=" lines"):
                out.write(" ".join(map(str, line)) + "\n")
    return ["--srcdict", str(dictionary)]


def subword_symbols(parts: list[bytes], stage: Path, vocab_size: int, file: Path) -> list[str]:
    """Learns subwords on the training part and writes all parts with them; returns the preprocess options."""
    text = stage / "symbols" / "train.txt"
    text.write_bytes(parts[0])
    learn_subwords("sentencepiece", [text], stage, vocab_size)
    encode = subword_encoder("sentencepiece", stage)
    number = 0
    for split, part in zip(SPLITS, parts, strict=True):
        with (stage / "symbols" / split).open("w", encoding="utf-8") as out:
            for line in progress(part.removesuffix(b"\n").split(b"\n"), split, unit=" lines"):
                number += 1
                try:
                    out.write(encode(line.decode("utf-8")) + "\n")
                except UnicodeDecodeError:
                    raise DataError(f"{file}:{number}: not UTF-8 text; --symbols bytes takes any file") from None
    return []


def prepare(args: argparse.Namespace) -> None:
    if args.symbols == "bytes" and args.vocab_size is not None:
        raise OptionError("--vocab-size has no meaning with --symbols bytes")
    if args.symbols == "bytes" and args.allow_unknown:
        raise OptionError("--allow-unknown has no meaning with --symbols bytes: no byte is unknown")
    vocab_size = 8000 if args.vocab_size is None else args.vocab_size
    if vocab_size < 1:
        raise OptionError(f"--vocab-size must be positive, got {vocab_size}")
    data = read_bytes(args.input)
    if not data:
        raise DataError(f"--input: {args.input} is empty")
    parts = cut(data, args.split, at_lines=args.symbols == "sentencepiece")
    with staged_folder(args.out) as stage:
        symbols = stage / "symbols"
        symbols.mkdir()
        if args.symbols == "bytes":
            options = byte_symbols(parts, stage)
        else:
            options = subword_symbols(parts, stage, vocab_size, args.input)
        report = {}
        for split, part in zip(SPLITS, parts, strict=True):
            with (symbols / split).open(encoding="utf-8") as lines:
                tokens = sum(len(line.split()) + 1 for line in lines)  # the end of line is predicted too
            characters = len(part) if args.symbols == "bytes" else len(part.decode("utf-8"))
            report[split] = {"tokens": tokens, "characters": characters}
            say(f"{split}: {characters:,} characters, {tokens:,} symbols")
        say("fairseq-preprocess")
        files = [argument for split in SPLITS for argument in (f"--{split}pref", str(symbols / split))]
        fairseq_preprocess(["--only-source", *files, *options, "--workers", str(args.workers)], stage)
        if args.symbols == "sentencepiece":
            for split in SPLITS:
                unknown = check_unknown(symbols / split, stage / "dict.txt", symbols / "train", args.allow_unknown)
                report[split]["unknown"] = unknown
        for file in symbols.iterdir():
            file.unlink()
        symbols.rmdir()
        write_json(stage / "prepare.json", {"symbols": args.symbols, "splits": report})
    say(f"results: {args.out}")


def parser() -> argparse.ArgumentParser:
    out = argparse.ArgumentParser(
        prog="python -m examples.language_modeling.prepare",
        description="Splits a text file into train, valid and test and binarises it for fairseq's language models.",
    )
    out.add_argument("--input", type=Path, required=True, help="any file; .gz and .zip are unpacked")
    out.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to make; must not hold anything")
    out.add_argument("--split", type=int, nargs=3, metavar=("TRAIN", "VALID", "TEST"),
                     help="sizes in bytes (enwik8: 90000000 5000000 5000000; default: 90, 5, 5 %%)")  # fmt: skip
    out.add_argument("--symbols", choices=("bytes", "sentencepiece"), default="bytes", help="default: bytes")
    out.add_argument("--vocab-size", type=int, metavar="N", help="size of the sentencepiece model (default: 8000)")
    out.add_argument("--allow-unknown", action="store_true", help="go on where 20 %% of a text or more is unknown")
    out.add_argument("--workers", type=int, default=1, metavar="N", help="processes of fairseq-preprocess (default: 1)")
    Reporting.add_to(out)
    return out


def main(argv: list[str] | None = None) -> None:
    args = parser().parse_args(argv)
    with reporting(args.quiet):
        prepare(args)


if __name__ == "__main__":
    main(sys.argv[1:])
