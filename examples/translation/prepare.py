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

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product, zip_longest
from pathlib import Path

from examples.translation.staging import binarised_folder, check_unknown, count_long, fairseq_preprocess
from fairseq_ext.text import PREPARATION, SUBWORDS, UNICODE_FORMS, clean, join_subwords, learn_subwords, subword_encoder
from fairseq_ext.training.errors import DataError, OptionError
from fairseq_ext.training.files import count_lines, read_lines, write_json
from fairseq_ext.training.options import SPLITS, OptionSet, option
from fairseq_ext.training.program import Program
from fairseq_ext.training.progress import progress, say

PREFIX = "prefix of the {} files: PREFIX.SOURCE and PREFIX.TARGET, plain or .gz"

main = Program("examples.translation.prepare")


@dataclass(frozen=True, kw_only=True)
class Options(OptionSet):
    """Which text, and how it is prepared.

    Raises:
        OptionError: a value that is not allowed, or one that would do nothing.
    """

    train: str = option(help=PREFIX.format("train"))
    valid: str = option(help=PREFIX.format("valid"))
    test: str = option(help=PREFIX.format("test"))
    source: str = option(help="source language, as in the file names")
    target: str = option(help="target language, as in the file names")
    out: str = option(help="folder to make; must not hold anything")
    bpe: str = option(
        "sentencepiece",
        "subwords: sentencepiece takes plain text; subword-nmt expects text that is already tokenised; none: text that "
        "subword-nmt has already split (words end in @@)",
        SUBWORDS,
    )
    vocab_size: int = option(
        8000, "size of the sentencepiece model, or number of merges of subword-nmt", least=1, idle={"bpe": ("none",)}
    )
    joined_dictionary: bool = option(False, "make one dictionary for both languages")
    min_length: int = option(1, "fewest words of a side of a training pair", least=1)
    max_length: int = option(250, "most words of a side of a training pair", least=1)
    max_ratio: float = option(9.0, "largest ratio of longer to shorter side of a training pair", least=1)
    unicode: str = option("NFC", "Unicode form of every letter", UNICODE_FORMS)
    allow_unknown: bool = option(False, "go on where 20 % of a text or more is unknown")
    lowercase: bool = option(False, "lowercase all three splits")
    workers: int = option(1, "processes of fairseq-preprocess", least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.source == self.target:
            raise OptionError(f"--source and --target are both {self.source!r}")
        if self.max_length < self.min_length:
            raise OptionError(f"--max-length must be at least --min-length {self.min_length}, got {self.max_length}")


def find(prefix: str | Path, language: str) -> Path:
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


def write_split(split: str, options: Options, folder: Path) -> dict[str, int]:
    """Cleans one split into ``folder`` and returns how many pairs were read and kept."""
    files = [find(getattr(options, split), language) for language in (options.source, options.target)]
    read = kept = 0
    with (
        (folder / f"{split}.{options.source}").open("w", encoding="utf-8") as source_out,
        (folder / f"{split}.{options.target}").open("w", encoding="utf-8") as target_out,
    ):
        pairs = read_pairs(*files, options.unicode)
        for source, target in progress(pairs, split, total=count_lines(files[0]), unit=" pairs"):
            read += 1
            if options.lowercase:
                source, target = source.lower(), target.lower()
            if split != "train" or keep(source, target, options.min_length, options.max_length, options.max_ratio):
                kept += 1
                source_out.write(source + "\n")
                target_out.write(target + "\n")
    say(f"{split}: {read:,} pairs read, {kept:,} kept")
    if not kept:
        raise OptionError(
            f"no training pair passes --min-length {options.min_length} --max-length {options.max_length} "
            f"--max-ratio {options.max_ratio:g}"
        )
    return {"read": read, "kept": kept}


def split_into_subwords(options: Options, text: Path, pieces: Path, out: Path) -> None:
    """Writes each file of ``text`` in subwords to ``pieces``; afterwards ``text`` holds whole words."""
    languages = (options.source, options.target)
    if options.bpe == "none":
        for file in text.iterdir():
            file.rename(pieces / file.name)
        convert, origin, destination = join_subwords, pieces, text
    else:
        say(f"learning {options.vocab_size:,} subwords ({options.bpe}) on train")
        learn_subwords(options.bpe, [text / f"train.{language}" for language in languages], out, options.vocab_size)
        convert, origin, destination = subword_encoder(options.bpe, out), text, pieces
    files = sorted(origin.iterdir())
    with progress(total=sum(map(count_lines, files)), desc="subwords", unit=" lines") as bar:
        for file in files:
            with file.open(encoding="utf-8") as lines, (destination / file.name).open("w", encoding="utf-8") as stream:
                for line in lines:
                    stream.write(convert(line.rstrip("\n")) + "\n")
                    bar.update()


@main.only
def prepare(options: Options) -> None:
    """Clean, filter, split into subwords and binarise any parallel text for fairseq.

    ``--out`` appears in one piece, or not at all.

    Raises:
        DataError: text that is damaged, empty or not parallel.
        OptionError: no training pair passes the filter, or subwords that cannot be learned.
    """
    languages = (options.source, options.target)
    with binarised_folder(options.out) as stage:
        text, pieces = stage / "text", stage / "pieces"
        text.mkdir()
        pieces.mkdir()
        counts = {split: write_split(split, options, text) for split in SPLITS}

        split_into_subwords(options, text, pieces, stage)

        say("fairseq-preprocess")
        arguments = ["--source-lang", options.source, "--target-lang", options.target]
        arguments += ["--workers", str(options.workers)]
        for split in counts:
            arguments += [f"--{split}pref", str(pieces / split)]
        if options.joined_dictionary:
            arguments.append("--joined-dictionary")
        fairseq_preprocess(arguments, stage)

        symbols: dict[str, dict[str, dict[str, float]]] = {split: {} for split in SPLITS}
        for split, language in product(SPLITS, languages):
            name = f"{split}.{language}"
            dictionary, train = stage / f"dict.{language}.txt", pieces / f"train.{language}"
            unknown = check_unknown(pieces / name, dictionary, train, options.allow_unknown)
            symbols[split][language] = {"unknown": unknown, "too_long": count_long(pieces / name)}

        for language in languages:
            (text / f"train.{language}").unlink()
        for file in pieces.iterdir():
            file.unlink()
        pieces.rmdir()
        write_json(stage / PREPARATION, {"settings": options.as_dict(), "pairs": counts, "symbols": symbols})


if __name__ == "__main__":
    main()
