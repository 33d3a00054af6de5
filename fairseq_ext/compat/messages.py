"""Messages: bad input ends in one line that names it."""

from __future__ import annotations

import difflib
import functools
import os
from pathlib import Path
from typing import Any

import numpy as np

from ..training.errors import DataError, InputError, OptionError
from ..training.files import load_safely

__all__ = [
    "ask_for_batch_size",
    "end_hydra_in_one_line",
    "name_absent_configurations",
    "name_captioned_images",
    "name_damaged_checkpoints",
    "name_long_sentences",
    "name_single_models",
]


def name_damaged_checkpoints() -> bool:
    """Let the error of a checkpoint that cannot be read name the file, in one line."""
    from fairseq import checkpoint_utils

    load = checkpoint_utils.load_checkpoint_to_cpu

    @functools.wraps(load)
    def named_load(path: str, *args: Any, **kwargs: Any) -> Any:
        try:
            return load(path, *args, **kwargs)
        except Exception:
            if os.path.isfile(path):
                load_safely(path)  # its errors say what is wrong; where it can read the file, fairseq's own stands
            raise

    checkpoint_utils.load_checkpoint_to_cpu = named_load
    return True


def end_hydra_in_one_line() -> bool:
    """Let bad input end a hydra job as it ends every other program: hydra keeps any ``Exception`` for a traceback."""
    from hydra.core import utils

    job: Any = utils.JobReturn
    kept = job.return_value

    def keep(self: Any, value: Any) -> None:
        if isinstance(value, InputError):
            raise SystemExit(value.code) from value
        kept.__set__(self, value)

    job.return_value = kept.setter(keep)
    return True


def name_absent_configurations() -> bool:
    """Refuse a ``--config-name`` without a file: fairseq registers its defaults under whatever name is given."""
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


def name_long_sentences() -> bool:
    """Let the refusal of sentences above the model's positions name both options that go on without them."""
    from fairseq.tasks import FairseqTask

    upstream = FairseqTask.filter_indices_by_size

    @functools.wraps(upstream)
    def filter_indices_by_size(
        self: Any, indices: Any, dataset: Any, max_positions: Any = None, ignore_invalid_inputs: bool = False
    ) -> Any:
        if not ignore_invalid_inputs:
            _, ignored = dataset.filter_indices_by_size(indices, max_positions)
            if len(ignored) > 0:
                size = np.asarray(dataset.size(ignored[0])).tolist()
                raise DataError(
                    f"{len(ignored)} of {len(indices)} sentences are longer than the model reads ({max_positions}): "
                    f"number {ignored[0]} has {size}. Leave them out with --skip-invalid-size-inputs-valid-test, or "
                    "cut the source with --truncate-source"
                )
        return upstream(self, indices, dataset, max_positions, ignore_invalid_inputs)

    FairseqTask.filter_indices_by_size = filter_indices_by_size
    return True


def name_single_models() -> bool:
    """Let tasks for several pairs of languages refuse a model for one by name, whatever its configuration is."""
    from fairseq.models import ARCH_MODEL_REGISTRY, FairseqMultiModel
    from fairseq.tasks.multilingual_translation import MultilingualTranslationTask
    from fairseq.tasks.semisupervised_translation import SemisupervisedTranslationTask

    def checked(upstream: Any, task: str) -> Any:
        @functools.wraps(upstream)
        def build_model(self: Any, args: Any, from_checkpoint: bool = False) -> Any:
            arch = getattr(args, "_name", None) or getattr(args, "arch", None)
            if not issubclass(ARCH_MODEL_REGISTRY.get(arch, FairseqMultiModel), FairseqMultiModel):
                raise OptionError(
                    f"--task {task}: needs a model of several pairs of languages, --arch multilingual_transformer, "
                    f"got {arch}; one model for all pairs goes with --task translation_multi_simple_epoch"
                )
            return upstream(self, args, from_checkpoint)

        return build_model

    tasks: dict[str, Any] = {
        "multilingual_translation": MultilingualTranslationTask,
        "semisupervised_translation": SemisupervisedTranslationTask,
    }
    for name, task in tasks.items():
        task.build_model = checked(task.build_model, name)
    return True


def ask_for_batch_size() -> bool:
    """Let a training or validation without ``--batch-size`` and ``--max-tokens`` ask for one in one line."""
    from fairseq.distributed import utils

    call = utils.call_main

    @functools.wraps(call)
    def call_main(cfg: Any, main: Any, **kwargs: Any) -> Any:
        trains, validates = cfg.common_eval.path is None, "override_args" in kwargs
        if (trains or validates) and cfg.dataset.batch_size is None and cfg.dataset.max_tokens is None:
            raise OptionError("--batch-size or --max-tokens: one of them must say how large a batch is")
        return call(cfg, main, **kwargs)

    utils.call_main = call_main
    return True


def name_captioned_images() -> bool:
    """Let a task for text name the one that a folder of prepared images and captions is for."""
    from fairseq import tasks

    setup = tasks.setup_task

    @functools.wraps(setup)
    def setup_task(cfg: Any, **kwargs: Any) -> Any:
        name = getattr(cfg, "_name", None) or getattr(cfg, "task", None)
        data = str(getattr(cfg, "data", None) or "").partition(os.pathsep)[0]
        if (
            isinstance(name, str)
            and name in tasks.TASK_REGISTRY
            and os.path.isfile(os.path.join(data, "captioning.json"))
        ):
            if tasks.TASK_REGISTRY[name].__module__.startswith("fairseq.tasks."):
                raise OptionError(f"--task {name}: reads no images, and {data} has them; use --task captioning")
        return setup(cfg, **kwargs)

    tasks.setup_task = setup_task
    return True
