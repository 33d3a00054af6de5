"""Lines of labels and texts: the first may name the columns."""

from __future__ import annotations

import pytest

from fairseq_ext.training.errors import DataError
from fairseq_ext.training.tables import LABEL_COLUMNS, TEXT_COLUMNS, read_labelled_lines


def read(path, text, **options):
    path.write_text(text)
    return [(label, text, origin.rpartition(":")[2]) for label, text, origin in read_labelled_lines(path, **options)]


@pytest.mark.parametrize("label", [*LABEL_COLUMNS, " Label "])
@pytest.mark.parametrize("text", [*TEXT_COLUMNS, "TEXT\r"])
@pytest.mark.parametrize("before", ["", "\n", " \n\n"])
def test_a_header_is_the_first_line_that_is_not_blank(tmp_path, label, text, before):
    lines, number = f"{before}{label}\t{text}\n\nlabel\ttext\na|b\ttwo\ttabs\n", before.count("\n")
    rows = [("label", "text", f"{number + 3}"), ("a|b", "two\ttabs", f"{number + 4}")]
    assert read(tmp_path / "a.tsv", lines) == rows
    blank = [("", "", f"{row}") for row in range(1, number + 1)]
    assert read(tmp_path / "a.tsv", lines, keep_blank=True) == [*blank, ("", "", f"{number + 2}"), *rows]


@pytest.mark.parametrize("first", ["label\tthe text", "labelled\ttext", "\ttext", "the label\tsentence"])
def test_other_first_lines_are_samples(tmp_path, first):
    assert read(tmp_path / "a.tsv", f"{first}\n") == [(*first.split("\t"), "1")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("text\tlabel\n", "a.tsv:1: the columns are 'text', 'label'; a line is label TAB text"),
        ("\tlabels\ttext\n0\ta\tb\n", "a.tsv:1: the columns are '', 'labels', 'text'; a line is label TAB text"),
        ("label\ttext\tid\n", "a.tsv:1: the columns are 'label', 'text', 'id'; a line is label TAB text"),
        ("a\tb\nno tab\n", "a.tsv:2: no tab; a line is label TAB text"),
        ("label\n", "a.tsv:1: no tab; a line is label TAB text"),
    ],
)
def test_refused(tmp_path, text, message):
    with pytest.raises(DataError) as error:
        read(tmp_path / "a.tsv", text)
    assert str(error.value) == f"{tmp_path}/{message}"
