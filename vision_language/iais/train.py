"""Training with several seeds: validation picks the best step, and a killed training is resumed bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from fairseq_ext.training.accelerator import make_accelerator
from fairseq_ext.training.board import log_test
from fairseq_ext.training.checkpoint import CHECKPOINT
from fairseq_ext.training.errors import OptionError
from fairseq_ext.training.files import output_folder
from fairseq_ext.training.flags import Runs
from fairseq_ext.training.loop import Training
from fairseq_ext.training.pretrained import fingerprint, save_folder
from fairseq_ext.training.runs import Experiment
from fairseq_ext.training.settings import Settings
from vision_language.iais.data import RegionData, read_splits
from vision_language.iais.encoder import load
from vision_language.iais.evaluate import first_images, metrics
from vision_language.iais.objective import TrainingStep, make_sampler
from vision_language.iais.options import SCRATCH, Options

__all__ = ["read_data", "run", "settings_of", "train"]


def read_data(options: Options) -> dict[str, RegionData]:
    """The splits of ``options.data``, with at most ``options.max_regions`` regions per image."""
    return read_splits(options.data, max_regions=options.max_regions)


def settings_of(options: Options, data: Mapping[str, RegionData], accelerator: Accelerator | None = None) -> Settings:
    """The options, and digests of the data and models that they name, so that runs on different data are never mixed.

    With ``--iais-scale sum`` they hold the number of processes too, as the loss sums over each process's share.

    Args:
        options: everything that a run depends on beside its seed.
        data: the three splits, whose features are all read, each by one of the processes.
        accelerator: the processes. Default: one.
    """
    processes = accelerator.num_processes if accelerator else 1
    inputs = {split: part.digest(accelerator) for split, part in data.items()}
    if options.encoder != SCRATCH and Path(options.encoder).is_dir():
        inputs["encoder"] = fingerprint(options.encoder)
    if Path(options.uniter).is_file():
        inputs["uniter"] = fingerprint(options.uniter)
    if options.iais_scale == "sum" and processes > 1:
        inputs["processes"] = str(processes)
    return Settings.of(options, inputs=inputs)


def train(
    options: Options,
    data: Mapping[str, RegionData],
    seed: int,
    folder: str | Path,
    accelerator: Accelerator | None = None,
    settings: Settings | None = None,
) -> dict[str, Any]:
    """Train with one seed.

    ``folder`` gets ``initial``, the model before the first step; ``model``, the best in validation (both as
    :func:`~vision_language.iais.encoder.load` reads them); ``checkpoint.pt``; and ``tensorboard``. From a
    ``checkpoint.pt`` that is there already the training goes on, and it ends as an uninterrupted one, bit for bit on a
    CPU. Order, candidates and dropout depend on seed and step, so no state of a generator is kept; only dropout also
    depends on the number of processes. With ``--iais-scale sum`` the alignment loss does too, and a checkpoint with
    another number of processes is then refused.

    Args:
        options: everything that a run depends on beside its seed.
        data: the three splits.
        seed: seed of the run.
        folder: gets the files.
        accelerator: devices, processes and precision. Default: one with ``options.mixed_precision``.
        settings: the settings of ``options`` and ``data``. Default: made anew, for which all features are read.

    Returns:
        Recalls and ISD of the kept model on the test split, its step and validation metric, seconds per step, and the
        history.

    Raises:
        OptionError: the checkpoint in ``folder`` was trained with other options, data or encoder; the options do not
            fit the data; or the loss is not finite.
        DataError: a feature in any split is not a finite number.
        CheckpointError: a damaged checkpoint.
    """
    accelerator, folder = accelerator or make_accelerator(options.mixed_precision), output_folder(folder)
    step = TrainingStep.of(options, data["train"], seed, accelerator)
    model, collator = step.model, step.batches.collator
    valid, test = (first_images(data[split], getattr(options, f"{split}_images")) for split in ("valid", "test"))

    training = Training(
        options.num_steps,
        select=options.select,
        validate_every=options.validate_every,
        save_every=options.save_every,
        seed=seed,
        folder=folder,
        settings=settings or settings_of(options, data, accelerator),
        parts={"model": model, "optimizer": step.optimizer, "scaler": accelerator.scaler},
        best=folder / "model",
        accelerator=accelerator,
        name=f"seed {seed}",
        advice="lower --lr or --iais-weight",
    )
    if training.main and not (folder / CHECKPOINT).exists():
        save_folder(model, collator.tokenizer, folder / "initial")
    for number in training:
        training.log(**step(number - 1))
        if training.validates:
            better = training.improved(metrics(model, valid, collator, options.eval_batch_size, accelerator))
            if better and training.main:
                save_folder(model, collator.tokenizer, folder / "model")
    best, _ = load(folder / "model", accelerator.device)
    tested = metrics(best, test, collator, options.eval_batch_size, accelerator)
    log_test(tested, training.best_step)
    return {
        **tested,
        "processes": accelerator.num_processes,
        **training.record(),
    }


def run(options: Options, runs: Runs, accelerator: Accelerator | None = None) -> Experiment:
    """Train with every seed of ``runs`` that its folder does not hold yet."""
    accelerator = accelerator or make_accelerator(options.mixed_precision, runs.device)
    if options.batch_size % accelerator.num_processes:
        raise OptionError(
            f"--batch-size must be a multiple of the {accelerator.num_processes} processes, got {options.batch_size}"
        )
    data = read_data(options)
    make_sampler(options, data["train"], runs.seed)  # bad options must not leave a results.json
    settings = settings_of(options, data, accelerator)
    experiment = Experiment(runs.out, settings, ("transformers", "accelerate"), device=accelerator.device)
    return experiment.complete(
        {
            name: partial(train, options, data, seed, Path(runs.out) / name, accelerator, settings)
            for name, seed in runs.seeds.items()
        },
        accelerator,
    )
