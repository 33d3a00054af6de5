"""Text as models are trained on it: cleaned and split into subwords, the same for the corpus and for later input."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Set
from contextlib import redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any, Self, cast

from fairseq_ext.training.errors import DataError, OptionError
from fairseq_ext.training.files import read_json, read_lines

__all__ = [
    "PREPARATION",
    "SUBWORDS",
    "SUBWORD_FILES",
    "UNICODE_FORMS",
    "Preparation",
    "clean",
    "dictionary_symbols",
    "join_subwords",
    "learn_subwords",
    "subword_encoder",
    "unknown_share",
]

PREPARATION = "prepare.json"
"""The file beside binarised data that says how their text was cleaned and split."""

SUBWORD_FILES = {"sentencepiece": "sentencepiece.bpe.model", "subword-nmt": "bpe.codes"}
"""The subword model of each kind, beside the data."""

SUBWORDS = (*SUBWORD_FILES, "none")
UNICODE_FORMS = ("NFC", "NFKC", "NFD", "NFKD", "none")
_DROPPED = {code: None for code in [*range(32), *range(127, 160), 0xFEFF] if not chr(code).isspace()}


def clean(line: str, form: str = "NFC") -> str:
    """Drops control characters, writes every run of whitespace as one space, and brings letters into one form.

    fairseq and Python read a carriage return, a form feed or U+2028 inside a sentence as a line or word end; left in,
    they shift one side of the corpus against the other. An é of two characters (NFD) is another word than one of one.

    Args:
        line: any text.
        form: one of ``UNICODE_FORMS``; ``"none"`` leaves the letters as they are.
    """
    text = line.translate(_DROPPED)
    return " ".join((text if form == "none" else unicodedata.normalize(cast(Any, form), text)).split())


def learn_subwords(kind: str, files: list[Path], folder: Path, size: int, option: str = "--vocab-size") -> None:
    """Learns ``size`` subwords on ``files`` into ``folder``.

    Args:
        kind: one of ``SUBWORD_FILES``, which has the name of its file.
        option: the name of ``size`` in messages.

    Raises:
        OptionError: where the text does not allow this size.
        DataError: where there is no text.
    """
    if kind == "sentencepiece":
        _learn_sentencepiece(files, folder, size, option)
        return
    try:
        from subword_nmt.learn_bpe import learn_bpe
    except ImportError:
        raise OptionError("--bpe subword-nmt needs the package: pip install subword-nmt") from None
    codes = folder / SUBWORD_FILES[kind]
    both = (line for file in files for line in file.open(encoding="utf-8"))
    with codes.open("w", encoding="utf-8") as stream:
        with redirect_stderr(StringIO()):  # its progress bar and the reason why it stops, which is said below
            learn_bpe(both, stream, size)
    learned = sum(1 for _ in read_lines(codes)) - 1  # the first line names the format
    if learned < size:
        raise OptionError(f"{option} {size} is too large for this corpus: it allows at most {learned}")


def _learn_sentencepiece(files: list[Path], folder: Path, size: int, option: str) -> None:
    import sentencepiece

    longest = max((len(line) for file in files for line in file.open("rb") if line.strip()), default=0)
    if not longest:
        raise DataError(f"{', '.join(file.name for file in files)}: no text to learn subwords on")
    try:
        sentencepiece.SentencePieceTrainer.train(
            input=[str(file) for file in files],
            model_prefix=str(folder / SUBWORD_FILES["sentencepiece"]).removesuffix(".model"),
            model_type="bpe",
            vocab_size=size,
            character_coverage=1.0,
            max_sentence_length=max(longest, 10),  # bytes; longer lines are left out, and their characters unknown
            normalization_rule_name="identity",  # so that decoding gives the text back exactly
            minloglevel=2,
        )
    except RuntimeError as error:
        message = str(error)
        if "too high" in message:
            most = message.rsplit("<=", 1)[-1].strip(" .\n")
            raise OptionError(f"{option} {size} is too large for this corpus: it allows at most {most}") from None
        if "required_chars" in message:
            least = message.split(" vs ", 1)[-1].split(".", 1)[0]
            problem = f"the characters of this corpus alone need {least}"
            raise OptionError(f"{option} {size} is too small: {problem}") from None
        raise


@dataclass(frozen=True)
class Preparation:
    """How the text of a prepared folder was cleaned and split: what new text has to go through as well.

    Args:
        folder: holds dictionaries, the subword model and ``prepare.json``.
        source, target: the two languages.
        bpe: one of ``SUBWORDS``.
        unicode: one of ``UNICODE_FORMS``.
        lowercase: whether the text was lowercased.
    """

    folder: Path
    source: str
    target: str
    bpe: str
    unicode: str
    lowercase: bool

    @classmethod
    def of(cls, folder: str | Path) -> Self:
        """Read ``folder/prepare.json``.

        Raises:
            DataError: where there is none, or it says anything else.
        """
        path = Path(folder) / PREPARATION
        try:
            settings = read_json(path)["settings"]
            values = {name: settings[name] for name in ("source", "target", "bpe", "unicode", "lowercase")}
        except (KeyError, TypeError) as error:
            raise DataError(f"{path}: no folder of examples.translation.prepare (no {error})") from error
        allowed = {"bpe": SUBWORDS, "unicode": UNICODE_FORMS, "lowercase": (False, True)}
        for name, value in values.items():
            if value not in allowed.get(name, (value,)) or (name not in allowed and not isinstance(value, str)):
                raise DataError(f"{path}: settings.{name} cannot be {value!r}")
        return cls(folder=Path(folder), **values)

    def encoder(self) -> Callable[[str], str]:
        """What cleans a line and splits it into symbols, separated by spaces.

        Raises:
            DataError: where the subword model cannot be read.
        """
        split = subword_encoder(self.bpe, self.folder)

        def encode(line: str) -> str:
            text = clean(line, self.unicode)
            return split(text.lower() if self.lowercase else text)

        return encode


def subword_encoder(kind: str, folder: Path) -> Callable[[str], str]:
    """What splits a line as :func:`learn_subwords` has learned it; ``kind`` may also be ``"none"``."""
    if kind == "none":
        return lambda line: line
    try:
        if kind == "sentencepiece":
            import sentencepiece

            model = sentencepiece.SentencePieceProcessor(model_file=str(folder / SUBWORD_FILES[kind]))
            return lambda line: " ".join(model.encode(line, out_type=str))
        from subword_nmt.apply_bpe import BPE

        with (folder / SUBWORD_FILES[kind]).open(encoding="utf-8") as codes:
            return BPE(codes).process_line
    except ImportError:
        raise OptionError("--bpe subword-nmt needs the package: pip install subword-nmt") from None
    except (OSError, RuntimeError, SystemExit, ValueError) as error:
        raise DataError(f"{folder}: its subword model cannot be read ({type(error).__name__})") from error


def join_subwords(line: str) -> str:
    """Undoes subword-nmt, as ``fairseq-generate --remove-bpe`` does."""
    return (line + " ").replace("@@ ", "").rstrip()


def dictionary_symbols(file: Path) -> set[str]:
    """What a ``dict.txt`` of fairseq holds; a model reads anything else as ``<unk>``."""
    return {line.split(" ", 1)[0] for line, _ in read_lines(file)}


def unknown_share(lines: Iterable[str], vocabulary: Set[str]) -> float:
    """The share of symbols, 0 to 1, that are not in ``vocabulary``."""
    unknown = total = 0
    for line in lines:
        symbols = line.split()
        total += len(symbols)
        unknown += sum(symbol not in vocabulary for symbol in symbols)
    return unknown / total if total else 0.0
