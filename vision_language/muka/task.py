"""The parts of one training: a classifier, its objective, the texts, and their labels or the teachers' outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from vision_language.muka.cache import TeacherCache
from vision_language.muka.data import gold_ids
from vision_language.muka.models import Classifier, build_classifier, load_classifiers
from vision_language.muka.objectives import Objective, amalgamation_objective, teacher_signals
from vision_language.muka.options import FEATURE_METHODS, AmalgamationOptions, TrainingOptions
from vision_language.muka.targets import LabelUnion, union_of_labels
from vision_language.muka.text_files import Texts
from vision_language.muka.trial import prove_reading

__all__ = ["Signals", "Task", "amalgamation_task", "labelled_task"]

Signals = Mapping[str, Sequence[Tensor]]
"""What the loss needs for each text of a split: tensors of n rows."""


@dataclass(frozen=True)
class Task:
    """A classifier to train, and on what.

    Args:
        sources: folders of all models that it comes from.
        signals: makes those of the training and validation texts.
        select: ``"loss"`` or ``"accuracy"`` on the validation texts picks the weights.
        union: the classes of the teachers, where there are any.
    """

    classifier: Classifier
    objective: Objective
    splits: Mapping[str, Texts]
    sources: Sequence[str]
    signals: Callable[[], Signals]
    select: str
    union: LabelUnion | None = None


def labelled_task(
    options: TrainingOptions,
    source: str,
    classes: Sequence[str],
    splits: Mapping[str, Texts],
    loss: Callable[[Tensor, Tensor], Tensor],
    select: str,
) -> Task:
    """To learn ``classes`` from the labels.

    Args:
        source: folder of the model to start from.
        select: as :class:`Task`.
        loss: called with logits and the numbers of the gold classes.

    Raises:
        InputError: labels that are not among ``classes``, or a model that cannot be used.
    """
    gold = {split: [gold_ids(texts, classes)] for split, texts in splits.items()}
    torch.manual_seed(options.seed)
    classifier = build_classifier(source, classes, options.num_layers, options.from_scratch)
    classifier.length(options.max_length)
    return Task(classifier, Objective(classifier.model, loss), splits, [source], lambda: gold, select)


def amalgamation_task(
    options: AmalgamationOptions, splits: Mapping[str, Texts], out: Path, accelerator: Accelerator
) -> Task:
    """To learn from teachers, on texts whose labels only measure.

    Args:
        out: of the student; holds what the teachers say, where ``options.cache`` names no other folder.

    Raises:
        InputError: what the teachers or the student could not do, before any work.
    """
    torch.manual_seed(options.seed)
    teachers = load_classifiers(options.teachers, options.rename)
    union = union_of_labels([teacher.labels for teacher in teachers])
    splits = {**splits, "train": splits["train"].without_labels()}
    for texts in splits.values():
        if texts.labels is not None:
            gold_ids(texts, union.names)  # refuses other labels
    student = build_classifier(options.student, union.names, options.num_layers, options.from_scratch)
    everything = [text for texts in splits.values() for text in texts.texts]
    hidden_states = options.method in FEATURE_METHODS
    passes = options.teacher_dropout if options.weighs_teachers and not options.no_mc else None
    for model, dropout in ((student, None), *((teacher, passes) for teacher in teachers)):
        prove_reading(model, everything, options.max_length, hidden_states=hidden_states, dropout=dropout)
    objective = amalgamation_objective(options, student, union, teachers)
    store = TeacherCache(options.cache or out / "cache", accelerator, options.max_length, options.eval_batch_size)

    def signals() -> Signals:
        signals = {}
        for split in ("train", "valid"):
            logits, scores = store.all_logits(teachers, splits[split], split), None
            if options.weighs_teachers:
                scores = store.scores_for(options, teachers, logits, splits[split], split)
            signals[split] = teacher_signals(options, union, logits, scores)
        if hidden_states:
            for teacher in teachers:
                teacher.model.to(accelerator.device)
        return signals

    sources = [*options.teachers, options.student]
    return Task(student, objective, splits, sources, signals, options.select, union)
