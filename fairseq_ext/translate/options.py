"""How to translate: the options of the command and of :class:`fairseq_ext.Translator`."""

from __future__ import annotations

from dataclasses import dataclass

from fairseq_ext.training.errors import OptionError
from fairseq_ext.training.flags import Device
from fairseq_ext.training.options import OptionSet, option
from fairseq_ext.training.progress import Reporting

__all__ = ["Decoding", "Loading", "TranslateOptions"]

AUTO = "auto"


@dataclass(frozen=True, kw_only=True)
class Loading(Device):
    """The model."""

    checkpoints: tuple[str, ...] = option(
        (),
        "files in the model's folder, several are an ensemble (default: the first that is there of "
        "checkpoint_average.pt, checkpoint_best.pt and checkpoint_last.pt)",
    )
    data: str = option(
        "",
        "folder with prepare.json, the dictionaries and the subword model (default: the model's folder if it holds "
        "them, else the folder that the checkpoint was trained on)",
    )
    inference_dtype: str = option(
        AUTO,
        "number format of the weights of linear layers on a CPU; auto: float32 for Transformers on a CPU, and what "
        "else there is as it was trained",
        (AUTO, "float32", "bfloat16", "int8"),
    )


@dataclass(frozen=True, kw_only=True)
class Decoding(OptionSet):
    """Beam search."""

    beam: int = option(5, "hypotheses of a search", least=1)
    nbest: int = option(1, "hypotheses to keep, at most the beam", least=1)
    lenpen: float = option(1.0, "length penalty: below 1 favours short translations, above 1 long ones")
    max_len: int = option(200, "most subwords of a translation, as in fairseq-generate", least=1)
    long: str = option(
        "skip",
        "treatment of lines with more subwords than the model reads: leave blank, cut, or translate in parts",
        ("skip", "truncate", "split"),
    )
    batch_tokens: int = option(4096, "most subwords of a batch, padding included; a longer line is alone", least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nbest > self.beam:
            raise OptionError(f"--nbest {self.nbest}: must be at most --beam {self.beam}")


@dataclass(frozen=True, kw_only=True)
class TranslateOptions(Loading, Decoding, Reporting):
    """``fairseq-ext translate``."""

    model: str = option(help="folder of checkpoints, such as a --save-dir of fairseq-train", positional=True)
    file: str = option("-", "text, a sentence a line, plain or .gz; - is the standard input", positional=True)
    out: str = option("", "file to write, whole once all is translated (default: the standard output)")
    json: bool = option(
        False,
        "print one JSON object a line: hypotheses with score, subwords, their scores, and alignment to the source",
    )
    resume: bool = option(False, "continue the killed translation of the same FILE into the same --out")
