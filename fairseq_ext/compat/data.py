"""Data: no sentence is dropped, and all formats and options that current NumPy and bitarray broke work again."""

from __future__ import annotations

import importlib
import inspect
import types
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from fairseq_ext.compat.wrapping import wrapping

__all__ = [
    "configure_plain_encoders",
    "keep_last_batch",
    "keep_overwrite_flags",
    "read_cached_data",
    "read_huffman_data",
    "restore_mbart_task",
    "restore_numpy_names",
    "resume_with_the_same_batches",
]


def keep_last_batch() -> bool:
    """Put back the indices that fairseq's ``batch_by_size`` cuts off at the end; no indices give no batch."""
    from fairseq.data import data_utils

    @wrapping(data_utils, "batch_by_size")
    def batch_by_size(upstream: Any, indices: Any, *args: Any, **kwargs: Any) -> list[Any]:
        if not isinstance(indices, np.ndarray):
            indices = np.fromiter(indices, dtype=np.int64, count=-1)
        if len(indices) == 0:
            return []
        batches = list(upstream(indices, *args, **kwargs))
        covered = sum(len(batch) for batch in batches)
        # The batches follow the order of the indices, so what is missing is the end.
        if covered < len(indices):
            batches.append(indices[covered:])
        return batches

    return True


def resume_with_the_same_batches() -> bool:
    """Make a resumed training's batches from the seed of epoch 1, as in a training that was never killed.

    fairseq draws once which sentences share a batch, from the seed and the epoch that the process began with, and
    keeps the batches for all epochs. Data that change with the epoch have new batches in each epoch; this stays so.
    ``--update-ordered-indices-seed`` adds that epoch to the seed once more, and that seed then shuffles the batches,
    too.
    """
    from fairseq.tasks import FairseqTask
    from fairseq.trainer import Trainer

    signature = inspect.signature(FairseqTask.get_batch_iterator)
    seeded_by_epoch = False

    @wrapping(Trainer, "get_train_iterator")
    def get_train_iterator(upstream: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal seeded_by_epoch
        seeded_by_epoch = self.cfg.dataset.update_ordered_indices_seed
        try:
            return upstream(self, *args, **kwargs)
        finally:
            seeded_by_epoch = False

    @wrapping(FairseqTask, "get_batch_iterator")
    def get_batch_iterator(upstream: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
        given = signature.bind(self, *args, **kwargs)
        given.apply_defaults()
        options = given.arguments
        fresh = options["disable_iterator_cache"] or options["update_epoch_batch_itr"]
        if fresh or options["epoch"] <= 1 or not self.can_reuse_epoch_itr(options["dataset"]):
            return upstream(*given.args, **given.kwargs)
        epoch, options["epoch"] = options["epoch"], 1
        if seeded_by_epoch:
            options["seed"] -= epoch - 1
        cached = options["dataset"] in self.dataset_to_epoch_iter
        iterator = upstream(*given.args, **given.kwargs)
        if not cached:
            options["dataset"].set_epoch(epoch)
            iterator.epoch = epoch
        return iterator

    return True


class _NumPy1(types.ModuleType):
    """NumPy with the names that version 2 removed and fairseq uses. Nothing outside of fairseq sees it."""

    int, float = int, float
    compat = types.SimpleNamespace(long=int)

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    @staticmethod
    def percentile(*args: Any, interpolation: str = "linear", **kwargs: Any) -> Any:
        return np.percentile(*args, method=interpolation, **kwargs)  # type: ignore[call-overload]


def restore_numpy_names() -> bool:
    """Let the modules of fairseq that need them find ``np.int``, ``np.float``, ``np.compat`` and ``interpolation=``."""
    for name in ("data.data_utils", "data.token_block_dataset", "data.language_pair_dataset"):
        importlib.import_module(f"fairseq.{name}").np = _NumPy1("numpy")  # type: ignore[attr-defined]
    importlib.import_module("fairseq.modules.dynamic_crf_layer").np = _NumPy1("numpy")  # type: ignore[attr-defined]
    return True


def read_cached_data() -> bool:
    """Let ``--dataset-impl cached`` read samples that were not read ahead, such as validation's first batch."""
    from fairseq.data.indexed_dataset import IndexedCachedDataset, IndexedDataset

    @wrapping(IndexedCachedDataset, "__getitem__")
    def getitem(upstream: Any, self: Any, index: int) -> Any:
        return (upstream if index in self.cache_index else IndexedDataset.__getitem__)(self, index)

    return True


def read_huffman_data() -> bool:
    """Put back ``bitarray.util.rindex``, which bitarray 3 dropped."""
    from bitarray import util

    if hasattr(util, "rindex"):
        return False
    util.rindex = lambda bits, value=1: bits.index(value, right=True)  # type: ignore[attr-defined]
    return True


def keep_overwrite_flags() -> bool:
    """Write ``#fairseq:overwrite`` back beside a word that a dictionary holds twice, so that it can be read again."""
    from fairseq.data import Dictionary

    @wrapping(Dictionary, "_save")
    def save_with_flags(upstream: Any, self: Any, file: Any, entries: Iterable[tuple[str, Any]]) -> None:
        def flagged() -> Iterator[tuple[str, Any]]:
            seen = set(self.symbols[: self.nspecial])
            for word, count in entries:
                yield word, f"{count} #fairseq:overwrite" if word in seen else count
                seen.add(word)

        # Given a path, the method calls itself with the open file.
        upstream(self, file, entries if isinstance(file, str) else flagged())

    return True


def configure_plain_encoders() -> bool:
    """Give ``--bpe characters`` and ``--bpe bytes``, which have no options, the empty configuration hydra asks for."""
    from fairseq.registry import REGISTRIES
    from hydra.core.config_store import ConfigStore

    for name in REGISTRIES["bpe"]["registry"].keys() - REGISTRIES["bpe"]["dataclass_registry"].keys():
        ConfigStore.instance().store(group="bpe", name=name, node={"_name": name}, provider="fairseq")
    return True


def restore_mbart_task() -> bool:
    """Give ``translation_from_pretrained_bart`` its options as ``args``, which its parent class renamed to ``cfg``."""
    from fairseq.tasks.translation_from_pretrained_bart import TranslationFromPretrainedBARTTask

    TranslationFromPretrainedBARTTask.args = property(lambda self: self.cfg)
    return True
