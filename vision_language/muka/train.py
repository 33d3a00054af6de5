"""The two trainings: a teacher on labelled texts of its classes, and a student that merges several teachers."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from fairseq_ext.losses import encouraging_loss
from fairseq_ext.training.accelerator import make_accelerator
from fairseq_ext.training.errors import DataError, OptionError
from fairseq_ext.training.runs import Experiment
from vision_language.muka.cache import TeacherCache, teacher_scores_of
from vision_language.muka.data import SPLITS, Texts, gold_ids, has_split, read_splits, split_labels
from vision_language.muka.models import Classifier, build_classifier, load_classifiers
from vision_language.muka.objectives import Objective, amalgamation_objective, teacher_signals
from vision_language.muka.options import FEATURE_METHODS, AmalgamationOptions, TeacherOptions, TrainingOptions
from vision_language.muka.run import Run
from vision_language.muka.targets import LabelUnion, union_of_labels
from vision_language.muka.trial import prove_reading

__all__ = ["amalgamate", "read_data", "train_teacher"]


def read_data(options: TrainingOptions) -> dict[str, Texts]:
    """The splits of all ``options.data`` together; ``test`` where each has one.

    Raises:
        InputError: data that cannot be used, or a share to hold out where all have validation texts.
    """
    if all(has_split(path, "valid") for path in options.data):
        options.refuse_idle("where there are validation texts", "valid_fraction")
    parts = [read_splits(path, options.valid_fraction, options.seed) for path in options.data]
    shared = [split for split in SPLITS if all(split in part for part in parts)]
    return {split: Texts.joined([part[split] for part in parts]) for split in shared}


def _of_classes(splits: Mapping[str, Texts], classes: Sequence[str]) -> dict[str, Texts]:
    """The texts of these classes; every split must have some."""
    kept = {split: texts.of_classes(classes) for split, texts in splits.items()}
    for split, texts in kept.items():
        missing = sorted(set(classes) - set(texts.gold()))
        if not len(texts) or (split == "train" and missing):
            raise DataError(f"{texts.origin}: no {split} text of the classes {', '.join(missing)}")
    return kept


def teacher_loss(options: TeacherOptions) -> Callable[[Tensor, Tensor], Tensor]:
    """Cross-entropy, or encouraging loss (arXiv:2110.06537)."""
    return partial(encouraging_loss, log_end=options.log_end) if options.loss == "encouraging" else F.cross_entropy


def train_teacher(options: TeacherOptions, out: str | Path, accelerator: Accelerator | None = None) -> Experiment:
    """Fine-tune a classifier on the texts of its classes.

    Args:
        out: gets the model, as ``from_pretrained`` reads it, ``results.json`` and the logs of tensorboard.

    Returns:
        Test accuracy, validation figures, steps and seconds, under the name of the seed. A finished run is not run
        again.

    Raises:
        InputError: options, data or models that cannot be used.
    """
    accelerator = accelerator or make_accelerator(options.mixed_precision)
    splits = read_data(options)
    classes = list(options.classes) or sorted(set(splits["train"].gold()))
    if options.part:
        number, parts = options.part_numbers()
        classes = split_labels(classes, parts)[number - 1]
    if len(set(classes)) < max(2, len(classes)):
        raise OptionError(f"--classes: at least two different ones are needed, got {', '.join(classes)}")
    if options.part or options.classes:
        splits = _of_classes(splits, classes)
    gold = {split: [gold_ids(texts, classes)] for split, texts in splits.items()}

    torch.manual_seed(options.seed)
    classifier = build_classifier(options.model, classes, options.layers or None, options.from_scratch)
    classifier.length(options.max_length)
    run = Run(options, splits, [options.model], out)
    if run.finished:
        return run.experiment
    run.prepare(classifier, accelerator)
    run.train(classifier, Objective(classifier.model, teacher_loss(options)), gold, accelerator, select="accuracy")
    return run.experiment


def amalgamate(
    options: AmalgamationOptions,
    out: str | Path,
    cache: str | Path | None = None,
    accelerator: Accelerator | None = None,
) -> Experiment:
    """Train a student that knows the classes of all teachers, on texts whose labels are not used.

    Labels, where the data has them, only measure accuracy; with ``select="accuracy"`` they also pick the checkpoint,
    and with ``method="supervised"`` the training labels are the targets.

    Args:
        out: as :func:`train_teacher`.
        cache: folder of the teachers' logits and scores. Default: ``cache`` in ``out``. The supervised method has none.

    Returns:
        as :func:`train_teacher`, with the test accuracy on the classes of each teacher, and ``seconds_teachers``.

    Raises:
        InputError: options, data or models that cannot be used.
    """
    accelerator = accelerator or make_accelerator(options.mixed_precision)
    if cache and options.method == "supervised":
        raise OptionError("--cache: has no effect with --method supervised")
    splits = read_data(options)
    if options.select == "accuracy":
        splits["valid"].gold()
    torch.manual_seed(options.seed)
    fitting: dict[str, Any] = {"select": options.select, "added_lr": options.amalgam_lr}

    if options.method == "supervised":
        labels = sorted(set(splits["train"].gold()))
        gold = {split: [gold_ids(texts, labels)] for split, texts in splits.items()}
        student = build_classifier(options.student, labels, options.layers or None, options.from_scratch)
        student.length(options.max_length)
        run = Run(options, splits, [options.student], out)
        if not run.finished:
            run.prepare(student, accelerator)
            run.train(student, Objective(student.model, F.cross_entropy), gold, accelerator, **fitting)
        return run.experiment

    teachers = load_classifiers(options.teachers, options.rename)
    union = union_of_labels([teacher.labels for teacher in teachers])
    splits["train"] = splits["train"].without_labels()
    for texts in splits.values():
        if texts.labels is not None:
            gold_ids(texts, union.names)  # unknown labels are refused before any work
    student = build_classifier(options.student, union.names, options.layers or None, options.from_scratch)
    everything = [text for part in splits.values() for text in part.texts]
    features = options.method in FEATURE_METHODS
    passes = options.teacher_dropout if options.method.startswith("muka") and not options.no_mc else None
    for model, dropout in ((student, None), *((teacher, passes) for teacher in teachers)):
        prove_reading(model, everything, options.max_length, hidden_states=features, dropout=dropout)
    objective = amalgamation_objective(options, student, union, teachers)
    run = Run(options, splits, [*options.teachers, options.student], out)
    if run.finished:
        return run.experiment
    run.prepare(student, accelerator)
    store = TeacherCache(cache or Path(out) / "cache", accelerator, options.max_length, options.eval_batch_size)
    start = time.perf_counter()
    told = {split: _told(options, union, teachers, splits[split], split, store) for split in ("train", "valid")}
    fitting["extra"] = {"seconds_teachers": time.perf_counter() - start}
    if features:
        for teacher in teachers:
            teacher.model.to(accelerator.device)
    run.train(student, objective, told, accelerator, union, **fitting)
    return run.experiment


def _told(
    options: AmalgamationOptions,
    union: LabelUnion,
    teachers: Sequence[Classifier],
    texts: Texts,
    split: str,
    store: TeacherCache,
) -> list[Tensor]:
    """The teachers' signals for the loss, of n rows each."""
    logits = store.all_logits(teachers, texts, split)
    if not options.method.startswith("muka"):
        return teacher_signals(options, union, logits)
    scores = teacher_scores_of(options, options.seed, teachers, logits, texts, split, store)
    return teacher_signals(options, union, logits, scores)
