"""JSON is read where it has one meaning, and written whatever a text or a file name holds."""

from __future__ import annotations

import io
import json
import sys

import pytest

from fairseq_ext.training.errors import DataError
from fairseq_ext.training.files import read_json, read_json_lines, write_json
from fairseq_ext.training.interruption import run_command
from fairseq_ext.training.json_values import is_finite, is_number
from fairseq_ext.training.program import Program

READERS = {"file": read_json, "lines": lambda path: next(value for value, _ in read_json_lines(path))}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "b": {"a": 1, "c": 2, "c": 2}}', "the name 'c' stands twice in a mapping"),
        ('{"a": 1, "\\u0061": 2}', "the name 'a' stands twice in a mapping"),
        ('["\\ud83d"]', "a text holds half of a character (\\ud83d at character 3)"),
        ('{"\\uD83D\\ud83d\\ude00": 1}', "a text holds half of a character (\\uD83D at character 3)"),
        ('["\\\\\\ude00"]', "a text holds half of a character (\\ude00 at character 5)"),
        ('{"a": -1' + "0" * 309 + "}", "a number of 310 digits is too large"),
    ],
)
def test_json_of_more_than_one_meaning_is_refused(tmp_path, reader, text, message):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(DataError) as refusal:
        READERS[reader](path)
    assert str(refusal.value) == f"{path}{':1' if reader == 'lines' else ''}: {message}"


WHOLE = (
    *('["\\ud83d\\ude00"]', '["\\\\ud83d"]', '["\\ud7ff\\ue000"]', '[{"a": 1}, {"a": 2}]'),
    f'[1{"0" * 308}, -1{"0" * 308}, "{"9" * 400}"]',
)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("text", WHOLE)
def test_whole_characters_and_names_of_several_mappings_are_read(tmp_path, reader, text):
    (tmp_path / "a.json").write_text(text)
    assert READERS[reader](tmp_path / "a.json") == json.loads(text)


NAME = b"caf\xe9-data".decode("utf-8", "surrogateescape")
"""A folder's name that is latin-1, as Python has it."""


def test_a_file_name_that_is_not_utf8_comes_back_from_results(tmp_path):
    path = tmp_path / "results.json"
    write_json(path, {"data": NAME})
    assert read_json(path) == {"data": NAME} and path.read_bytes().isascii()
    with pytest.raises(DataError, match=r"half of a character \(\\udce9"):  # no text of a data set
        next(read_json_lines(path)) if path.write_text(json.dumps(NAME)) else None


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "utf-8"])
def test_any_terminal_gets_utf8(monkeypatch, encoding):
    program = Program("some.trainer", None)

    @program.command
    def show() -> dict[str, str]:
        """Show it."""
        return {"caf\u00e9": f"\u6c11 {NAME}"}

    monkeypatch.setattr(sys, "argv", ["trainer", "show"])
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw := io.BytesIO(), encoding=encoding))
    program()
    assert json.loads(raw.getvalue().decode()) == show()
    assert run_command(lambda: print(NAME)) == 0
    assert raw.getvalue().endswith(b"caf\\udce9-data\n")


@pytest.mark.parametrize(
    ("text", "number", "finite"),
    [
        *[("1", 1, 1), ("-2.5", 1, 1), ("true", 0, 0), ("null", 0, 0), ('"1"', 0, 0), ("[1]", 0, 0)],
        *[("NaN", 1, 0), ("Infinity", 1, 0), ("1e999", 1, 0), ("1" + 400 * "0", 1, 0)],
    ],
)
def test_numbers_of_json(text, number, finite):
    value = json.loads(text)
    assert (is_number(value), is_finite(value)) == (bool(number), bool(finite))
