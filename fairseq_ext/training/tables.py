"""Texts with labels in lines of ``label TAB text``, and the header that pandas and published files put before them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fairseq_ext.training.errors import DataError
from fairseq_ext.training.files import read_lines

__all__ = ["LABEL_COLUMNS", "TEXT_COLUMNS", "read_labelled_lines"]

LABEL_COLUMNS = ("label", "labels")
TEXT_COLUMNS = ("text", "sentence")


def read_labelled_lines(
    path: str | Path, line_form: str = "label TAB text", keep_blank: bool = False
) -> Iterator[tuple[str, str, str]]:
    """Label, text and ``FILE:LINE`` of each line, without the header.

    A header is the first line that is not blank, if it has one of ``LABEL_COLUMNS`` and one of ``TEXT_COLUMNS``, in
    capitals or not.

    Args:
        path: as for :func:`~fairseq_ext.training.files.read_lines`.
        line_form: the form of a line, for messages.
        keep_blank: also give the lines that hold nothing but space, as an empty label and text.

    Raises:
        DataError: a line without tab, a header of columns in another order or of more columns, or a file that cannot
            be read.
    """
    first = True
    for line, origin in read_lines(path, keep_blank):
        label, tab, text = line.partition("\t")
        if not line.strip():
            yield "", "", origin
            continue
        header, first = first and _is_header(line, line_form, origin), False
        if header:
            continue
        if not tab:
            raise DataError(f"{origin}: no tab; a line is {line_form}")
        yield label, text, origin


def _is_header(line: str, line_form: str, origin: str) -> bool:
    columns = [name.strip().lower() for name in line.split("\t")]
    if not set(LABEL_COLUMNS).intersection(columns) or not set(TEXT_COLUMNS).intersection(columns):
        return False
    if len(columns) > 2 or columns[1] not in TEXT_COLUMNS:
        names = ", ".join(map(repr, columns))
        raise DataError(f"{origin}: the columns are {names}; a line is {line_form}")
    return True
