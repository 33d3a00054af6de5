"""Reviews with label sets: the three forms of the RMSC data, and plain lines of ``labels TAB text``."""

from __future__ import annotations

import ast
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fairseq_ext.errors import DataError, OptionError
from fairseq_ext.files import read_lines
from graph.label_graph.text import split_text

__all__ = ["Sample", "label_matrix", "label_names", "read_file", "read_splits"]

SPLITS = ("train", "valid", "test")
FORMS = "{train,valid,test}.{tsv,tsv.gz,txt,json}, rmsc.data.{train,valid,test}.json, or one .json file an album"


@dataclass(frozen=True)
class Sample:
    """Reviews of one album (or sentences of one text), its labels, and where it was read, for messages."""

    reviews: tuple[str, ...]
    labels: tuple[str, ...]
    origin: str


def _sample(reviews: list[str], labels: list[str], origin: str, need_labels: bool) -> Sample:
    reviews = [review for review in reviews if review.strip()]
    labels = list(dict.fromkeys(label.strip() for label in labels))
    if not reviews:
        raise DataError(f"{origin}: no review, or only empty ones")
    if "" in labels or (need_labels and not labels):
        raise DataError(f"{origin}: a label is empty, or there is none")
    return Sample(tuple(reviews), tuple(labels), origin)


def _tsv_sample(line: str, origin: str, pieces: str) -> Sample:
    labels, tab, text = line.partition("\t")
    if not tab:
        raise DataError(f"{origin}: no tab; a line is labels TAB text, the labels separated by |")
    return _sample(split_text(text, pieces), labels.split("|"), origin, need_labels=True)


def _album(value: Any, origin: str, need_labels: bool) -> Sample:
    """One album of the RMSC data: ``tags``, and ``all_short_comments`` or ``all_reviews``."""
    if not isinstance(value, dict):
        raise DataError(f"{origin}: an album is a mapping, found {type(value).__name__}")
    tags = value.get("tags", [])
    comments = value.get("all_short_comments", value.get("all_reviews"))
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise DataError(f"{origin}: tags must be a list of strings")
    if not isinstance(comments, list):
        raise DataError(f"{origin}: all_short_comments or all_reviews must be a list")
    reviews: list[Any] = [comment.get("comment") if isinstance(comment, dict) else comment for comment in comments]
    if not all(isinstance(review, str) for review in reviews):
        raise DataError(f"{origin}: a review must be a string, or a mapping with the string comment")
    return _sample(reviews, tags, origin, need_labels)


def _literal(line: str, origin: str) -> Any:
    """A Python literal. ``ast.literal_eval`` runs no code; what it makes of hostile nesting are these errors."""
    try:
        return ast.literal_eval(line.strip())
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as error:
        raise DataError(f"{origin}: not a Python literal ({type(error).__name__})") from error


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not a JSON file in UTF-8: {error}") from error


def read_file(path: str | Path, pieces: str = "whole", need_labels: bool = True) -> list[Sample]:
    """The samples of one file, its form by its name.

    ``.tsv``, ``.tsv.gz``: lines of ``labels TAB text``, labels separated by ``|``. ``.json``: one album or a list of
    them. ``.txt``: a Python literal of an album a line; without ``need_labels`` also a plain text a line.

    Args:
        path: the file.
        pieces: how a plain text becomes reviews, see :func:`~graph.label_graph.text.split_text`.
        need_labels: refuse albums without tags.

    Raises:
        DataError: names the file and the line.
    """
    path = Path(path)
    name = path.name.removesuffix(".gz")
    if name.endswith(".json"):
        value = _json(path)
        albums = value if isinstance(value, list) else [value]
        origins = (
            [f"{path}: album {number}" for number in range(1, len(albums) + 1)] if value is albums else [str(path)]
        )
        samples = [_album(album, origin, need_labels) for album, origin in zip(albums, origins, strict=True)]
    elif name.endswith(".tsv"):
        samples = [_tsv_sample(line, origin, pieces) for line, origin in read_lines(path)]
    elif name.endswith(".txt"):
        samples = [
            _album(_literal(line, origin), origin, need_labels)
            if need_labels or line.lstrip().startswith("{")
            else _sample(split_text(line, pieces), [], origin, need_labels)
            for line, origin in read_lines(path)
        ]
    else:
        raise DataError(f"{path}: the name must end in .tsv, .txt or .json (.tsv and .txt also with .gz)")
    if not samples:
        raise DataError(f"{path}: no sample in it")
    return samples


def read_splits(folder: str | Path, pieces: str = "whole") -> dict[str, list[Sample]]:
    """Training, validation and test samples of a folder in any of the known forms.

    A folder with one JSON file an album is split 70/9/21 like the released code, with the same seeds, but over sorted
    file names: the order of the original was that of the disk.

    Raises:
        DataError: nothing known in the folder, or a label of validation or test that training does not have.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise OptionError(f"--data: {folder} is not a folder")
    files = {split: _split_file(folder, split) for split in SPLITS}
    if all(files.values()):
        splits = {split: read_file(path, pieces) for split, path in files.items() if path}
    elif any(files.values()):
        missing = ", ".join(split for split, path in files.items() if not path)
        raise DataError(f"{folder}: there is no file for {missing}; known are {FORMS}")
    else:
        splits = _split_albums(folder)
    known = set(label_names(splits["train"]))
    for sample in (*splits["valid"], *splits["test"]):
        for label in sample.labels:
            if label not in known:
                raise DataError(f"{sample.origin}: label {label!r} is not among the {len(known)} labels of training")
    return splits


def _split_file(folder: Path, split: str) -> Path | None:
    names = ("valid", "dev") if split == "valid" else (split,)
    endings = (".tsv", ".tsv.gz", ".txt", ".txt.gz", ".json")
    candidates = [folder / f"{prefix}{name}{end}" for prefix in ("", "rmsc.data.") for name in names for end in endings]
    found = [path for path in candidates if path.is_file()]
    if len(found) > 1:
        raise DataError(f"{folder}: both {found[0].name} and {found[1].name} could be the {split} set")
    return found[0] if found else None


def _split_albums(folder: Path) -> dict[str, list[Sample]]:
    from sklearn.model_selection import train_test_split

    albums = [sample for path in sorted(folder.glob("*.json")) for sample in read_file(path)]
    if len(albums) < 5:  # fewer leave a split empty
        raise DataError(f"{folder}: {len(albums)} albums; expected {FORMS}, of the last at least 5")
    train, rest = train_test_split(albums, test_size=0.3, random_state=1)
    # The released code calls 70% of the remainder the test set.
    test, valid = train_test_split(rest, test_size=0.3, random_state=1)
    return {"train": train, "valid": valid, "test": test}


def label_names(samples: list[Sample]) -> list[str]:
    """All labels, sorted; the order of the network's outputs."""
    return sorted({label for sample in samples for label in sample.labels})


def label_matrix(samples: list[Sample], labels: list[str]) -> Tensor:
    """Gold labels as 0 and 1, ``(samples, labels)``."""
    place = {label: column for column, label in enumerate(labels)}
    matrix = torch.zeros(len(samples), len(labels))
    for row, sample in zip(matrix, samples, strict=True):
        row[[place[label] for label in sample.labels]] = 1.0
    return matrix
