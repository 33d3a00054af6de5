"""Scores translations with the settings that the papers used and with sacreBLEU beside them.

    python -m examples.translation.score generate.txt --reference text/test.en
    python -m examples.translation.score generate.txt --reference text/test.de --tokenized de --split-compounds

The first form is for sentencepiece systems: hypotheses and references are plain text, and only sacreBLEU has a meaning.
The second is for systems trained on Moses tokens with their subwords joined again (``--remove-bpe``): it prints the
tokenised BLEU of the papers (the value of multi-bleu.perl and fairseq-score) and the sacreBLEU of the detokenised text.
The output may also be plain hypotheses, one a line. A set with missing, doubled or cut sentences, or with subwords that
were not joined, is not scored; what else makes a score less than comparable is a warning, kept in ``--json``.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

from sacrebleu.metrics import BLEU, CHRF, BLEUScore

from examples.translation.outputs import read_outputs, spacing_warnings
from fairseq_ext.training.errors import OptionError
from fairseq_ext.training.files import write_json, writing_to
from fairseq_ext.training.interruption import run_command
from fairseq_ext.training.progress import Reporting, reporting, say, warn

_COMPOUND = re.compile(r"(\S)-(\S)")
# Written without spaces, and without a tokeniser in sacreBLEU: characters are the honest unit.
_CHARACTERS = ("th", "lo", "km", "my")


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
    """sacreBLEU with its default settings (its tokeniser for ``target`` if it has one), and the signature.

    Raises:
        OptionError: where the tokeniser of ``target`` is not installed.
    """
    target = (target or "").replace("-", "_").split("_")[0]
    try:
        metric = BLEU(tokenize="char") if target in _CHARACTERS else BLEU(trg_lang=target)
    except RuntimeError as error:
        extra = {"ja": "japanese", "ko": "korean"}[target]
        raise OptionError(f"--target {target} needs a tokeniser: pip install 'fairseq-ext[{extra}]'") from error
    score = metric.corpus_score(hypotheses, [references])
    return score, str(metric.get_signature())


def detokenize(lines: list[str], language: str) -> list[str]:
    """Undoes the Moses tokeniser."""
    try:
        from sacremoses import MosesDetokenizer
    except ImportError:
        raise OptionError("--tokenized needs sacremoses to detokenise for sacreBLEU: pip install sacremoses") from None
    detokenizer = MosesDetokenizer(lang=language)
    return [detokenizer.detokenize(line.split()) for line in lines]


def score(args: argparse.Namespace) -> dict[str, Any]:
    if args.split_compounds and not args.tokenized:
        raise OptionError("--split-compounds needs --tokenized LANG: it is defined on tokenised text")
    if args.target and args.tokenized:
        raise OptionError("--target has no meaning with --tokenized LANG, which names the language already")
    if args.json:
        with writing_to(args.json.parent, "--json"):
            pass
    outputs = read_outputs(args.output, args.reference, "H" if args.tokenized else "D")
    hypotheses, references, warnings = outputs
    warnings = warnings + spacing_warnings(outputs, bool(args.tokenized), args.target)
    result: dict[str, Any] = {"sentences": len(references)}
    lines = [f"| scored {len(hypotheses)} of {len(references)} sentences"]
    if args.tokenized:
        bleu = tokenized_bleu(hypotheses, references, args.split_compounds)
        name = "tokenised BLEU, compounds split" if args.split_compounds else "tokenised BLEU"
        lines.append(f"{name}: {bleu.format()}")
        result |= {"tokenized_bleu": bleu.score, "split_compounds": args.split_compounds}
        hypotheses, references = detokenize(hypotheses, args.tokenized), detokenize(references, args.tokenized)
    bleu, signature = sacrebleu_score(hypotheses, references, args.tokenized or args.target)
    if not 0.5 < bleu.ratio < 2:
        warnings.append(f"the hypotheses have {bleu.ratio:.2f} times the words of the references: are they of one set?")
    for warning in warnings:
        warn(warning)
    chrf = CHRF()
    characters = chrf.corpus_score(hypotheses, [references])
    lines.append(f"sacreBLEU: {bleu.format(signature=signature)}")
    lines.append(f"chrF: {characters.format(signature=str(chrf.get_signature()))}")
    print(*lines, sep="\n")
    result |= {"sacrebleu": bleu.score, "signature": signature}
    return result | {"chrf": characters.score, "chrf_signature": str(chrf.get_signature()), "warnings": warnings}


def parser() -> argparse.ArgumentParser:
    out = argparse.ArgumentParser(
        prog="python -m examples.translation.score",
        description="Tokenised BLEU (with compound splitting on demand) and sacreBLEU of a translated test set.",
    )
    out.add_argument("output", help="what fairseq-generate printed, or plain hypotheses, one a line; - is stdin")
    out.add_argument("--reference", type=Path, required=True, help="one reference a line, subwords joined")
    out.add_argument("--tokenized", metavar="LANG", help="both sides are Moses tokens of this language")
    out.add_argument("--split-compounds", action="store_true", help="X-Y -> X ##AT##-##AT## Y on both sides (En-De)")
    out.add_argument("--target", metavar="LANG", help="target language, where sacreBLEU needs it: zh, ja, ko, th, ...")
    out.add_argument("--json", type=Path, help="also write the numbers to this file")
    Reporting.add_to(out)
    return out


def main(argv: list[str] | None = None) -> None:
    args = parser().parse_args(argv)
    with reporting(args.quiet):
        result = score(args)
        if args.json:
            with writing_to(args.json.parent, "--json"):
                write_json(args.json, result)
            say(f"results: {args.json}")


if __name__ == "__main__":
    sys.exit(run_command(main))
