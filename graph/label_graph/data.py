"""Reviews with label sets: the three forms of the RMSC data, and plain lines of ``labels TAB text``."""

from __future__ import annotations

import ast
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fairseq_ext.training.errors import DataError, OptionError
from fairseq_ext.training.files import STDIN, read_json, read_lines
from fairseq_ext.training.options import SPLITS, find_split
from fairseq_ext.training.tables import read_labelled_lines

__all__ = ["Sample", "label_matrix", "label_names", "read_file", "read_splits", "unknown_labels"]

FORMS = (
    "{train,valid,test}.{tsv,txt,json}, rmsc.data.{train,valid,test}.json, or one .json file an album; each also .gz"
)


@dataclass(frozen=True)
class Sample:
    """Reviews of one album (or the text of one line), its labels, and where it was read, for messages."""

    reviews: tuple[str, ...]
    labels: tuple[str, ...]
    origin: str


def _sample(reviews: Iterable[str], labels: Iterable[str], origin: str) -> Sample:
    # é can be written in two ways, which are one label.
    names = list(dict.fromkeys(unicodedata.normalize("NFC", label.strip()) for label in labels))
    if "" in names:
        raise DataError(f"{origin}: a label is empty")
    return Sample(tuple(reviews), tuple(names), origin)


def _tsv_samples(path: str | Path) -> list[Sample]:
    lines = read_labelled_lines(path, "labels TAB text, the labels separated by |")
    return [_sample([text], labels.split("|") if labels.strip() else [], origin) for labels, text, origin in lines]


def _album(value: Any, origin: str, need_labels: bool) -> Sample:
    """One album of the RMSC data: ``tags``, and ``all_short_comments`` or ``all_reviews``."""
    if not isinstance(value, dict):
        raise DataError(f"{origin}: an album is a mapping, got {type(value).__name__}")
    tags = value.get("tags", None if need_labels else [])
    comments = value.get("all_short_comments", value.get("all_reviews"))
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise DataError(f"{origin}: tags must be a list of strings")
    if not isinstance(comments, list):
        raise DataError(f"{origin}: all_short_comments or all_reviews must be a list")
    reviews: list[Any] = [comment.get("comment") if isinstance(comment, dict) else comment for comment in comments]
    if not all(isinstance(review, str) for review in reviews):
        raise DataError(f"{origin}: a review must be a string, or a mapping with the string comment")
    return _sample(reviews, tags, origin)


def _literal(line: str, origin: str) -> Any:
    """A Python literal. ``ast.literal_eval`` runs no code, and raises the errors below on hostile nesting."""
    try:
        return ast.literal_eval(line.strip())
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as error:
        raise DataError(f"{origin}: not a Python literal ({type(error).__name__})") from error


def _holds_albums(path: str | Path) -> bool:
    """Whether every line is the literal of an album. All lines are read: a text may begin like an album."""
    try:
        return any([_album(_literal(line, origin), origin, need_labels=False) for line, origin in read_lines(path)])
    except DataError:
        return False


def read_file(path: str | Path, need_labels: bool = True) -> list[Sample]:
    """The samples of one file; the ending of its name, without ``.gz``, tells its form.

    ``.tsv``: lines of ``labels TAB text``, with any number of labels separated by ``|``, and with or without a header
    (:func:`~fairseq_ext.training.tables.read_labelled_lines`). ``.json``: one album or a list of albums.
    ``.txt``: on each line the Python literal of one album. If ``need_labels`` is False and a line of the ``.txt`` holds
    no album, every line is a text, blank lines too. Lines of the standard input (``"-"``) are always texts.

    Args:
        path: the file.
        need_labels: False for texts that are to be labelled: albums may then lack ``tags``. Default True.

    Raises:
        DataError: names the file and the line.
    """
    name = Path(path).name.removesuffix(".gz")
    if name.endswith(".json"):
        value = read_json(path)
        albums = value if isinstance(value, list) else [value]
        origins = [f"{path}: album {number}" for number in range(1, len(albums) + 1)]
        samples = [_album(album, origin, need_labels) for album, origin in zip(albums, origins, strict=True)]
    elif name.endswith(".tsv"):
        samples = _tsv_samples(path)
    elif name == STDIN or (name.endswith(".txt") and not (need_labels or _holds_albums(path))):
        samples = [_sample([line], [], origin) for line, origin in read_lines(path, keep_blank=True)]
    elif name.endswith(".txt"):
        samples = [_album(_literal(line, origin), origin, need_labels) for line, origin in read_lines(path)]
    else:
        raise DataError(f"{path}: the name must end in .tsv, .txt or .json, each also with .gz")
    if not samples:
        raise DataError(f"{path}: no sample in it")
    return samples


def read_splits(folder: str | Path) -> dict[str, list[Sample]]:
    """Training, validation and test samples of a folder in any of its forms.

    A folder with one JSON file per album is split 70/9/21 with the seeds of the released code. But here the files are
    sorted by name; the released code takes them in the order of the disk.

    Raises:
        OptionError: no such folder.
        DataError: the folder has none of the forms, or a split has no label that training has.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise OptionError(f"--data: {folder} is not a folder")
    files = {split: _split_file(folder, split) for split in SPLITS}
    if all(files.values()):
        splits = {split: read_file(path) for split, path in files.items() if path}
    elif any(files.values()):
        missing = ", ".join(split for split, path in files.items() if not path)
        raise DataError(f"{folder}: there is no file for {missing}; expected {FORMS}")
    else:
        splits = _split_albums(folder)
    of_training = set(label_names(splits["train"]))
    for split, samples in splits.items():
        if not of_training.intersection(label_names(samples)):
            raise DataError(f"{folder}: no sample of {split} has any of the {len(of_training)} labels of training")
    return splits


def _split_file(folder: Path, split: str) -> Path | None:
    endings = [f"{form}{packed}" for form in (".tsv", ".txt", ".json") for packed in ("", ".gz")]

    def called(name: str) -> list[str]:
        files = [f"{prefix}{name}{ending}" for prefix in ("", "rmsc.data.") for ending in endings]
        return [file for file in files if (folder / file).is_file()]

    name = find_split(folder, split, called)
    return folder / name if name else None


def _split_albums(folder: Path) -> dict[str, list[Sample]]:
    from sklearn.model_selection import train_test_split

    files = sorted(path for path in folder.iterdir() if path.name.removesuffix(".gz").endswith(".json"))
    albums = [sample for path in files for sample in read_file(path)]
    if len(albums) < 5:  # with fewer, a split would be empty
        raise DataError(f"{folder}: {len(albums)} albums; expected {FORMS}, of the last at least 5")
    train, rest = train_test_split(albums, test_size=0.3, random_state=1)
    # The released code calls 70% of the remainder the test set.
    test, valid = train_test_split(rest, test_size=0.3, random_state=1)
    return {"train": train, "valid": valid, "test": test}


def label_names(samples: list[Sample]) -> list[str]:
    """All labels, sorted, in the order of the network's outputs."""
    return sorted({label for sample in samples for label in sample.labels})


def unknown_labels(samples: Iterable[Sample], labels: Iterable[str]) -> dict[str, int]:
    """How many samples carry each label that is not among ``labels``, the most frequent first."""
    labels = set(labels)
    return dict(Counter(label for sample in samples for label in sample.labels if label not in labels).most_common())


def label_matrix(samples: list[Sample], labels: list[str]) -> Tensor:
    """Where a label is gold, bool, ``(samples, labels)``; labels that are not among ``labels`` are left out."""
    place = {label: column for column, label in enumerate(labels)}
    columns = [[place[label] for label in sample.labels if label in place] for sample in samples]
    rows = np.repeat(np.arange(len(samples)), [len(of_sample) for of_sample in columns])
    matrix = np.zeros((len(samples), len(labels)), dtype=bool)
    matrix[rows, np.fromiter(chain.from_iterable(columns), dtype=np.int64)] = True
    return torch.from_numpy(matrix)
