"""Accuracy of a classifier or of an ensemble, diagnostics of the teachers' scores, predictions for new texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor

from fairseq_ext.training.errors import OptionError
from vision_language.muka.baselines import ensemble_probabilities
from vision_language.muka.cache import TeacherCache
from vision_language.muka.data import gold_ids
from vision_language.muka.diagnostics import diagnose, kl_to_supervised, teacher_accuracy, teachers_right
from vision_language.muka.logits import accuracy, logits_of
from vision_language.muka.models import Classifier, load_classifier, load_classifiers
from vision_language.muka.options import DiagnosisOptions
from vision_language.muka.plot import draw_scores
from vision_language.muka.targets import LabelUnion, amalgamation_targets, union_of_labels
from vision_language.muka.text_files import Texts
from vision_language.muka.trial import prove_reading

__all__ = ["diagnose_teachers", "evaluate", "predict"]


def evaluate(
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


def in_union_order(logits: Tensor, classifier: Classifier, union: LabelUnion) -> Tensor:
    """Logits of a classifier of all classes, its columns in the order of the union.

    Raises:
        OptionError: a classifier of other classes.
    """
    if set(classifier.labels) != set(union.names):
        raise OptionError(f"{classifier.folder}: its classes are not those of the teachers together")
    return logits[:, [classifier.labels.index(name) for name in union.names]]


def diagnose_teachers(
    options: DiagnosisOptions, texts: Texts, store: TeacherCache, split: str, picture: str | Path | None = None
) -> dict[str, Any]:
    """How well the scores choose teachers, by gold labels.

    Args:
        options: the teachers, their scores, and the classifiers to compare with.
        texts: with labels.
        store: keeps logits and scores.
        split: names them there.
        picture: file to draw the scores to.

    Returns:
        as :func:`~vision_language.muka.diagnostics.diagnose`; with a supervised classifier also its accuracy, and
        ``kl_to_supervised`` of the soft, hard and ensemble targets, both sides at the same temperature.
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

    report = diagnose(scores, gold, union, logits, logits_of_all(options.student) if options.student else None)
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
    if picture and store.accelerator.is_main_process:
        names = [model.folder.name for model in models]
        draw_scores(scores, teachers_right(logits, gold, union), gold, union, picture, names)
    return report


def predict(
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
