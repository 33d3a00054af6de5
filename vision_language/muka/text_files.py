"""Texts in files: lines of text or of ``label TAB text``, and data sets saved by the package ``datasets``."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from fairseq_ext.training.errors import DataError, OptionError, first_line
from fairseq_ext.training.files import STDIN, read_lines
from fairseq_ext.training.tables import TEXT_COLUMNS, read_labelled_lines

__all__ = ["ENDINGS", "Texts", "read_file", "read_new_texts"]

ENDINGS = (".tsv", ".tsv.gz", ".txt", ".txt.gz")
Row: TypeAlias = tuple[str | None, str, str]
"""Label, or None where there are none, text, and its place for messages."""


@dataclass(frozen=True)
class Texts:
    """Texts of one split, with their label names where there are any, and where they come from, for messages."""

    texts: tuple[str, ...]
    labels: tuple[str, ...] | None
    origin: str

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, rows: Sequence[int]) -> Texts:
        labels = None if self.labels is None else tuple(self.labels[row] for row in rows)
        return Texts(tuple(self.texts[row] for row in rows), labels, self.origin)

    def gold(self) -> tuple[str, ...]:
        """The labels.

        Raises:
            DataError: there are none.
        """
        if self.labels is None:
            raise DataError(f"{self.origin}: no labels; lines of label TAB text are needed")
        return self.labels

    def of_classes(self, classes: Iterable[str]) -> Texts:
        """The texts whose label is one of ``classes``."""
        kept = set(classes)
        return self[[row for row, label in enumerate(self.gold()) if label in kept]]

    def without_labels(self) -> Texts:
        return Texts(self.texts, None, self.origin)

    def digest(self) -> str:
        """SHA-256 of the texts and labels, in order."""
        sha = hashlib.sha256()
        for text in (*self.texts, *(("\0labels", *self.labels) if self.labels is not None else ())):
            raw = text.encode()
            sha.update(len(raw).to_bytes(8, "little") + raw)
        return sha.hexdigest()

    @staticmethod
    def joined(parts: Sequence[Texts]) -> Texts:
        """All texts of ``parts`` in order; labelled where all of them are."""
        labelled = all(part.labels is not None for part in parts)
        labels = tuple(label for part in parts for label in part.labels or ()) if labelled else None
        return Texts(tuple(text for part in parts for text in part.texts), labels, ", ".join(p.origin for p in parts))


def _saved_rows(path: Path) -> Iterator[Row]:
    """The rows of a split saved by ``Dataset.save_to_disk``: a column of texts, and ``label`` where it has labels."""
    try:
        from datasets import load_from_disk
    except ImportError as error:
        raise OptionError(
            f"{path} was saved by the package datasets, which is not installed: pip install datasets"
        ) from error
    try:
        data = load_from_disk(str(path))
        columns = data.column_names
    except Exception as error:  # arrow's readers raise many types
        raise DataError(f"{path}: not a saved data set: {first_line(error)}") from error
    column = next((name for name in TEXT_COLUMNS if name in columns), None)
    if column is None:
        raise DataError(f"{path}: no column {' or '.join(TEXT_COLUMNS)} among {', '.join(map(str, columns))}")
    texts = ["" if text is None else str(text) for text in data[column]]
    names = _label_names(data, path) if "label" in columns else None
    labels: Sequence[str | None] = names or [None] * len(texts)
    rows = enumerate(zip(labels, texts, strict=True), 1)
    return ((label, text, f"{path}: row {number}") for number, (label, text) in rows)


def _label_names(data: Any, path: Path) -> list[str] | None:
    """The label of each row by its name; None where no row has one, as in published test sets, which hold -1."""
    labels, feature = list(data["label"]), data.features["label"]
    absent = [label is None or label == -1 for label in labels]
    if all(absent):
        return None
    if any(absent):
        raise DataError(f"{path}: row {absent.index(True) + 1} has no label, others have one")
    try:
        return [feature.int2str(label) if hasattr(feature, "int2str") else str(label) for label in labels]
    except (ValueError, IndexError) as error:
        raise DataError(f"{path}: a label that is none of its classes: {error}") from error


def _lines(path: Path, keep_blank: bool = False) -> Iterator[Row]:
    """The rows of a text file, without a header."""
    if not path.name.endswith(ENDINGS):
        raise DataError(f"{path}: the name must end in {', '.join(ENDINGS)}")
    if ".tsv" in path.suffixes[-2:]:
        return read_labelled_lines(path, keep_blank=keep_blank)
    return ((None, line, origin) for line, origin in read_lines(path, keep_blank))


def read_file(path: str | Path) -> Texts:
    """The texts of one file, its form by its name.

    ``.tsv``: lines of ``label TAB text`` (:func:`~fairseq_ext.training.tables.read_labelled_lines`), a header where
    the first line is of these words.
    ``.txt``: one text per line, no labels. Both also with ``.gz``. A folder: what ``datasets.Dataset.save_to_disk``
    wrote (columns ``text`` or ``sentence``, and ``label``, -1 where there is none), where that package is installed.
    Blank lines are skipped.

    Raises:
        DataError: names the file and the line, such as one whose text is empty.
        OptionError: a saved data set without the package that reads it.
    """
    path = Path(path)
    texts, labels = [], []
    for label, text, origin in _saved_rows(path) if path.is_dir() else _lines(path):
        if not text.strip() or (label is not None and not label.strip()):
            raise DataError(f"{origin}: the {'label' if text.strip() else 'text'} is empty")
        texts.append(text.strip())
        labels += [] if label is None else [label.strip()]
    if not texts:
        raise DataError(f"{path}: no text in it")
    return Texts(tuple(texts), tuple(labels) or None, str(path))


def read_new_texts(path: str | Path) -> list[str]:
    """The texts of a file of :func:`read_file`, or of the standard input, ``-``; a blank line is an empty text.

    Labels are not looked at: the n-th text is that of the n-th line, after a header where there is one.

    Raises:
        DataError: a file that cannot be read.
    """
    if str(path) == STDIN:
        return [line.strip() for line, _ in read_lines(path, keep_blank=True)]
    path = Path(path)
    rows = _saved_rows(path) if path.is_dir() else _lines(path, keep_blank=True)
    return [text.strip() for _, text, _ in rows]
