"""Every sentence is kept, and what NumPy 2 and bitarray 3 broke works: each option as a user gives it."""

from __future__ import annotations

import ast
import importlib
import inspect
import sys
import warnings
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from fairseq.data import Dictionary, MonolingualDataset, TokenBlockDataset, data_utils
from fairseq.data.huffman import HuffmanCodeBuilder, HuffmanMMapIndexedDatasetBuilder
from fairseq.tasks import FairseqTask


def batches(count, lengths=None, **options):
    lengths = np.full(count, 5) if lengths is None else np.asarray(lengths)
    defaults = {"num_tokens_vec": lengths, "max_sentences": 8, "required_batch_size_multiple": 8}
    return data_utils.batch_by_size(np.arange(count), lambda i: lengths[i], **{**defaults, **options})


def test_the_last_sentences_are_kept():
    assert [len(batch) for batch in batches(13)] == [8, 5]
    np.testing.assert_array_equal(np.concatenate(batches(13)), np.arange(13))


def test_upstream_still_drops_them():
    """The day this fails, the repair can go."""
    upstream = inspect.unwrap(data_utils.batch_by_size)
    lengths = np.full(13, 5)
    kept = upstream(np.arange(13), None, lengths, max_sentences=8, required_batch_size_multiple=8)
    assert sum(map(len, kept)) == 8


@pytest.mark.parametrize("count", [1, 5, 7, 8, 9, 16, 1014])
@pytest.mark.parametrize("options", [{}, {"num_tokens_vec": None}, {"max_sentences": None, "max_tokens": 60}])
def test_every_sentence_is_in_one_batch(count, options):
    lengths = np.sort(np.random.default_rng(count).integers(1, 20, count))
    result = batches(count, lengths, **options)
    np.testing.assert_array_equal(np.concatenate(result), np.arange(count))
    if "max_tokens" in options:
        assert all(len(batch) * lengths[batch].max() <= 60 for batch in result)


def test_no_sentence_makes_no_batch():
    assert batches(0) == []


def test_indices_may_be_any_iterable():
    lengths = np.full(13, 5)
    result = data_utils.batch_by_size(iter(range(13)), None, lengths, None, 8, 8)
    np.testing.assert_array_equal(np.concatenate(result), np.arange(13))


def test_fixed_shapes_are_left_alone():
    lengths = np.full(13, 5)
    shapes = [(8, 5)]
    upstream = inspect.unwrap(data_utils.batch_by_size)
    arguments = (np.arange(13), lambda i: lengths[i], None, None, None, 8)
    expected = upstream(*arguments, fixed_shapes=shapes)
    for result in (
        data_utils.batch_by_size(*arguments, fixed_shapes=shapes),
        data_utils.batch_by_size(*arguments, shapes),
    ):
        assert [list(batch) for batch in result] == [list(batch) for batch in expected]


# --- names that NumPy 2 took away -------------------------------------------------------------------------------------


def numpy_names(module: ModuleType) -> set[str]:
    """Every ``NAME`` that a module of fairseq reads as ``np.NAME``."""
    with warnings.catch_warnings(action="ignore"):
        tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "np"
    }


def test_every_numpy_name_that_fairseq_reads_is_there():
    """In the modules that are loaded with fairseq; what its examples need is theirs."""
    modules = [
        module
        for name, module in sys.modules.items()
        if name.partition(".")[0] in ("fairseq", "fairseq_cli") and hasattr(module, "np")
    ]
    modules = [module for module in modules if module.__file__.endswith(".py")]
    assert len(modules) > 50
    missing = {
        f"{module.__name__}: np.{name}"
        for module in modules
        for name in numpy_names(module)
        if not hasattr(module.np, name)
    }
    assert not missing


def test_nothing_outside_of_fairseq_sees_the_old_names():
    assert not hasattr(np, "int") and not hasattr(np, "compat")


def test_blocks_of_sentences_are_built():
    lines = [torch.tensor([5, 6, 2]), torch.tensor([7, 2])]
    blocks = TokenBlockDataset(lines, [3, 2], block_size=None, pad=1, eos=2, break_mode="eos")
    assert [line.tolist() for line in (blocks[0], blocks[1])] == [[5, 6, 2], [7, 2]]


def test_buckets_are_lengths_that_occur():
    """The lower of the two neighbours of each percentile, as ``interpolation="lower"`` says."""
    assert data_utils.get_buckets([3, 4, 4, 9, 20], 2).tolist() == [4, 20]
    assert data_utils.get_buckets([3, 4, 9, 20], 2).tolist() == [4, 20]


# --- formats ----------------------------------------------------------------------------------------------------------


def test_huffman_data_come_back(tmp_path):
    sentences = [["the", "dog", "sits"], ["the", "cat"], ["the"]]
    builder = HuffmanCodeBuilder()
    for sentence in sentences:
        builder.add_symbols(*sentence)
    with HuffmanMMapIndexedDatasetBuilder(str(tmp_path / "data"), builder.build_code()) as data:
        for sentence in sentences:
            data.add_item(sentence)
    read = importlib.import_module("fairseq.data.huffman").HuffmanMMapIndexedDataset(str(tmp_path / "data"))
    assert [list(read.get_symbols(number)) for number in range(3)] == sentences


def test_a_word_that_overwrites_another_keeps_its_flag(tmp_path):
    text = "<s> 7 #fairseq:overwrite\nthe 5\ndog 3\nthe 2 #fairseq:overwrite\n"
    (tmp_path / "dict.txt").write_text(text)
    words = Dictionary.load(str(tmp_path / "dict.txt"))
    words.save(str(tmp_path / "saved.txt"))
    assert (tmp_path / "saved.txt").read_text() == text
    again = Dictionary.load(str(tmp_path / "saved.txt"))
    assert (again.symbols, again.indices) == (words.symbols, words.indices)
    assert again.index("the") == 7


def test_the_batches_of_a_later_epoch_are_of_that_epoch():
    """Though they are drawn as those of the first one."""
    data = MonolingualDataset([torch.tensor([4, 2])] * 3, [2] * 3, Dictionary(), add_eos_for_other_targets=False)
    iterator = FairseqTask(None).get_batch_iterator(data, max_sentences=1, epoch=3)
    assert (iterator.epoch, iterator.next_epoch_idx) == (3, 3)
