"""The two trainings: a teacher on labelled texts of its classes, and a student that merges several teachers."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from fairseq_ext.training.accelerator import make_accelerator
from fairseq_ext.training.board import log_test
from fairseq_ext.training.checkpoint import CHECKPOINT
from fairseq_ext.training.errors import OptionError
from fairseq_ext.training.pretrained import fingerprint
from fairseq_ext.training.progress import say, warn
from fairseq_ext.training.runs import Experiment, run_name
from fairseq_ext.training.settings import Settings
from vision_language.muka.convergence import refuse_too_few, shortfall
from vision_language.muka.data import gold_ids, read_data, teacher_data
from vision_language.muka.diagnostics import accuracy_by_teacher
from vision_language.muka.fit import fit
from vision_language.muka.logits import accuracy, predict_logits
from vision_language.muka.models import save_classifier
from vision_language.muka.objectives import teacher_loss
from vision_language.muka.options import AmalgamationOptions, TeacherOptions, TrainingOptions
from vision_language.muka.task import Task, amalgamation_task, labelled_task
from vision_language.muka.trial import prove_training, set_attention

__all__ = ["amalgamate", "train_teacher"]

PACKAGES = ("transformers", "tokenizers", "accelerate")


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
    accelerator = accelerator or make_accelerator(options.mixed_precision, unused_parameters=True)
    classes, splits = teacher_data(options)
    task = labelled_task(options, options.model, classes, splits, teacher_loss(options), "accuracy")
    return _train(options, task, Path(out), accelerator)


def amalgamate(options: AmalgamationOptions, out: str | Path, accelerator: Accelerator | None = None) -> Experiment:
    """Train a student that knows the classes of all teachers, on texts whose labels are not used.

    Labels, where the data has them, only measure accuracy; with ``select="accuracy"`` they also pick the checkpoint,
    and with ``method="supervised"`` the training labels are the targets.

    Args:
        out: as :func:`train_teacher`.

    Returns:
        as :func:`train_teacher`, with the test accuracy on the classes of each teacher, and ``seconds_teachers``.

    Raises:
        InputError: options, data or models that cannot be used.
    """
    accelerator = accelerator or make_accelerator(options.mixed_precision, unused_parameters=True)
    splits = read_data(options)
    if options.until_converged:
        refuse_too_few(options, len(splits["train"]))
    if options.select == "accuracy":
        splits["valid"].gold()
    if options.method == "supervised":
        labels = sorted(set(splits["train"].gold()))
        task = labelled_task(options, options.student, labels, splits, F.cross_entropy, options.select)
    else:
        task = amalgamation_task(options, splits, Path(out), accelerator)
    return _train(options, task, Path(out), accelerator)


def _train(options: TrainingOptions, task: Task, out: Path, accelerator: Accelerator) -> Experiment:
    """Train where ``out`` holds no finished run of these settings."""
    inputs = {source: fingerprint(source) for source in task.sources}
    inputs |= {split: texts.digest() for split, texts in task.splits.items()}
    settings = Settings.of(options, inputs=inputs)
    experiment = Experiment(out, settings, PACKAGES, device=accelerator.device)
    if (out / "config.json").exists() and not (experiment.runs or (out / CHECKPOINT).exists()):
        raise OptionError(f"--out: {out} holds another model; choose another folder")
    run = partial(_run, options, task, out, settings, accelerator)
    return experiment.complete({run_name(seed=options.seed): run}, accelerator, checkpoints=out)


def _run(
    options: TrainingOptions, task: Task, out: Path, settings: Settings, accelerator: Accelerator
) -> dict[str, Any]:
    """Prove that the model can be trained and saved, train, test, save."""
    classifier, splits = task.classifier, task.splits
    set_attention(classifier, options.attn_implementation)
    if accelerator.is_main_process and not (out / CHECKPOINT).exists():
        everything = [text for texts in splits.values() for text in texts.texts]
        prove_training(classifier, everything, options.max_length, out)
    asked = time.perf_counter()
    signals = task.signals()
    start = time.perf_counter()
    gold = {split: gold_ids(texts, classifier.labels) for split, texts in splits.items() if texts.labels is not None}
    tokens = {split: classifier.tokens(texts.texts, options.max_length) for split, texts in splits.items()}

    def logits(split: str) -> Tensor:
        return predict_logits(classifier.model, tokens[split], options.eval_batch_size, accelerator, split)

    def validate() -> dict[str, float]:
        valid = logits("valid")
        metrics = {"loss": float(task.objective.logit_loss(valid, *signals["valid"]))}
        return metrics | ({"accuracy": accuracy(valid, gold["valid"])} if "valid" in gold else {})

    student = options if isinstance(options, AmalgamationOptions) else None
    until = bool(student and student.until_converged)
    of_training = (tokens["train"], signals["train"], validate, out, settings, accelerator)
    record = fit(options, task.objective, *of_training, task.select, until)
    if student and (lacking := shortfall(record["history"], record["converged"])):
        (say if record["converged"] is None else warn)(f"{out}: {lacking}")
    if "test" in gold:
        test = logits("test")
        metrics = {"test_accuracy": accuracy(test, gold["test"])}
        log_test(metrics, record["best_step"])
        record = metrics | record
        if task.union:
            record["test_accuracy_by_teacher"] = accuracy_by_teacher(test.argmax(-1), gold["test"], task.union)
    record |= {"train_texts": len(tokens["train"]), "classes": len(classifier.labels)}
    record |= {"seconds_teachers": start - asked} if task.union else {}
    if accelerator.is_main_process:
        save_classifier(classifier, out)
    return record | {"processes": accelerator.num_processes, "seconds": time.perf_counter() - start}
