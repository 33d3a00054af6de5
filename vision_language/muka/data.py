"""The data of a training and its evaluation: the splits of folders, and the classes of each teacher."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fairseq_ext.training.errors import DataError, OptionError
from fairseq_ext.training.options import SPLITS, find_split
from fairseq_ext.training.progress import say
from vision_language.muka.options import TeacherOptions, TrainingOptions
from vision_language.muka.text_files import ENDINGS, Texts, read_file

__all__ = ["gold_ids", "read_data", "read_splits", "read_texts", "split_labels", "teacher_data"]


def _split_files(path: str | Path) -> dict[str, Path]:
    """The file, or saved data set, of each split of a folder; a file is training texts."""
    path = Path(path)
    if not path.exists():
        raise OptionError(f"--data: {path} does not exist")
    if path.is_file():
        return {"train": path}

    def called(name: str) -> list[str]:
        saved = [name] if (path / name / "dataset_info.json").is_file() else []
        return [file for ending in ENDINGS if (path / (file := f"{name}{ending}")).is_file()] + saved

    found = {split: find_split(path, split, called) for split in SPLITS}
    return {split: path / name for split, name in found.items() if name}


def read_texts(path: str | Path, split: str = "test") -> Texts:
    """All texts of a file, or one split of a folder; nothing is held out.

    Raises:
        OptionError: no such folder, one without this split, or another split of a file.
        DataError: a file that cannot be used.
    """
    if Path(path).is_file():
        if split != "test":
            raise OptionError(f"--split {split}: has no effect with a file, {path}")
        return read_file(path)
    files = _split_files(path)
    if split not in files:
        raise OptionError(f"--split {split}: {path} has only {', '.join(files) or 'other files'}")
    return read_file(files[split])


def read_splits(path: str | Path, valid_fraction: float = 0.05, seed: int = 1) -> dict[str, Texts]:
    """Training and validation texts, and test texts where there are any.

    Args:
        path: a folder with ``{train,valid,test}`` in a form of :func:`read_file` (``val``, ``dev`` and ``validation``
            work for ``valid``), or one file of training texts.
        valid_fraction: share of the training texts that is held out where there is no validation set; the paper's
            code holds out 0.05 (0.1 of 5AbstractsGroup).
        seed: of the hold-out.

    Raises:
        OptionError: no such folder.
        DataError: no training set, or files that cannot be used.
    """
    files = _split_files(path)
    if "train" not in files:
        raise DataError(f"{path}: no train{{{','.join(ENDINGS)}}} and no saved data set train/ in it")
    splits = {split: read_file(file) for split, file in files.items()}
    if "valid" not in splits:
        train = splits["train"]
        size = max(1, round(valid_fraction * len(train)))
        if size >= len(train):
            raise DataError(f"{path}: {len(train)} training texts are too few to hold out a validation set")
        order = np.random.default_rng(seed).permutation(len(train))
        splits["valid"], splits["train"] = train[sorted(order[:size])], train[sorted(order[size:])]
    return {split: splits[split] for split in SPLITS if split in splits}


def split_labels(labels: Iterable[str], parts: int) -> list[list[str]]:
    """The classes of each of ``parts`` teachers: sorted, N // T each, the last takes the rest, as the paper's code.

    Raises:
        OptionError: fewer than two classes for a teacher.
    """
    names = sorted(set(labels))
    size = len(names) // parts if parts > 0 else 0
    if size < 2:
        raise OptionError(f"{parts} parts of {len(names)} classes: each part needs at least two classes")
    starts = range(0, size * parts, size)
    return [names[start : start + size] if start < starts[-1] else names[start:] for start in starts]


def read_data(options: TrainingOptions) -> dict[str, Texts]:
    """The splits of all ``options.data`` together; ``test`` where each has one, which is told where some have one.

    Raises:
        InputError: data that cannot be used, or a share to hold out where all have validation texts.
    """
    if all("valid" in _split_files(path) for path in options.data):
        options.refuse_idle("where there are validation texts", "valid_fraction")
    parts = [read_splits(path, options.valid_fraction, options.seed) for path in options.data]
    shared = [split for split in SPLITS if all(split in part for part in parts)]
    for split in SPLITS:
        lacking = [str(path) for path, part in zip(options.data, parts, strict=True) if split not in part]
        if lacking and len(lacking) < len(parts):
            say(f"no {split} texts are used: {', '.join(lacking)} has none, the other folders of --data have some")
    return {split: Texts.joined([part[split] for part in parts]) for split in shared}


def teacher_data(options: TeacherOptions) -> tuple[list[str], dict[str, Texts]]:
    """The classes of a teacher, and the splits with the texts of these alone.

    Raises:
        InputError: as :func:`read_data`; fewer than two classes, or one without training texts.
    """
    splits = read_data(options)
    classes = list(options.classes) or sorted(set(splits["train"].gold()))
    if options.part:
        number, parts = options.part_numbers()
        classes = split_labels(classes, parts)[number - 1]
    if len(set(classes)) < max(2, len(classes)):
        raise OptionError(f"--classes: at least two different ones are needed, got {', '.join(classes)}")
    if not (options.part or options.classes):
        return classes, splits
    kept = {split: texts.of_classes(classes) for split, texts in splits.items()}
    for split, texts in kept.items():
        missing = sorted(set(classes) - set(texts.gold()))
        if not len(texts) or (split == "train" and missing):
            raise DataError(f"{texts.origin}: no {split} text of the classes {', '.join(missing)}")
    return classes, kept


def gold_ids(texts: Texts, labels: Sequence[str]) -> Tensor:
    """The place of each text's label in ``labels``, ``(n)``.

    Raises:
        DataError: texts without labels, or a label that is not among ``labels``.
    """
    place = {label: number for number, label in enumerate(labels)}
    other = next((label for label in texts.gold() if label not in place), None)
    if other is not None:
        names = ", ".join(labels[:10]) + (", ..." if len(labels) > 10 else "")
        raise DataError(f"{texts.origin}: the label {other!r} is not among the {len(labels)} known: {names}")
    return torch.tensor([place[label] for label in texts.gold()])
