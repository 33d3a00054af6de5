"""Scores translations with the settings that the papers used and with sacreBLEU beside them.

    python -m examples.translation.score generate.txt --reference text/test.en
    python -m examples.translation.score generate.txt --reference text/test.de --tokenized de --split-compounds

The first form is for sentencepiece systems: hypotheses and references are plain text, and only sacreBLEU has a meaning.
The second is for systems trained on Moses tokens with their subwords joined again (``--remove-bpe``): it prints the
tokenised BLEU of the papers (the value of multi-bleu.perl and fairseq-score) and the sacreBLEU of the detokenised text.
The output may also be plain hypotheses, one per line. A set with missing, doubled or cut sentences, or with subwords
that were not joined, is not scored; what else makes a score less than comparable is a warning, kept in ``--json``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sacrebleu.metrics import BLEU, CHRF, BLEUScore

from examples.translation.outputs import read_outputs, spacing_warnings
from fairseq_ext.training.errors import OptionError
from fairseq_ext.training.files import output_folder, write_json, writing_to
from fairseq_ext.training.options import OptionSet, option
from fairseq_ext.training.program import Program
from fairseq_ext.training.progress import warn

main = Program("examples.translation.score")

_COMPOUND = re.compile(r"(\S)-(\S)")
# Languages written without spaces for which sacreBLEU names no tokeniser: all but Cantonese are scored by characters.
_TOKENIZERS = {"yue": "zh", "th": "char", "lo": "char", "km": "char", "my": "char"}


@dataclass(frozen=True, kw_only=True)
class Options(OptionSet):
    """What is scored, and how.

    Raises:
        OptionError: options that do not go together.
    """

    output: str = option(
        help="what fairseq-generate printed, or plain hypotheses, one a line; - is stdin", positional=True
    )
    reference: str = option(help="file of references, one a line, subwords joined")
    tokenized: str = option("", "language of the Moses tokens, where both sides are such")
    split_compounds: bool = option(
        False, "split hyphenated words of both sides: X-Y -> X ##AT##-##AT## Y (En-De)", idle={"tokenized": ("",)}
    )
    target: str = option("", "target language, where sacreBLEU needs it: zh, ja, ko, th, ...")
    json: str = option("", "JSON file for the numbers", written=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tokenized:
            self.refuse_idle(f"with --tokenized {self.tokenized}, which names the language already", "target")


def split_compounds(line: str) -> str:
    """Splits hyphenated compounds: ``well-known`` becomes ``well ##AT##-##AT## known``.

    The En-De papers score like this since Vaswani et al., "Attention Is All You Need" (arXiv 1706.03762): it gives
    credit to parts of a compound and raises BLEU, so it must be applied to both sides and stated beside the score.
    Overlapping compounds are split as by the customary ``perl -ple 's{(\\S)-(\\S)}{$1 ##AT##-##AT## $2}g'``.
    """
    return _COMPOUND.sub(r"\1 ##AT##-##AT## \2", line)


def tokenized_bleu(hypotheses: list[str], references: list[str], compounds: bool = False) -> BLEUScore:
    """BLEU of text that is already tokenised: the value of multi-bleu.perl, without smoothing."""
    if compounds:
        hypotheses, references = map(split_compounds, hypotheses), map(split_compounds, references)
    metric = BLEU(tokenize="none", smooth_method="none", force=True)
    return metric.corpus_score(list(hypotheses), [list(references)])


def sacrebleu_metric(target: str | None = None) -> BLEU:
    """sacreBLEU with its default settings, and its tokeniser for ``target`` if it has one.

    Raises:
        OptionError: where the tokeniser of ``target`` is not installed.
    """
    target = (target or "").replace("-", "_").split("_")[0]
    try:
        return BLEU(tokenize=_TOKENIZERS.get(target), trg_lang=target)
    except RuntimeError as error:
        extra = {"ja": "japanese", "ko": "korean"}[target]
        raise OptionError(f"--target {target} needs a tokeniser: pip install 'fairseq-ext[{extra}]'") from error


def sacrebleu_score(hypotheses: list[str], references: list[str], target: str | None = None) -> tuple[BLEUScore, str]:
    """The score of :func:`sacrebleu_metric` and its signature.

    Raises:
        OptionError: where the tokeniser of ``target`` is not installed.
    """
    metric = sacrebleu_metric(target)
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


@main.only
def score(options: Options) -> None:
    """Tokenised BLEU (with compound splitting on demand) and sacreBLEU of a translated test set.

    Raises:
        DataError: an output that cannot be scored.
        OptionError: a tokeniser that is not installed, or a place that cannot be written.
    """
    if options.json:
        output_folder(Path(options.json).parent, "--json")
    outputs = read_outputs(options.output, Path(options.reference), "H" if options.tokenized else "D")
    hypotheses, references, warnings = outputs
    warnings = warnings + spacing_warnings(outputs, bool(options.tokenized), options.target)
    result: dict[str, Any] = {"sentences": len(references)}
    lines = [f"| scored {len(hypotheses)} of {len(references)} sentences"]
    if options.tokenized:
        bleu = tokenized_bleu(hypotheses, references, options.split_compounds)
        name = "tokenised BLEU, compounds split" if options.split_compounds else "tokenised BLEU"
        lines.append(f"{name}: {bleu.format()}")
        result |= {"tokenized_bleu": bleu.score, "split_compounds": options.split_compounds}
        hypotheses, references = detokenize(hypotheses, options.tokenized), detokenize(references, options.tokenized)
    bleu, signature = sacrebleu_score(hypotheses, references, options.tokenized or options.target)
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
    result |= {"chrf": characters.score, "chrf_signature": str(chrf.get_signature()), "warnings": warnings}
    if options.json:
        with writing_to(Path(options.json).parent, "--json"):
            write_json(options.json, result)


if __name__ == "__main__":
    main()
