"""Accuracy of a classifier or of an ensemble, diagnostics of the teachers' scores, predictions for new texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor

from fairseq_ext.training.accelerator import make_accelerator
from fairseq_ext.training.errors import DataError, OptionError
from fairseq_ext.training.files import output_folder, write_json
from fairseq_ext.training.flags import Device
from fairseq_ext.training.options import SPLITS, OptionSet, option
from vision_language.muka.baselines import ensemble_probabilities
from vision_language.muka.cache import TeacherCache
from vision_language.muka.data import gold_ids, read_texts
from vision_language.muka.diagnostics import all_diagnostics, kl_to_supervised, teacher_accuracy, teachers_right
from vision_language.muka.logits import accuracy, logits_of
from vision_language.muka.models import Classifier, load_classifier, load_classifiers
from vision_language.muka.options import DiagnosisOptions
from vision_language.muka.plot import draw_scores
from vision_language.muka.targets import LabelUnion, amalgamation_targets, union_of_labels
from vision_language.muka.text_files import Texts, read_new_texts
from vision_language.muka.trial import prove_reading

__all__ = ["diagnose", "diagnose_teachers", "evaluate", "evaluate_classifiers", "predict", "predict_labels"]


@dataclass(frozen=True, kw_only=True)
class Reading(Device):
    """How texts are read."""

    max_length: int = option(
        0, "most tokens read per text; 0: 128, or fewer where the model has fewer positions", least=0
    )
    eval_batch_size: int = option(64, "texts of a forward pass", least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_length == 1:
            raise OptionError("--max-length must be 0, or at least 2, got 1")


@dataclass(frozen=True, kw_only=True)
class LabelledTexts(OptionSet):
    """What is evaluated on."""

    data: str = option(help="folder with splits, or a file of label TAB text")
    split: str = option("test", "split of the folder", SPLITS)


@dataclass(frozen=True, kw_only=True)
class Classifiers(OptionSet):
    """What is evaluated: one classifier, or the joined logits of several."""

    model: str = option("", "folder of a classifier")
    ensemble: tuple[str, ...] = option(
        (), "folders of classifiers whose joined logits are evaluated, in place of --model"
    )
    rename: tuple[str, ...] = option((), "another name for a class, OLD=NEW; of the second model only, 2:OLD=NEW")

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.model) == bool(self.ensemble):
            raise OptionError("--model or --ensemble: one of them is needed, and not both")


def evaluate(classifiers: Classifiers, labelled: LabelledTexts, reading: Reading) -> dict[str, Any]:
    """Accuracy of a classifier, or of an ensemble of teachers, as JSON."""
    texts, accelerator = read_texts(labelled.data, labelled.split), make_accelerator(device=reading.device)
    folders = classifiers.ensemble or [classifiers.model]
    settings = (reading.max_length, reading.eval_batch_size, classifiers.rename)
    return evaluate_classifiers(folders, texts, accelerator, *settings)


def evaluate_classifiers(
    folders: Sequence[str | Path],
    texts: Texts,
    accelerator: Accelerator,
    max_length: int = 0,
    batch_size: int = 64,
    rename: Sequence[str] = (),
) -> dict[str, Any]:
    """Accuracy of one classifier; or of the ensemble of several, which is their concatenated logits.

    Args:
        folders: of the classifiers.
        texts: with labels of the union of their classes.
        max_length: tokens of a text. Default: 0, which is 128 or what the model can.
        batch_size: texts of a step.
        rename: as :func:`~vision_language.muka.models.load_classifiers`.

    Returns:
        ``accuracy``, ``texts``, ``accuracy_by_class``; of an ensemble also ``teachers``, each with its accuracy on the
        texts of its own classes.

    Raises:
        InputError: texts without labels or with unknown ones, folders that are no classifiers.
    """
    classifiers = load_classifiers(folders, rename)
    union = union_of_labels([classifier.labels for classifier in classifiers])
    gold = gold_ids(texts, union.names)
    logits = [logits_of(classifier, texts.texts, accelerator, max_length, batch_size) for classifier in classifiers]
    right = (ensemble_probabilities(logits, union).argmax(-1) == gold).double()
    classes = [(name, gold == number) for number, name in enumerate(union.names)]
    report: dict[str, Any] = {
        "accuracy": float(right.mean()),
        "texts": len(texts),
        "accuracy_by_class": {name: float(right[rows].mean()) for name, rows in classes if rows.any()},
    }
    if len(folders) > 1:
        own = teacher_accuracy(logits, gold, union)
        report["teachers"] = [
            {"model": str(folder), "accuracy_on_its_classes": value} for folder, value in zip(folders, own, strict=True)
        ]
    return report


@dataclass(frozen=True, kw_only=True)
class DiagnosisOutput(OptionSet):
    """Where the diagnosis goes."""

    out: str = option("runs/muka/diagnostics", "folder of diagnostics.json and scores.png")
    cache: str = option("", "folder of the teachers' logits and scores (default: OUT/cache)")


def diagnose(
    options: DiagnosisOptions, labelled: LabelledTexts, reading: Reading, output: DiagnosisOutput
) -> dict[str, Any]:
    """Do the teachers' scores choose the right teacher? Needs labels; draws them."""
    texts, accelerator = read_texts(labelled.data, labelled.split), make_accelerator(device=reading.device)
    out = output_folder(output.out)
    store = TeacherCache(output.cache or out / "cache", accelerator, reading.max_length, reading.eval_batch_size)
    report = diagnose_teachers(options, texts, store, labelled.split, out / "scores.png")
    if accelerator.is_main_process:
        write_json(out / "diagnostics.json", options.as_dict() | report)
    return report


def in_union_order(logits: Tensor, classifier: Classifier, union: LabelUnion) -> Tensor:
    """Logits of a classifier of all classes, its columns in the order of the union.

    Raises:
        OptionError: a classifier of other classes.
    """
    if set(classifier.labels) != set(union.names):
        raise OptionError(f"{classifier.folder}: its classes are not those of the teachers together")
    return logits[:, [classifier.labels.index(name) for name in union.names]]


def diagnose_teachers(
    options: DiagnosisOptions, texts: Texts, store: TeacherCache, split: str, figure: str | Path | None = None
) -> dict[str, Any]:
    """How well the scores choose teachers, by gold labels.

    Args:
        options: the teachers, their scores, and the classifiers to compare with.
        texts: with labels.
        store: keeps logits and scores.
        split: names them there.
        figure: file to draw the scores to.

    Returns:
        as :func:`~vision_language.muka.diagnostics.all_diagnostics`; with a supervised classifier also its accuracy,
        and ``kl_to_supervised`` of the soft, hard and ensemble targets, both sides at the same temperature.
    """
    models = load_classifiers(options.teachers, options.rename)
    union = union_of_labels([model.labels for model in models])
    gold = gold_ids(texts, union.names)
    for model in models:
        prove_reading(model, texts.texts, store.max_length, dropout=None if options.no_mc else options.teacher_dropout)
    logits = store.all_logits(models, texts, split)
    scores = store.scores_for(options, models, logits, texts, split)

    def logits_of_all(folder: str) -> Tensor:
        model = load_classifier(folder)
        own = logits_of(model, texts.texts, store.accelerator, store.max_length, store.batch_size)
        return in_union_order(own, model, union)

    report = all_diagnostics(scores, gold, union, logits, logits_of_all(options.student) if options.student else None)
    if options.supervised:
        truth, temperature = logits_of_all(options.supervised), options.temperature
        targets = {
            kind: amalgamation_targets(
                logits,
                scores,
                union,
                hard=kind == "hard",
                temperature=temperature,
                score_temperature=options.score_temperature,
            )
            for kind in ("soft", "hard")
        }
        targets["ensemble"] = ensemble_probabilities(logits, union, temperature)
        report["supervised_accuracy"] = accuracy(truth, gold)
        report["kl_to_supervised"] = {
            name: kl_to_supervised(target, truth / temperature) for name, target in targets.items()
        }
    if figure and store.accelerator.is_main_process:
        names = [model.folder.name for model in models]
        draw_scores(scores, teachers_right(logits, gold, union), gold, union, figure, names)
    return report


@dataclass(frozen=True, kw_only=True)
class PredictionOptions(OptionSet):
    """The classifier, and what it labels."""

    file: str = option(
        help="texts to label: a .txt with a text a line, - for stdin, or any data file, whose labels are not used",
        positional=True,
    )
    model: str = option("runs/muka/student", "folder of the classifier")
    top: int = option(3, "labels to show of each text", least=1)
    rename: tuple[str, ...] = option((), "another name for a class, OLD=NEW")


def predict(options: PredictionOptions, reading: Reading) -> Iterator[dict[str, Any]]:
    """Label and probabilities of new texts, one JSON line each."""
    texts = read_new_texts(options.file)
    if not any(texts):
        raise DataError(f"{options.file}: no text in it")
    settings = (reading.max_length, reading.eval_batch_size, options.top, options.rename)
    return predict_labels(options.model, texts, make_accelerator(device=reading.device), *settings)


def predict_labels(
    folder: str | Path,
    texts: Sequence[str],
    accelerator: Accelerator,
    max_length: int = 0,
    batch_size: int = 64,
    top: int = 3,
    rename: Sequence[str] = (),
) -> Iterator[dict[str, Any]]:
    """For each text its most probable label, and the probabilities of the ``top`` most probable ones.

    An empty text has neither: its label is None.
    """
    (classifier,) = load_classifiers([folder], rename)
    filled = [text for text in texts if text]
    probabilities = logits_of(classifier, filled, accelerator, max_length, batch_size).softmax(-1)
    values, places = probabilities.topk(min(top, len(classifier.labels)), dim=-1)
    rows = zip(values.tolist(), places.tolist(), strict=True)
    for text in texts:
        row, names = next(rows) if text else ([], [])
        ranked = {classifier.labels[name]: round(value, 4) for name, value in zip(names, row, strict=True)}
        yield {"text": text, "label": next(iter(ranked), None), "probabilities": ranked}
