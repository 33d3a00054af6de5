"""From parallel text to a folder that fairseq-train reads.

    python -m examples.translation.prepare --train corpus/train --valid corpus/valid --test corpus/test \
        --source de --target en --out data-bin/corpus --joined-dictionary

``corpus/train`` stands for ``corpus/train.de`` and ``corpus/train.en``, each of which may end in ``.gz``.
Every line is cleaned (control characters dropped, whitespace made single spaces, letters in one Unicode form). Only
the training pairs are filtered by length and ratio: valid and test keep each of their lines, so that scores stay
comparable. The subwords are learned on the filtered training text, both languages together. The result appears in one
piece, or not at all. Text to translate later goes through ``fairseq-ext translate``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from itertools import product, zip_longest
from pathlib import Path

from examples.translation.staging import check_unknown, count_long, fairseq_preprocess
from fairseq_ext.text import PREPARATION, SUBWORDS, UNICODE_FORMS, clean, join_subwords, learn_subwords, subword_encoder
from fairseq_ext.training.errors import DataError, OptionError
from fairseq_ext.training.files import count_lines, read_lines, staged_folder, write_json
from fairseq_ext.training.progress import Reporting, progress, reporting, say

SPLITS = ("train", "valid", "test")


def find(prefix: Path, language: str) -> Path:
    """``prefix.language``, plain or gzipped."""
    plain = Path(f"{prefix}.{language}")
    for file in (plain, Path(f"{plain}.gz")):
        if file.is_file():
            return file
    raise DataError(f"missing file: neither {plain} nor {plain}.gz exists")


def read_pairs(source: Path, target: Path, form: str) -> Iterator[tuple[str, str]]:
    """The cleaned pairs of two files, which must be of equal length and not empty."""
    counts = [0, 0]
    sides = ((clean(line, form) for line, _ in read_lines(file, keep_blank=True)) for file in (source, target))
    for pair in zip_longest(*sides):
        for side, line in enumerate(pair):
            counts[side] += line is not None
        if None not in pair:
            yield pair
    for file, count in zip((source, target), counts, strict=True):
        if count == 0:
            raise DataError(f"{file} is empty")
    if counts[0] != counts[1]:
        raise DataError(f"line counts differ: {source} has {counts[0]}, {target} has {counts[1]}")


def keep(source: str, target: str, min_length: int, max_length: int, max_ratio: float) -> bool:
    """Whether a training pair passes the filter; lengths are counted in words (between spaces)."""
    lengths = len(source.split()), len(target.split())
    return min_length <= min(lengths) and max(lengths) <= max_length and max(lengths) <= max_ratio * min(lengths)


def write_split(split: str, args: argparse.Namespace, folder: Path) -> dict[str, int]:
    """Cleans one split into ``folder`` and returns how many pairs were read and kept."""
    files = [find(getattr(args, split), language) for language in (args.source, args.target)]
    read = kept = 0
    with (
        (folder / f"{split}.{args.source}").open("w", encoding="utf-8") as source_out,
        (folder / f"{split}.{args.target}").open("w", encoding="utf-8") as target_out,
    ):
        pairs = read_pairs(*files, args.unicode)
        for source, target in progress(pairs, split, total=count_lines(files[0]), unit=" pairs"):
            read += 1
            if args.lowercase:
                source, target = source.lower(), target.lower()
            if split != "train" or keep(source, target, args.min_length, args.max_length, args.max_ratio):
                kept += 1
                source_out.write(source + "\n")
                target_out.write(target + "\n")
    say(f"{split}: {read:,} pairs read, {kept:,} kept")
    if not kept:
        raise OptionError(
            f"no training pair passes --min-length {args.min_length} --max-length {args.max_length} "
            f"--max-ratio {args.max_ratio:g}"
        )
    return {"read": read, "kept": kept}


def split_into_subwords(args: argparse.Namespace, text: Path, pieces: Path, out: Path) -> None:
    """Writes each file of ``text`` in subwords to ``pieces``; afterwards ``text`` holds whole words."""
    languages = (args.source, args.target)
    if args.bpe == "none":
        for file in text.iterdir():
            file.rename(pieces / file.name)
        convert, origin, destination = join_subwords, pieces, text
    else:
        say(f"learning {args.vocab_size:,} subwords ({args.bpe}) on train")
        learn_subwords(args.bpe, [text / f"train.{language}" for language in languages], out, args.vocab_size)
        convert, origin, destination = subword_encoder(args.bpe, out), text, pieces
    files = sorted(origin.iterdir())
    with progress(total=sum(map(count_lines, files)), desc="subwords", unit=" lines") as bar:
        for file in files:
            with file.open(encoding="utf-8") as lines, (destination / file.name).open("w", encoding="utf-8") as stream:
                for line in lines:
                    stream.write(convert(line.rstrip("\n")) + "\n")
                    bar.update()


def prepare(args: argparse.Namespace) -> None:
    languages = (args.source, args.target)
    if args.source == args.target:
        raise OptionError(f"--source and --target are both {args.source!r}")
    if args.min_length < 1 or args.max_length < args.min_length:
        raise OptionError(f"need 1 <= --min-length <= --max-length, got {args.min_length} and {args.max_length}")
    if not args.max_ratio >= 1:
        raise OptionError(f"--max-ratio must be at least 1, got {args.max_ratio:g}")
    if args.bpe == "none" and args.vocab_size is not None:
        raise OptionError("--vocab-size has no meaning with --bpe none: the text is already split into subwords")
    if args.bpe != "none" and args.vocab_size is None:
        args.vocab_size = 8000
    if args.vocab_size is not None and args.vocab_size < 1:
        raise OptionError(f"--vocab-size must be positive, got {args.vocab_size}")
    if args.workers < 1:
        raise OptionError(f"--workers must be positive, got {args.workers}")

    with staged_folder(args.out) as stage:
        text, pieces = stage / "text", stage / "pieces"
        text.mkdir()
        pieces.mkdir()
        counts = {split: write_split(split, args, text) for split in SPLITS}

        split_into_subwords(args, text, pieces, stage)

        say("fairseq-preprocess")
        arguments = ["--source-lang", args.source, "--target-lang", args.target, "--workers", str(args.workers)]
        for split in counts:
            arguments += [f"--{split}pref", str(pieces / split)]
        if args.joined_dictionary:
            arguments.append("--joined-dictionary")
        fairseq_preprocess(arguments, stage)

        symbols: dict[str, dict[str, dict[str, float]]] = {split: {} for split in SPLITS}
        for split, language in product(SPLITS, languages):
            name = f"{split}.{language}"
            dictionary, train = stage / f"dict.{language}.txt", pieces / f"train.{language}"
            unknown = check_unknown(pieces / name, dictionary, train, args.allow_unknown)
            symbols[split][language] = {"unknown": unknown, "too_long": count_long(pieces / name)}

        for language in languages:
            (text / f"train.{language}").unlink()
        for file in pieces.iterdir():
            file.unlink()
        pieces.rmdir()
        settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
        del settings["quiet"]
        write_json(stage / PREPARATION, {"settings": settings, "pairs": counts, "symbols": symbols})
    say(f"results: {args.out}")


def parser() -> argparse.ArgumentParser:
    out = argparse.ArgumentParser(
        prog="python -m examples.translation.prepare",
        description="Cleans, filters, splits into subwords and binarises any parallel text for fairseq.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    for split in ("train", "valid", "test"):
        text = f"prefix of the {split} files: PREFIX.SOURCE and PREFIX.TARGET, plain or .gz"
        out.add_argument(f"--{split}", type=Path, required=True, metavar="PREFIX", help=text)
    out.add_argument("--source", required=True, metavar="LANG", help="source language, as in the file names")
    out.add_argument("--target", required=True, metavar="LANG", help="target language, as in the file names")
    out.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to make; must not hold anything")
    out.add_argument("--bpe", choices=SUBWORDS, default="sentencepiece",
                     help="sentencepiece takes plain text; subword-nmt expects text that is already tokenised; "
                     "none: text that subword-nmt has already split (words end in @@)")  # fmt: skip
    out.add_argument("--vocab-size", type=int, metavar="N",
                     help="sentencepiece: size of the model; subword-nmt: number of merges (8000)")  # fmt: skip
    out.add_argument("--joined-dictionary", action="store_true", help="one dictionary for both languages")
    out.add_argument("--min-length", type=int, default=1, metavar="WORDS", help="shortest side of a training pair")
    out.add_argument("--max-length", type=int, default=250, metavar="WORDS", help="longest side of a training pair")
    out.add_argument("--max-ratio", type=float, default=9.0, help="longest side / shortest side of a training pair")
    out.add_argument("--unicode", choices=UNICODE_FORMS, default="NFC", help="form of every letter")
    out.add_argument("--allow-unknown", action="store_true", help="go on where 20 %% of a text or more is unknown")
    out.add_argument("--lowercase", action="store_true", help="lowercase all three splits")
    out.add_argument("--workers", type=int, default=1, metavar="N", help="processes of fairseq-preprocess")
    Reporting.add_to(out)
    return out


def main(argv: list[str] | None = None) -> None:
    args = parser().parse_args(argv)
    with reporting(args.quiet):
        prepare(args)


if __name__ == "__main__":
    main(sys.argv[1:])
