"""Files of arrays: whole or absent, and read without running what is in them, in one place."""

from __future__ import annotations

import ast

import numpy as np
import pytest

from fairseq_ext.training.arrays import array_names, load_npz, read_array, write_npy, write_npz
from fairseq_ext.training.errors import DataError
from tests.helpers import ROOT
from tests.test_floors import SOURCES

ARRAYS = {"x": np.arange(6, dtype=np.float16).reshape(2, 3), "names": np.array(["a", "ß"]), "explained": 0.5}


@pytest.mark.parametrize("compress", [False, True])
def test_what_is_written_is_read(tmp_path, compress):
    path = tmp_path / "a.npz"
    write_npz(path, ARRAYS, compress)
    read = load_npz(path)
    assert list(read) == array_names(path) == list(ARRAYS) and list(load_npz(path, "names", "absent")) == ["names"]
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(read[name], array)
        assert read[name].dtype == np.asarray(array).dtype
    first = path.read_bytes()
    write_npz(path, ARRAYS, compress)
    assert path.read_bytes() == first, "equal arrays make equal files"


def test_arrays_of_objects_are_neither_written_nor_read(tmp_path):
    """A pickle would be, and the old file stays."""
    objects = np.array([object()])
    for path, write, old in (
        (tmp_path / "a.npz", lambda path, array: write_npz(path, {"features": array}), np.ones(2)),
        (tmp_path / "a.npy", write_npy, np.ones(2)),
    ):
        write(path, old)
        with pytest.raises(ValueError, match="Object arrays cannot be saved"):
            write(path, objects)
        np.testing.assert_array_equal(read_array(path), old)
    assert {path.name for path in tmp_path.iterdir()} == {"a.npz", "a.npy"}
    np.savez(tmp_path / "b.npz", features=objects)
    assert array_names(tmp_path / "b.npz") == ["features"]
    with pytest.raises(DataError, match=r"b\.npz: not an npz of number arrays: Object arrays"):
        load_npz(tmp_path / "b.npz")
    for read in (load_npz, array_names):
        with pytest.raises(DataError, match=r"a\.npy: not an npz of number arrays"):
            read(tmp_path / "a.npy")


def test_no_other_file_reads_or_writes_arrays_by_hand():
    """But for matrices that are mapped into the memory, with what stands beside them."""
    by_hand = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and ast.unparse(node) in {
                *("np.load", "np.save", "np.savez", "np.savez_compressed")
            }:
                by_hand.add(path.relative_to(ROOT).as_posix())
    mapped = {"fairseq_ext/captions/store.py", "graph/renode/npz.py"}
    assert by_hand == {"fairseq_ext/training/arrays.py", *mapped}
