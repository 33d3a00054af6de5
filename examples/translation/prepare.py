"""From parallel text to a folder that fairseq-train reads.

    python -m examples.translation.prepare --train corpus/train --valid corpus/valid --test corpus/test \
        --source de --target en --out data-bin/corpus --joined-dictionary

``corpus/train`` stands for ``corpus/train.de`` and ``corpus/train.en``, each of which may end in ``.gz``.
Every line is cleaned (control characters dropped, whitespace made single spaces). Only the training pairs are filtered
by length and ratio: valid and test keep each of their lines, so that scores stay comparable. The subwords are learned
on the filtered training text, both languages together. The result appears in one piece, or not at all.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from io import StringIO
from itertools import zip_longest
from pathlib import Path

from examples.translation.staging import (
    PreparationError,
    fairseq_preprocess,
    progress,
    run,
    sentencepiece_model,
    staged_folder,
)

_DROPPED = {code: None for code in [*range(32), *range(127, 160), 0xFEFF] if not chr(code).isspace()}


def clean(line: str) -> str:
    """Drops control characters (and byte order marks) and writes every run of whitespace as one space.

    fairseq and Python read a carriage return, a form feed or U+2028 inside a sentence as a line or word end; left in,
    they shift one side of the corpus against the other.
    """
    return " ".join(line.translate(_DROPPED).split())


def keep(source: str, target: str, min_length: int, max_length: int, max_ratio: float) -> bool:
    """Whether a training pair passes the filter; lengths are counted in words (between spaces)."""
    lengths = len(source.split()), len(target.split())
    return min_length <= min(lengths) and max(lengths) <= max_length and max(lengths) <= max_ratio * min(lengths)


def find(prefix: Path, language: str) -> Path:
    """``prefix.language``, plain or gzipped."""
    plain = Path(f"{prefix}.{language}")
    for file in (plain, Path(f"{plain}.gz")):
        if file.is_file():
            return file
    raise PreparationError(f"missing file: neither {plain} nor {plain}.gz exists")


def read_lines(file: Path) -> Iterator[str]:
    """The lines of a text file as they are; only a line feed ends a line."""
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                try:
                    yield line.decode("utf-8").removesuffix("\n")
                except UnicodeDecodeError as error:
                    raise PreparationError(
                        f"{file}, line {number}: not valid UTF-8 (byte 0x{line[error.start]:02x} at {error.start + 1})"
                    ) from None
    except (gzip.BadGzipFile, EOFError) as error:
        raise PreparationError(f"{file}: broken gzip file ({error})") from None


def read_pairs(source: Path, target: Path) -> Iterator[tuple[str, str]]:
    """The pairs of two files, which must be of equal length and not empty."""
    counts = [0, 0]
    for pair in zip_longest(map(clean, read_lines(source)), map(clean, read_lines(target))):
        for side, line in enumerate(pair):
            counts[side] += line is not None
        if None not in pair:
            yield pair
    for file, count in zip((source, target), counts, strict=True):
        if count == 0:
            raise PreparationError(f"{file} is empty")
    if counts[0] != counts[1]:
        raise PreparationError(f"line counts differ: {source} has {counts[0]}, {target} has {counts[1]}")


def write_split(split: str, args: argparse.Namespace, folder: Path) -> dict[str, int]:
    """Cleans one split into ``folder`` and returns how many pairs were read and kept."""
    files = [find(getattr(args, split), language) for language in (args.source, args.target)]
    read = kept = 0
    with (
        (folder / f"{split}.{args.source}").open("w", encoding="utf-8") as source_out,
        (folder / f"{split}.{args.target}").open("w", encoding="utf-8") as target_out,
    ):
        for source, target in read_pairs(*files):
            read += 1
            if args.lowercase:
                source, target = source.lower(), target.lower()
            if split != "train" or keep(source, target, args.min_length, args.max_length, args.max_ratio):
                kept += 1
                source_out.write(source + "\n")
                target_out.write(target + "\n")
            if read % 500_000 == 0:
                progress(f"{split}: {read:,} pairs read")
    progress(f"{split}: {read:,} pairs read, {kept:,} kept")
    if not kept:
        raise PreparationError(
            f"no training pair passes --min-length {args.min_length} --max-length {args.max_length} "
            f"--max-ratio {args.max_ratio:g}"
        )
    return {"read": read, "kept": kept}


def learn_sentencepiece(files: list[Path], out: Path, vocab_size: int) -> Callable[[str], str]:
    import sentencepiece

    sentencepiece_model(files, out / "sentencepiece.bpe", vocab_size)
    model = sentencepiece.SentencePieceProcessor(model_file=str(out / "sentencepiece.bpe.model"))
    return lambda line: " ".join(model.encode(line, out_type=str))


def learn_subword_nmt(files: list[Path], out: Path, merges: int) -> Callable[[str], str]:
    try:
        from subword_nmt.apply_bpe import BPE
        from subword_nmt.learn_bpe import learn_bpe
    except ImportError:
        raise PreparationError("--bpe subword-nmt needs the package: pip install subword-nmt") from None

    codes = out / "bpe.codes"
    both = (line for file in files for line in file.open(encoding="utf-8"))
    with codes.open("w", encoding="utf-8") as stream:
        with redirect_stderr(StringIO()):  # its progress bar and the reason why it stops, which is told below
            learn_bpe(both, stream, merges)
    with codes.open(encoding="utf-8") as stream:
        learned = sum(1 for _ in stream) - 1  # the first line names the format
        if learned < merges:
            raise PreparationError(f"--vocab-size {merges} is too large for this corpus: it allows at most {learned}")
        stream.seek(0)
        return BPE(stream).process_line


LEARN = {"sentencepiece": learn_sentencepiece, "subword-nmt": learn_subword_nmt}


def join_subwords(line: str) -> str:
    """Undoes subword-nmt, as ``fairseq-generate --remove-bpe`` does."""
    return (line + " ").replace("@@ ", "").rstrip()


def split_into_subwords(args: argparse.Namespace, text: Path, pieces: Path, out: Path) -> None:
    """Writes each file of ``text`` in subwords to ``pieces``; afterwards ``text`` holds whole words."""
    if args.bpe == "none":
        for file in text.iterdir():
            file.rename(pieces / file.name)
        convert, origin, destination = join_subwords, pieces, text
    else:
        progress(f"learning {args.vocab_size:,} subwords ({args.bpe}) on train")
        train = [text / f"train.{language}" for language in (args.source, args.target)]
        convert, origin, destination = LEARN[args.bpe](train, out, args.vocab_size), text, pieces
    for file in sorted(origin.iterdir()):
        with file.open(encoding="utf-8") as lines, (destination / file.name).open("w", encoding="utf-8") as stream:
            stream.writelines(convert(line.rstrip("\n")) + "\n" for line in lines)


def prepare(args: argparse.Namespace) -> None:
    languages = (args.source, args.target)
    if args.source == args.target:
        raise PreparationError(f"--source and --target are both {args.source!r}")
    if args.min_length < 1 or args.max_length < args.min_length:
        raise PreparationError(f"need 1 <= --min-length <= --max-length, got {args.min_length} and {args.max_length}")
    if not args.max_ratio >= 1:
        raise PreparationError(f"--max-ratio must be at least 1, got {args.max_ratio:g}")
    if args.bpe == "none" and args.vocab_size is not None:
        raise PreparationError("--vocab-size has no meaning with --bpe none: the text is already split into subwords")
    if args.bpe != "none" and args.vocab_size is None:
        args.vocab_size = 8000
    if args.vocab_size is not None and args.vocab_size < 1:
        raise PreparationError(f"--vocab-size must be positive, got {args.vocab_size}")
    if args.workers < 1:
        raise PreparationError(f"--workers must be positive, got {args.workers}")

    with staged_folder(args.out) as stage:
        text, pieces = stage / "text", stage / "pieces"
        text.mkdir()
        pieces.mkdir()
        counts = {split: write_split(split, args, text) for split in ("train", "valid", "test")}

        split_into_subwords(args, text, pieces, stage)

        progress("fairseq-preprocess")
        arguments = ["--source-lang", args.source, "--target-lang", args.target, "--workers", str(args.workers)]
        for split in counts:
            arguments += [f"--{split}pref", str(pieces / split)]
        if args.joined_dictionary:
            arguments.append("--joined-dictionary")
        fairseq_preprocess(arguments, stage)

        for language in languages:
            (text / f"train.{language}").unlink()
        for file in pieces.iterdir():
            file.unlink()
        pieces.rmdir()
        settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
        (stage / "prepare.json").write_text(json.dumps({"settings": settings, "pairs": counts}, indent=2) + "\n")
    progress(f"done: {args.out}")


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
    out.add_argument("--bpe", choices=[*LEARN, "none"], default="sentencepiece",
                     help="sentencepiece takes plain text; subword-nmt expects text that is already tokenised; "
                     "none: text that subword-nmt has already split (words end in @@)")  # fmt: skip
    out.add_argument("--vocab-size", type=int, metavar="N",
                     help="sentencepiece: size of the model; subword-nmt: number of merges (8000)")  # fmt: skip
    out.add_argument("--joined-dictionary", action="store_true", help="one dictionary for both languages")
    out.add_argument("--min-length", type=int, default=1, metavar="WORDS", help="shortest side of a training pair")
    out.add_argument("--max-length", type=int, default=250, metavar="WORDS", help="longest side of a training pair")
    out.add_argument("--max-ratio", type=float, default=9.0, help="longest side / shortest side of a training pair")
    out.add_argument("--lowercase", action="store_true", help="lowercase all three splits")
    out.add_argument("--workers", type=int, default=1, metavar="N", help="processes of fairseq-preprocess")
    return out


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    return run(lambda: prepare(args))


if __name__ == "__main__":
    sys.exit(main())
