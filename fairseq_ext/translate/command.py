"""``fairseq-ext translate``: a text, translated line for line."""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from fairseq_ext.training.errors import OptionError
from fairseq_ext.training.files import STDIN, read_lines
from fairseq_ext.training.json_values import json_text
from fairseq_ext.training.progress import progress, refuse_processes, reporting, say, warn
from fairseq_ext.training.settings import Settings, files_digest
from fairseq_ext.translate.options import Decoding, TranslateOptions
from fairseq_ext.translate.output import Output, check_place, opened

if TYPE_CHECKING:
    from fairseq_ext.translate.translator import Translation, Translator

__all__ = ["main", "translate"]

CHUNK = 1000
"""Lines that are sorted by length, translated and written together: what a kill costs at most."""

WARN_UNKNOWN = 0.01
NO_SETTINGS = ("model", "file", "out", "resume", "quiet", "data", "checkpoints")
DESCRIPTION = (
    "Translates a text line for line: cleaned and split into subwords as the training text was, searched, joined.\n"
    "Lines keep their order, and blank ones stay blank. With --nbest N every line of the text has N lines, best first."
)
EXAMPLES = """examples:
  echo "3 hours ago" | fairseq-ext translate runs/quickstart/combined
  fairseq-ext translate checkpoints/muse new.txt --out new.en --resume
  fairseq-ext translate checkpoints/muse new.txt --checkpoints checkpoint9.pt checkpoint10.pt --nbest 3 --json
"""


def main(words: Sequence[str]) -> int:
    """Run the command; ``words`` are those after its name."""
    parser = argparse.ArgumentParser(
        prog="fairseq-ext translate",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    TranslateOptions.add_to(parser)
    # intermixed: FILE may also come after options, which argparse by itself refuses
    options = TranslateOptions.of(parser.parse_intermixed_args(list(words)))
    refuse_processes(parser.prog)
    translate(options)
    return 0


def translate(options: TranslateOptions) -> None:
    """Translate ``options.file``.

    Raises:
        InputError: bad input, before anything is written.
    """
    if options.resume and not options.out:
        raise OptionError("--resume: has no effect without --out")
    check_place(options.out, options.file)
    lines, total, text = _text(options.file)
    if importlib.util.find_spec("fairseq") is None:
        raise OptionError("translate: fairseq is not installed (pip install 'fairseq-ext[fairseq]')")
    from fairseq_ext import Translator

    translator = Translator.from_pretrained(
        options.model,
        options.checkpoints,
        data=options.data or None,
        device=options.device,
        inference_dtype=options.inference_dtype,
    )
    inputs = {"text": text, "model": files_digest(translator.files)}
    settings = Settings.of(options, inputs=inputs, leave_out=NO_SETTINGS)
    with reporting(options.quiet):
        say(str(translator))
        with opened(options.out, settings, options.resume) as output:
            if output.done:
                say(f"resuming after {output.done:,} of {total:,} lines")
            _translate(translator, itertools.islice(lines(), output.done, None), total, output, options)
        say(f"{total:,} lines{f': {options.out}' if options.out else ''}")


def _translate(
    translator: Translator, lines: Iterator[str], total: int, output: Output, options: TranslateOptions
) -> None:
    decoding = Decoding(**{item.name: getattr(options, item.name) for item in fields(Decoding)})
    name = "stdin" if options.file == STDIN else options.file
    symbols = unknown = 0
    done = output.done
    with progress(total=total, initial=done, desc="translating", unit=" lines") as bar:
        while chunk := list(itertools.islice(lines, CHUNK)):
            translations = translator.translations(chunk, decoding, alignment=options.json, progress=bar.update)
            for number, translation in enumerate(translations, done + 1):
                symbols += len(translation.source_tokens)
                unknown += translation.unknown
                for problem in translator.problems(translation):
                    warn(f"{name}:{number}: {problem}")
            output.write(_rendered(chunk, translations, done + 1, options), len(chunk))
            done += len(chunk)
    if unknown > WARN_UNKNOWN * symbols:
        warn(f"{unknown / symbols:.2%} of the symbols are <unk>: is this the source language?")


def _rendered(chunk: list[str], translations: list[Translation], first: int, options: TranslateOptions) -> str:
    """The output for a chunk of the text, whose first line has the number ``first``."""
    if not options.json:
        blank = [""] * options.nbest  # for lines that have fewer hypotheses
        texts = ([*(each.text for each in translation.hypotheses), *blank] for translation in translations)
        return "".join(f"{text}\n" for ranked in texts for text in ranked[: options.nbest])
    rows = (
        {
            "line": number,
            "source": line,
            "source_tokens": translation.source_tokens,
            "long": translation.long or None,
            "cut": translation.cut,
            "hypotheses": [
                {name: value for name, value in hypothesis._asdict().items() if name != "attention"}
                for hypothesis in translation.hypotheses
            ],
        }
        for number, (line, translation) in enumerate(zip(chunk, translations, strict=True), first)
    )
    return "".join(f"{json_text(row)}\n" for row in rows)


def _text(file: str) -> tuple[Callable[[], Iterator[str]], int, str]:
    """A function that reads the lines from the start, their number and their digest.

    The whole text is read first, so that a line that is no text is refused before anything is translated. Input that
    can be read only once is kept in memory.
    """

    def read() -> Iterator[str]:
        return (line for line, _ in read_lines(file, keep_blank=True))

    held = None if Path(file).is_file() else list(read())
    lines = read if held is None else lambda: iter(held)
    total, sha = 0, hashlib.sha256()
    for line in lines():
        total += 1
        sha.update(line.encode() + b"\n")
    return lines, total, sha.hexdigest()
