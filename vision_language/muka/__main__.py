"""Merge fine-tuned classifiers into one, from unlabelled texts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fairseq_ext.training.accelerator import make_accelerator
from fairseq_ext.training.errors import DataError, OptionError
from fairseq_ext.training.files import output_folder, write_json
from fairseq_ext.training.flags import Device
from fairseq_ext.training.options import OptionSet, option
from fairseq_ext.training.program import Program
from vision_language.muka import evaluate as evaluation
from vision_language.muka import train
from vision_language.muka.cache import TeacherCache
from vision_language.muka.data import SPLITS, read_texts
from vision_language.muka.options import AmalgamationOptions, DiagnosisOptions, TeacherOptions
from vision_language.muka.synthetic import synthesize
from vision_language.muka.text_files import Texts, read_new_texts

main = Program("vision_language.muka", __doc__)
SHOWN = ("test_accuracy", "valid_accuracy", "valid_loss")


@dataclass(frozen=True, kw_only=True)
class TeacherOutput(Device):
    """Where to train and to save."""

    out: str = option("runs/muka/teacher", "folder of the model and its results")


@dataclass(frozen=True, kw_only=True)
class StudentOutput(Device):
    """Where to train and to save."""

    out: str = option("runs/muka/student", "folder of the model and its results")


@dataclass(frozen=True, kw_only=True)
class Reading(Device):
    """How texts are read."""

    max_length: int = option(0, "tokens of a text, 0: 128, or fewer where the model has fewer positions", least=0)
    eval_batch_size: int = option(64, "texts of a step", least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_length == 1:
            raise OptionError("--max-length must be 0, or at least 2, got 1")


@dataclass(frozen=True, kw_only=True)
class LabelledTexts(OptionSet):
    """What is evaluated on."""

    data: str = option(help="folder with splits, or a file of label TAB text")
    split: str = option("test", "of the folder", SPLITS)

    def read(self) -> Texts:
        return read_texts(self.data, self.split)


@dataclass(frozen=True, kw_only=True)
class Classifiers(OptionSet):
    """What is evaluated: one classifier, or the joined logits of several."""

    model: str = option("", "folder of a classifier")
    ensemble: tuple[str, ...] = option((), "folders of teachers instead")
    rename: tuple[str, ...] = option((), "OLD=NEW: another name for a class; 2:OLD=NEW: of the second model only")

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.model) == bool(self.ensemble):
            raise OptionError("--model or --ensemble: one of them is needed, and not both")


@dataclass(frozen=True, kw_only=True)
class DiagnosisOutput(OptionSet):
    """Where the diagnosis goes."""

    out: str = option("runs/muka/diagnostics", "folder of diagnostics.json and scores.png")
    cache: str = option("", "folder of the teachers' logits and scores (default: OUT/cache)")


@dataclass(frozen=True, kw_only=True)
class PredictionOptions(OptionSet):
    """The classifier, and what it labels."""

    file: str = option(
        help="a .txt with a text a line, - for stdin, or any data file; its labels are not used", positional=True
    )
    model: str = option("runs/muka/student", "folder of the classifier")
    top: int = option(3, "labels shown of each text", least=1)
    rename: tuple[str, ...] = option((), "OLD=NEW: another name for a class")


@dataclass(frozen=True, kw_only=True)
class SyntheticTexts(OptionSet):
    """The made-up texts."""

    out: str = option("runs/muka/texts", "folder")
    texts: int = option(1000, "texts of all splits together", least=40)
    seed: int = option(0, "of all that is drawn", least=0)


@main.command
def train_teacher(options: TeacherOptions, output: TeacherOutput) -> str:
    """Fine-tune a classifier on the texts of its classes."""
    accelerator = make_accelerator(options.mixed_precision, output.device)
    return train.train_teacher(options, output.out, accelerator).report(*SHOWN)


@main.command
def amalgamate(options: AmalgamationOptions, output: StudentOutput) -> str:
    """Train a student that knows the classes of all teachers."""
    accelerator = make_accelerator(options.mixed_precision, output.device)
    return train.amalgamate(options, output.out, accelerator).report(*SHOWN)


@main.command
def evaluate(classifiers: Classifiers, texts: LabelledTexts, reading: Reading) -> dict[str, Any]:
    """Accuracy of a classifier, or of an ensemble of teachers, as JSON."""
    labelled, accelerator = texts.read(), make_accelerator(device=reading.device)
    folders = classifiers.ensemble or [classifiers.model]
    settings = (reading.max_length, reading.eval_batch_size, classifiers.rename)
    return evaluation.evaluate(folders, labelled, accelerator, *settings)


@main.command
def diagnose(
    options: DiagnosisOptions, texts: LabelledTexts, reading: Reading, output: DiagnosisOutput
) -> dict[str, Any]:
    """Do the teachers' scores choose the right teacher? Needs labels; draws them."""
    labelled, accelerator = texts.read(), make_accelerator(device=reading.device)
    out = output_folder(output.out)
    store = TeacherCache(output.cache or out / "cache", accelerator, reading.max_length, reading.eval_batch_size)
    report = evaluation.diagnose_teachers(options, labelled, store, texts.split, out / "scores.png")
    if accelerator.is_main_process:
        write_json(out / "diagnostics.json", options.as_dict() | report)
    return report


@main.command
def predict(options: PredictionOptions, reading: Reading) -> Iterator[dict[str, Any]]:
    """Label and probabilities of new texts, one JSON line each."""
    texts = read_new_texts(options.file)
    if not any(texts):
        raise DataError(f"{options.file}: no text in it")
    settings = (reading.max_length, reading.eval_batch_size, options.top, options.rename)
    return evaluation.predict(options.model, texts, make_accelerator(device=reading.device), *settings)


@main.command
def _synthesize(options: SyntheticTexts) -> str:
    """Write made-up texts of four classes, for a try without data."""
    synthesize(options.out, options.texts, options.seed)
    return f"{options.texts} texts in {options.out}"


if __name__ == "__main__":
    main()
