"""From one text file to a folder for fairseq's language modelling task.

    python -m examples.language_modeling.prepare --input enwik8 --split 90000000 5000000 5000000 --out data-bin/enwik8

With ``--symbols bytes`` (the default) every byte is one symbol, written as its decimal value, and a line feed is
fairseq's end of sentence. A corpus of N bytes then gives N predictions, and the loss in base 2 is bits per character,
as it is reported for enwik8. With ``--symbols sentencepiece`` the symbols are subwords, learned on the training part.
Each line is cleaned first (control characters dropped, whitespace made single spaces, letters in NFC), so that only
characters that are predicted are counted. The parts follow each other in the file: train, then valid, then test.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from examples.translation.staging import binarised_folder, check_unknown, fairseq_preprocess
from fairseq_ext.text import clean, learn_subwords, subword_encoder
from fairseq_ext.training.errors import DataError, OptionError
from fairseq_ext.training.files import read_bytes, write_json
from fairseq_ext.training.options import SPLITS, OptionSet, option
from fairseq_ext.training.program import Program
from fairseq_ext.training.progress import progress, say

main = Program("examples.language_modeling.prepare")


@dataclass(frozen=True, kw_only=True)
class Options(OptionSet):
    """Which text, and how it is prepared.

    Raises:
        OptionError: a value that is not allowed, or one that would do nothing.
    """

    input: str = option(help="any file of text; .gz and .zip are unpacked")
    out: str = option(help="folder to make; must not hold anything")
    split: tuple[int, ...] = option(
        (), "bytes of train, valid and test (enwik8: 90000000 5000000 5000000; default: 90, 5, 5 %)"
    )
    symbols: str = option("bytes", "symbols that are predicted", ("bytes", "sentencepiece"))
    vocab_size: int = option(8000, "size of the sentencepiece model", least=1, idle={"symbols": ("bytes",)})
    allow_unknown: bool = option(False, "go on where 20 % of a text or more is unknown", idle={"symbols": ("bytes",)})
    workers: int = option(1, "processes of fairseq-preprocess", least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.split) not in (0, len(SPLITS)):
            raise OptionError(f"--split needs the sizes of {', '.join(SPLITS)}, got {' '.join(map(str, self.split))}")


def cut(data: bytes, sizes: Sequence[int], at_lines: bool) -> list[bytes]:
    """Three consecutive parts of ``data``.

    Args:
        sizes: their bytes; where it is empty, 90, 5 and 5 % of all.
        at_lines: move each cut to the next end of a line.

    Raises:
        OptionError: sizes that ``data`` does not have, or a part that is left empty.
    """
    if not sizes:
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


def cleaned(parts: list[bytes], file: str) -> list[bytes]:
    """The parts with each line cleaned: subwords cannot give back other spaces than single ones.

    Args:
        parts: of ``file``, whose name is for messages.

    Raises:
        DataError: text that is not UTF-8.
    """
    number, result = 0, []
    for split, part in zip(SPLITS, parts, strict=True):
        lines = []
        for line in progress(part.split(b"\n"), f"cleaning {split}", unit=" lines"):
            try:
                lines.append(clean(line.decode("utf-8")))
            except UnicodeDecodeError:
                where = f"{file}:{number + len(lines) + 1}"
                raise DataError(f"{where}: not UTF-8 text; --symbols bytes takes any file") from None
        number += part.count(b"\n")
        result.append("\n".join(lines).encode())
    return result


def subword_symbols(parts: list[bytes], stage: Path, vocab_size: int) -> list[str]:
    """Learns subwords on the training part and writes all parts with them; returns the preprocess options."""
    text = stage / "symbols" / "train.txt"
    text.write_bytes(parts[0])
    learn_subwords("sentencepiece", [text], stage, vocab_size)
    encode = subword_encoder("sentencepiece", stage)
    for split, part in zip(SPLITS, parts, strict=True):
        with (stage / "symbols" / split).open("w", encoding="utf-8") as out:
            for line in progress(part.removesuffix(b"\n").split(b"\n"), split, unit=" lines"):
                out.write(encode(line.decode("utf-8")) + "\n")
    return []


@main.only
def prepare(options: Options) -> None:
    """Split a text file into train, valid and test, and binarise it for fairseq's language models.

    ``--out`` appears in one piece, or not at all.

    Raises:
        DataError: a file that is damaged or empty, or not UTF-8 where subwords are learned.
        OptionError: parts that are larger than the file, or subwords that cannot be learned.
    """
    data = read_bytes(options.input)
    if not data:
        raise DataError(f"--input: {options.input} is empty")
    parts = cut(data, options.split, at_lines=options.symbols == "sentencepiece")
    if options.symbols == "sentencepiece":
        parts = cleaned(parts, options.input)
    with binarised_folder(options.out) as stage:
        symbols = stage / "symbols"
        symbols.mkdir()
        if options.symbols == "bytes":
            dictionary = byte_symbols(parts, stage)
        else:
            dictionary = subword_symbols(parts, stage, options.vocab_size)
        report = {}
        for split, part in zip(SPLITS, parts, strict=True):
            with (symbols / split).open(encoding="utf-8") as lines:
                tokens = sum(len(line.split()) + 1 for line in lines)  # the end of line is predicted too
            characters = len(part) if options.symbols == "bytes" else len(part.decode("utf-8"))
            report[split] = {"tokens": tokens, "characters": characters}
            say(f"{split}: {characters:,} characters, {tokens:,} symbols")
        say("fairseq-preprocess")
        files = [argument for split in SPLITS for argument in (f"--{split}pref", str(symbols / split))]
        fairseq_preprocess(["--only-source", *files, *dictionary, "--workers", str(options.workers)], stage)
        if options.symbols == "sentencepiece":
            for split in SPLITS:
                unknown = check_unknown(symbols / split, stage / "dict.txt", symbols / "train", options.allow_unknown)
                report[split]["unknown"] = unknown
        for file in symbols.iterdir():
            file.unlink()
        symbols.rmdir()
        write_json(stage / "prepare.json", {"symbols": options.symbols, "splits": report})


if __name__ == "__main__":
    main()
