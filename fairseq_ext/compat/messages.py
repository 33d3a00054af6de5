"""Messages: bad input ends in one line that names it."""

from __future__ import annotations

import contextlib
import difflib
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np

from fairseq_ext.compat.generation import task_options
from fairseq_ext.compat.wrapping import wrapping
from fairseq_ext.training.errors import CheckpointError, DataError, OptionError
from fairseq_ext.training.files import load_safely

__all__ = [
    "name_absent_configurations",
    "name_absent_models",
    "name_captioned_images",
    "name_damaged_checkpoints",
    "name_damaged_data",
    "name_long_sentences",
    "name_single_models",
]


def name_damaged_checkpoints() -> bool:
    """Let the error of a checkpoint that cannot be read name the file, in one line."""
    from fairseq import checkpoint_utils

    @wrapping(checkpoint_utils, "load_checkpoint_to_cpu")
    def named_load(upstream: Any, path: str, *args: Any, **kwargs: Any) -> Any:
        try:
            return upstream(path, *args, **kwargs)
        except Exception:
            if os.path.isfile(path):
                load_safely(path)  # its errors say what is wrong; if it can read the file, fairseq's error stays
            raise

    return True


def name_damaged_data() -> bool:
    """Let the errors of a dictionary, or of data that ``fairseq-preprocess`` has written, name the file."""
    from fairseq.data import Dictionary, indexed_dataset

    @wrapping(Dictionary, "add_from_file")
    def add_from_file(upstream: Any, self: Any, f: Any) -> None:
        try:
            upstream(self, f)
        except (ValueError, RuntimeError) as error:
            if not isinstance(f, str):  # given a path, the method calls itself with the open file
                raise
            raise DataError(f"{f}: {' '.join(str(error).split())}") from error

    @wrapping(indexed_dataset, "make_dataset")
    def make_dataset(upstream: Any, path: str, impl: str, *args: Any, **kwargs: Any) -> Any:
        try:
            dataset = upstream(path, impl, *args, **kwargs)
        except (AssertionError, ValueError, struct.error) as error:
            raise DataError(f"{path}.idx, {path}.bin: damaged, or not of --dataset-impl {impl}: {error}") from error
        if isinstance(dataset, indexed_dataset.MMapIndexedDataset) and len(dataset):
            index = dataset._index
            needed, size = int(index._pointers[-1]) + int(index.sizes[-1]) * index.dtype().itemsize, 0
            with contextlib.suppress(OSError):
                size = os.path.getsize(indexed_dataset.data_file_path(path))
            if size < needed:
                raise DataError(f"{path}.bin: truncated: has {size} of {needed} bytes")
        return dataset

    return True


def name_absent_configurations() -> bool:
    """Refuse a ``--config-name`` without a file: fairseq would register its defaults under any name."""
    from hydra.core.hydra_config import HydraConfig

    if not HydraConfig.initialized():
        return True
    job, sources = HydraConfig.get().job, HydraConfig.get().runtime.config_sources
    folders = [Path(source.path) for source in sources if source.schema == "file"]
    name = str(job.config_name).removesuffix(".yaml")
    if not any((folder / f"{name}.yaml").is_file() for folder in folders):
        files = [path.relative_to(folder).with_suffix("") for folder in folders for path in folder.rglob("*.yaml")]
        near = difflib.get_close_matches(name, map(str, files), n=1, cutoff=0.3)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise OptionError(f"--config-name: there is no {name}.yaml in {', '.join(map(str, folders))}{hint}")
    return True


def name_absent_models() -> bool:
    """Refuse a model whose architecture is not loaded, by the name that its configuration has."""
    from fairseq import models

    @wrapping(models, "build_model")
    def build_model(upstream: Any, cfg: Any, *args: Any, **kwargs: Any) -> Any:
        name = getattr(cfg, "_name", None) or getattr(cfg, "arch", None)
        if name and name not in models.ARCH_MODEL_REGISTRY and name not in models.MODEL_DATACLASS_REGISTRY:
            raise CheckpointError(
                f"the model is of --arch {name}, which is not loaded: no checkpoint can be read without its "
                "architecture; --user-dir loads the folder that has it"
            )
        return upstream(cfg, *args, **kwargs)

    return True


def name_long_sentences() -> bool:
    """Let the refusal of sentences above the model's positions name the options that leave them out or cut them."""
    from fairseq.tasks import FairseqTask

    @wrapping(FairseqTask, "filter_indices_by_size")
    def filter_indices_by_size(
        upstream: Any,
        self: Any,
        indices: Any,
        dataset: Any,
        max_positions: Any = None,
        ignore_invalid_inputs: bool = False,
    ) -> Any:
        if not ignore_invalid_inputs:
            _, ignored = dataset.filter_indices_by_size(indices, max_positions)
            if len(ignored) > 0:
                size = np.asarray(dataset.size(ignored[0])).tolist()
                way = "Leave them out with --skip-invalid-size-inputs-valid-test"
                if getattr(task_options(self), "truncate_source", None) is False:  # else the source is cut already
                    way += ", or cut the source with --truncate-source"
                raise DataError(
                    f"{len(ignored)} of {len(indices)} sentences are longer than the model reads ({max_positions}): "
                    f"number {ignored[0]} has {size}. {way}"
                )
        return upstream(self, indices, dataset, max_positions, ignore_invalid_inputs)

    return True


def name_single_models() -> bool:
    """Let tasks for several language pairs refuse, by name, a model for one pair, whatever its configuration is."""
    from fairseq.models import ARCH_MODEL_REGISTRY, FairseqMultiModel
    from fairseq.tasks.multilingual_translation import MultilingualTranslationTask
    from fairseq.tasks.semisupervised_translation import SemisupervisedTranslationTask

    def check(task: Any, name: str) -> None:
        @wrapping(task, "build_model")
        def build_model(upstream: Any, self: Any, args: Any, from_checkpoint: bool = False) -> Any:
            arch = getattr(args, "_name", None) or getattr(args, "arch", None)
            if not issubclass(ARCH_MODEL_REGISTRY.get(arch, FairseqMultiModel), FairseqMultiModel):
                raise OptionError(
                    f"--task {name}: needs a model of several pairs of languages, --arch multilingual_transformer, "
                    f"got {arch}; one model for all pairs goes with --task translation_multi_simple_epoch"
                )
            return upstream(self, args, from_checkpoint)

    check(MultilingualTranslationTask, "multilingual_translation")
    check(SemisupervisedTranslationTask, "semisupervised_translation")
    return True


def name_captioned_images() -> bool:
    """Let a task for text name the task that a folder of prepared images and captions is for."""
    from fairseq import tasks

    @wrapping(tasks, "setup_task")
    def setup_task(upstream: Any, cfg: Any, **kwargs: Any) -> Any:
        name = getattr(cfg, "_name", None) or getattr(cfg, "task", None)
        data = str(getattr(cfg, "data", None) or "").partition(os.pathsep)[0]
        if (
            isinstance(name, str)
            and name in tasks.TASK_REGISTRY
            and os.path.isfile(os.path.join(data, "captioning.json"))
        ):
            if tasks.TASK_REGISTRY[name].__module__.startswith("fairseq.tasks."):
                raise OptionError(f"--task {name}: reads no images, and {data} has them; use --task captioning")
        return upstream(cfg, **kwargs)

    return True
