"""Reads hypotheses and references, and puts them in order; refuses or names what makes a score not comparable."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from fairseq_ext.text import clean
from fairseq_ext.training.errors import DataError
from fairseq_ext.training.files import read_lines

# The marks of subwords that were not joined, by the names that --remove-bpe takes. ##AT## splits compounds.
MARKERS = {
    "sentencepiece": re.compile(r"\u2581"),
    "subword_nmt": re.compile(r"@@( |$)"),
    "wordpiece": re.compile(r"(^| )##(?!AT##)\w"),
}
_GENERATED = re.compile(r"([STHDPA])-(\d+)\t")
_OTHER_SCRIPT = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")


class Outputs(NamedTuple):
    """Hypotheses and references, line by line, and warnings of what makes their score less comparable."""

    hypotheses: list[str]
    references: list[str]
    warnings: list[str]


def read_outputs(file: str | Path, reference: str | Path, kind: str) -> Outputs:
    """The hypotheses of ``file`` in the order of ``reference``.

    Args:
        file: what fairseq-generate or fairseq-interactive printed, or plain hypotheses, one per line.
        reference: one reference per line.
        kind: ``"H"`` takes hypotheses as generated, ``"D"`` as detokenised by fairseq; plain ones stay as they are.

    Raises:
        DataError: where a sentence is missing, there twice or cut off, or subwords were not joined.
    """
    references = [line for line, _ in read_lines(reference, keep_blank=True)]
    if not references:
        raise DataError(f"{reference} is empty")
    lines = list(read_lines(file, keep_blank=True))
    targets: dict[int, str] = {}
    if any(_GENERATED.match(line) for line, _ in lines):
        generated = read_generated(lines, kind)
        targets = read_generated(lines, "T") if any(line.startswith("T-") for line, _ in lines) else {}
        missing = [number for number in range(len(references)) if number not in generated]
        if missing:
            raise DataError(
                f"{file} has {len(references) - len(missing)} of the {len(references)} sentences of {reference} "
                f"(the first missing is {missing[0]})"
            )
        hypotheses = [generated[number] for number in sorted(generated)]
    else:
        hypotheses = [line for line, _ in lines]
    if len(hypotheses) != len(references):
        raise DataError(f"{file} has {len(hypotheses)} sentences but {reference} has {len(references)}")
    for name, side in ((str(file), hypotheses), (str(reference), references)):
        _refuse_subwords(name, side)
    return Outputs(hypotheses, references, _warnings(hypotheses, references, targets))


def read_generated(lines: Sequence[tuple[str, str]], kind: str) -> dict[int, str]:
    """Sentence number -> its first line of ``kind`` (of several, ``--nbest``, the first is the best)."""
    sentences: dict[int, str] = {}
    columns = 1 if kind == "T" else 2
    last = None
    for line, origin in lines:
        match = _GENERATED.match(line)
        if not match or match[1] != kind:
            continue
        number, parts = int(match[2]), line.split("\t", columns)
        if len(parts) <= columns:
            raise DataError(f"{origin}: the line of sentence {number} is cut off; translate again")
        if number in sentences and number != last:
            raise DataError(f"{origin}: sentence {number} is there twice: are two outputs in this file?")
        sentences.setdefault(number, parts[columns])
        last = number
    if not sentences:
        file = lines[0][1].rpartition(":")[0]
        raise DataError(f"{file}: no line starts with {kind}-: is it the whole output of fairseq-generate?")
    # Each hypothesis is followed by the scores of its tokens, so that a hypothesis at the very end is cut off.
    end = _GENERATED.match(lines[-1][0])
    if end and end[1] in "HD" and any(line.startswith("P-") for line, _ in lines):
        raise DataError(f"{lines[-1][1]}: the file ends within sentence {end[2]}; translate again")
    return sentences


def _refuse_subwords(name: str, lines: list[str]) -> None:
    for kind, marker in MARKERS.items():
        marked = [number for number, line in enumerate(lines, 1) if marker.search(line)]
        if len(marked) > 0.01 * len(lines):
            raise DataError(
                f"{name}: subwords were not joined in {len(marked)} of {len(lines)} lines (the first is {marked[0]}): "
                f"give fairseq-generate --remove-bpe {kind}"
            )


def _share(lines: list[str], test: Callable[[str], object]) -> float:
    return sum(bool(test(line)) for line in lines) / len(lines)


def _warnings(hypotheses: list[str], references: list[str], targets: dict[int, str]) -> list[str]:
    warnings = []
    for name, lines in (("hypotheses", hypotheses), ("references", references)):
        if blank := sum(not line.strip() for line in lines):
            warnings.append(f"{blank} of the {name} are empty")
        if unknown := sum("<unk>" in line for line in lines):
            warnings.append(f"{unknown} of the {name} hold <unk>")
        if damaged := sum("\ufffd" in line for line in lines):
            warnings.append(f"{damaged} of the {name} hold the sign of damaged text, U+FFFD")
        if other := sum(not unicodedata.is_normalized("NFC", line) for line in lines):
            warnings.append(f"{other} of the {name} are not in Unicode's NFC: the same letters count as different ones")
        if changed := sum(clean(line, "none") != line for line in lines):
            warnings.append(f"{changed} of the {name} hold control characters, or spaces other than single ones")
    if not any(line != line.lower() for line in hypotheses) and any(line != line.lower() for line in references):
        warnings.append("the hypotheses are lower-cased and the references are not: every capital counts as an error")
    if hypotheses == references:
        warnings.append("hypotheses and references are the same text")
    whole = {number: text for number, text in targets.items() if "unk>" not in text}
    if whole and not any(_letters(whole[number]) == _letters(references[number]) for number in whole):
        warnings.append("the references are not the targets that fairseq-generate read: are they of another set?")
    return warnings


def _letters(text: str) -> str:
    return "".join(letter for letter in text.lower() if letter.isalnum())


def spacing_warnings(outputs: Outputs, tokenized: bool, target: str | None) -> list[str]:
    """Warnings that the text does not look as ``--tokenized`` and ``--target`` say.

    Raises:
        DataError: where one side is tokenised and the other is not, or the script needs a tokeniser that is not named.
    """
    ends = [
        _share(lines, lambda line: re.search(r"\s[.!?]$", line)) for lines in (outputs.hypotheses, outputs.references)
    ]
    glued = [
        _share(lines, lambda line: re.search(r"\w[.!?]$", line)) for lines in (outputs.hypotheses, outputs.references)
    ]
    sides = ("the hypotheses", "the references")
    for one, other in ((0, 1), (1, 0)):
        if ends[one] > 0.5 and glued[other] > 0.5:
            raise DataError(f"{sides[one]} are tokenised and {sides[other]} are not: their words cannot be compared")
    other_script = [len(_OTHER_SCRIPT.findall(line)) > 0.3 * len(line) for line in outputs.references]
    if sum(other_script) > 0.5 * len(other_script) and not (target or tokenized):
        raise DataError("sacreBLEU needs another tokeniser for these references: name their language with --target")
    if tokenized and max(glued) > 0.5:
        return ["--tokenized, but the sign at the end of most sentences is no word of its own: tokenise both sides"]
    if not tokenized and max(ends) > 0.5:
        return ["the sentences look tokenised, and BLEU of tokens compares with no other: give --tokenized LANG"]
    return []
