"""What the preparation tools share: one-line errors, an all-or-nothing output folder, and fairseq-preprocess."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


class PreparationError(Exception):
    """Bad input; its message is the one line that the user sees."""


def progress(message: str) -> None:
    print(f"| {message}", flush=True)


@contextmanager
def staged_folder(out: Path) -> Iterator[Path]:
    """A temporary folder beside ``out`` that becomes ``out`` in one rename, or disappears if anything fails."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise PreparationError(f"--out: {out} already exists and is not an empty folder; remove it or name another")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise PreparationError(f"--out: cannot write to {out.parent} ({error.strerror})") from None
    try:
        yield stage
        umask = os.umask(0)
        os.umask(umask)
        stage.chmod(0o777 & ~umask)  # mkdtemp makes it private
        os.replace(stage, out)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def fairseq_preprocess(arguments: list[str], destination: Path) -> None:
    """Runs fairseq-preprocess into ``destination``; its log is shown only if it fails."""
    command = [sys.executable, "-m", "fairseq_cli.preprocess", *arguments, "--destdir", str(destination)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.stderr.write(done.stdout + done.stderr)
        raise PreparationError(f"fairseq-preprocess failed with exit code {done.returncode} (its output is above)")
    (destination / "preprocess.log").unlink(missing_ok=True)  # names files of the temporary folder


def sentencepiece_model(files: list[Path], prefix: Path, vocab_size: int) -> None:
    """Learns a byte-pair encoding on ``files``; the text is taken as it is, so that decoding gives it back exactly."""
    import sentencepiece

    try:
        sentencepiece.SentencePieceTrainer.train(
            input=[str(file) for file in files],
            model_prefix=str(prefix),
            model_type="bpe",
            vocab_size=vocab_size,
            character_coverage=1.0,
            normalization_rule_name="identity",
            minloglevel=2,
        )
    except RuntimeError as error:
        message = str(error)
        if "too high" in message:
            most = message.rsplit("<=", 1)[-1].strip(" .\n")
            raise PreparationError(
                f"--vocab-size {vocab_size} is too large for this corpus: it allows at most {most}"
            ) from None
        if "required_chars" in message:
            least = message.split(" vs ", 1)[-1].split(".", 1)[0]
            raise PreparationError(
                f"--vocab-size {vocab_size} is too small: the characters of this corpus alone need {least}"
            ) from None
        raise


def run(main: Callable[[], None]) -> int:
    """Calls ``main``; bad input and a full or broken disk end in one line on stderr and exit code 2."""
    try:
        main()
    except PreparationError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error.filename or '--out'}: {error.strerror or error}", file=sys.stderr)
        return 2
    return 0
