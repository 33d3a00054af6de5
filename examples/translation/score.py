"""Scores what fairseq-generate wrote, with the settings that the papers used and with sacreBLEU beside them.

    python -m examples.translation.score generate.txt --reference text/test.en
    python -m examples.translation.score generate.txt --reference text/test.de --tokenized de --split-compounds

The first form is for sentencepiece systems: hypotheses and references are plain text, and only sacreBLEU has a meaning.
The second is for systems trained on Moses tokens with their subwords joined again (``--remove-bpe``): it prints the
tokenised BLEU of the papers (the value of multi-bleu.perl and fairseq-score) and the sacreBLEU of the detokenised text.
Every sentence of the reference must have been translated, or nothing is scored.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

from sacrebleu.metrics import BLEU, BLEUScore

_COMPOUND = re.compile(r"(\S)-(\S)")


class ScoreError(Exception):
    """Bad input; its message is the one line that the user sees."""


def split_compounds(line: str) -> str:
    """Splits hyphenated compounds: ``well-known`` becomes ``well ##AT##-##AT## known``.

    The En-De papers score like this since Vaswani et al., "Attention Is All You Need" (arXiv 1706.03762): it gives
    credit to parts of a compound and raises BLEU, so it must be applied to both sides and said with the number.
    Overlapping compounds are split as by the customary ``perl -ple 's{(\\S)-(\\S)}{$1 ##AT##-##AT## $2}g'``.
    """
    return _COMPOUND.sub(r"\1 ##AT##-##AT## \2", line)


def tokenized_bleu(hypotheses: list[str], references: list[str], compounds: bool = False) -> BLEUScore:
    """BLEU of text that is already tokenised: the value of multi-bleu.perl, without smoothing."""
    if compounds:
        hypotheses, references = map(split_compounds, hypotheses), map(split_compounds, references)
    metric = BLEU(tokenize="none", smooth_method="none", force=True)
    return metric.corpus_score(list(hypotheses), [list(references)])


def sacrebleu_score(hypotheses: list[str], references: list[str], target: str | None = None) -> tuple[BLEUScore, str]:
    """sacreBLEU with its default settings (its tokeniser for ``target`` if it has one), and the signature."""
    metric = BLEU(trg_lang=target or "")
    score = metric.corpus_score(hypotheses, [references])
    return score, str(metric.get_signature())


def detokenize(lines: list[str], language: str) -> list[str]:
    """Undoes the Moses tokeniser."""
    try:
        from sacremoses import MosesDetokenizer
    except ImportError:
        raise ScoreError("--tokenized needs sacremoses to detokenise for sacreBLEU: pip install sacremoses") from None
    detokenizer = MosesDetokenizer(lang=language)
    return [detokenizer.detokenize(line.split()) for line in lines]


def read_generate(file: Path, kind: str) -> dict[int, str]:
    """Sentence number -> best hypothesis, from the lines ``H-`` (as generated) or ``D-`` (detokenised by fairseq)."""
    found: dict[int, str] = {}
    with file.open(encoding="utf-8", newline="\n") as lines:
        for line in lines:
            match = re.match(rf"{kind}-(\d+)\t", line)
            if match:
                _, _, text = line.rstrip("\n").split("\t", 2)
                found.setdefault(int(match[1]), text)  # of several (--nbest), the first is the best
    if not found:
        raise ScoreError(f"{file} holds no line that starts with {kind}-: is it the output of fairseq-generate?")
    return found


def read_outputs(file: Path, reference: Path, kind: str) -> tuple[list[str], list[str]]:
    """Hypotheses and references in the order of the data set; refuses an incomplete set."""
    found = read_generate(file, kind)
    with reference.open(encoding="utf-8", newline="\n") as lines:
        references = [line.rstrip("\n") for line in lines]
    missing = [number for number in range(len(references)) if number not in found]
    if missing:
        raise ScoreError(
            f"{file} has {len(references) - len(missing)} of the {len(references)} sentences of {reference} "
            f"(the first missing is {missing[0]})"
        )
    if len(found) > len(references):
        raise ScoreError(f"{file} has {len(found)} sentences but {reference} only {len(references)}")
    return [found[number] for number in range(len(references))], references


def score(args: argparse.Namespace) -> dict[str, object]:
    if args.split_compounds and not args.tokenized:
        raise ScoreError("--split-compounds needs --tokenized LANG: it is defined on tokenised text")
    kind = "H" if args.tokenized else "D"
    hypotheses, references = read_outputs(args.output, args.reference, kind)
    result: dict[str, object] = {"sentences": len(references)}
    lines = [f"| scored {len(hypotheses)} of {len(references)} sentences"]
    if args.tokenized:
        bleu = tokenized_bleu(hypotheses, references, args.split_compounds)
        name = "tokenised BLEU, compounds split" if args.split_compounds else "tokenised BLEU"
        lines.append(f"{name}: {bleu.format()}")
        result |= {"tokenized_bleu": bleu.score, "split_compounds": args.split_compounds}
        hypotheses, references = detokenize(hypotheses, args.tokenized), detokenize(references, args.tokenized)
    bleu, signature = sacrebleu_score(hypotheses, references, args.tokenized or args.target)
    print(*lines, f"sacreBLEU: {bleu.format(signature=signature)}", sep="\n")
    return result | {"sacrebleu": bleu.score, "signature": signature}


def parser() -> argparse.ArgumentParser:
    out = argparse.ArgumentParser(
        prog="python -m examples.translation.score",
        description="Tokenised BLEU (with compound splitting on demand) and sacreBLEU of a fairseq-generate output.",
    )
    out.add_argument("output", type=Path, help="what fairseq-generate printed, or its generate-test.txt")
    out.add_argument("--reference", type=Path, required=True, help="one reference a line, subwords joined")
    out.add_argument("--tokenized", metavar="LANG", help="both sides are Moses tokens of this language")
    out.add_argument("--split-compounds", action="store_true", help="X-Y -> X ##AT##-##AT## Y on both sides (En-De)")
    out.add_argument(
        "--target", metavar="LANG", help="target language, if sacreBLEU has a tokeniser for it (zh, ja, ko)"
    )
    out.add_argument("--json", type=Path, help="also write the numbers to this file")
    return out


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    try:
        result = score(args)
        if args.json:
            args.json.write_text(json.dumps(result, indent=2) + "\n")
    except ScoreError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (OSError, UnicodeDecodeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
