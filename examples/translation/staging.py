"""The parts that the preparation tools share: fairseq-preprocess, and checks for text that a model will not see."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from fairseq_ext.text import dictionary_symbols, unknown_share
from fairseq_ext.training.errors import DataError, OptionError
from fairseq_ext.training.files import read_lines, staged_folder
from fairseq_ext.training.progress import say, warn

WARN_UNKNOWN, REFUSE_UNKNOWN = 0.01, 0.2
MAX_TOKENS = 1024
"""Most tokens that fairseq's models read by default (``--max-source-positions``), end of the sentence included."""


def binarised_folder(out: str) -> AbstractContextManager[Path]:
    """:func:`~fairseq_ext.training.files.staged_folder` for files that fairseq-preprocess is to read in it.

    Raises:
        OptionError: a path that it would take for several.
    """
    if "," in os.path.realpath(out):
        raise OptionError(f"--out: {os.path.realpath(out)} has a comma, where fairseq-preprocess splits a path")
    return staged_folder(out)


def fairseq_preprocess(arguments: list[str], destination: Path) -> None:
    """Runs fairseq-preprocess into ``destination``; its log is shown only if it fails."""
    command = [sys.executable, "-m", "fairseq_cli.preprocess", *arguments, "--destdir", str(destination)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.stderr.write(done.stdout + done.stderr)
        raise OptionError(f"fairseq-preprocess failed with exit code {done.returncode} (its output is above)")
    (destination / "preprocess.log").unlink(missing_ok=True)  # names files of the temporary folder


def check_unknown(file: Path, dictionary: Path, train: Path, allow: bool) -> float:
    """The share of symbols in ``file`` that ``dictionary`` (fairseq's ``dict.txt``) does not hold; it is also printed.

    Args:
        train: the training text of the same side. With one dictionary for both languages, swapped sides have no
            unknown symbols, but many that their own side never saw.
        allow: go on where that is ``REFUSE_UNKNOWN`` or more.

    Raises:
        DataError: otherwise: it can hardly be the text that was meant.
    """
    share = unknown_share(_symbols(file), dictionary_symbols(dictionary))
    show = warn if share >= WARN_UNKNOWN else say
    show(f"{file.name}: {share:.2%} of the symbols are <unk>")
    strange = unknown_share(_symbols(file), {symbol for line in _symbols(train) for symbol in line.split()})
    if strange >= REFUSE_UNKNOWN and not allow:
        raise DataError(
            f"{file.name}: {strange:.0%} of the symbols do not occur in {train.name}; are languages or sides swapped? "
            "--allow-unknown goes on"
        )
    return round(share, 6)


def _symbols(file: Path) -> Iterator[str]:
    return (line for line, _ in read_lines(file))


def count_long(file: Path) -> int:
    """The number of lines of ``file`` that are longer than fairseq's models read; it is printed where not 0."""
    lines = enumerate(read_lines(file, keep_blank=True), 1)
    long = [number for number, (line, _) in lines if len(line.split()) + 1 > MAX_TOKENS]
    if long:
        warn(
            f"{file.name}: {len(long)} lines (the first is {long[0]}) have more than {MAX_TOKENS - 1} "
            "symbols; a model of --max-source-positions 1024 does not read them"
        )
    return len(long)
