"""Training with several seeds, the best step by validation, resumed bit for bit after a kill."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from operator import add
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from tensorboardX import SummaryWriter
from torch import nn
from tqdm import tqdm

from fairseq_ext.training.accelerator import adamw, make_accelerator
from fairseq_ext.training.checkpoint import Checkpoint
from fairseq_ext.training.errors import InputError, OptionError
from fairseq_ext.training.files import output_folder, write_json
from fairseq_ext.training.loop import seed_of
from fairseq_ext.training.runs import Experiment
from fairseq_ext.training.settings import Settings
from vision_language.iais.data import Collator, RegionData, read_splits
from vision_language.iais.encoder import build, load
from vision_language.iais.evaluate import first_images, metrics
from vision_language.iais.negatives import AnchorSampler, PairBatches
from vision_language.iais.objective import TrainingStep
from vision_language.iais.options import SCRATCH, Options
from vision_language.pretrained import fingerprint, save_folder

__all__ = ["Trainer", "learning_rate", "parameter_groups", "read_data", "run", "train"]

LEAST_RATE = 1e-8
UNDECAYED = ("bias", "LayerNorm.weight")


def learning_rate(step: int, peak: float, warmup_steps: int, num_steps: int) -> float:
    """Step size of optimiser step 1, 2, ...: up to ``peak`` linearly, then down to 1e-8, as UNITER."""
    if step < warmup_steps:
        rate = peak * step / warmup_steps
    else:
        rate = peak * (num_steps - step) / max(num_steps - warmup_steps, 1)
    return rate if rate > 0 else LEAST_RATE


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Groups for AdamW: no decay for names with ``bias`` or ``LayerNorm.weight``, as UNITER.

    So the weights of ``img_layer_norm`` and ``pos_layer_norm`` are decayed.
    """
    groups: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
    for name, parameter in model.named_parameters():
        groups[any(part in name for part in UNDECAYED)].append(parameter)
    return [{"params": groups[0], "weight_decay": weight_decay}, {"params": groups[1], "weight_decay": 0.0}]


class Trainer:
    """One seed's model, optimiser and progress; see :func:`train`."""

    def __init__(
        self,
        options: Options,
        data: Mapping[str, RegionData],
        seed: int,
        folder: Path,
        accelerator: Accelerator,
        settings: Settings | None = None,
    ) -> None:
        self.options, self.seed, self.folder, self.accelerator = options, seed, folder, accelerator
        torch.manual_seed(seed)
        self.model, self.tokenizer = build(options, data["train"])
        self.model.set_attn_implementation(options.attn_implementation)
        if options.gradient_checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        self.model.to(accelerator.device)
        groups = parameter_groups(self.model, options.weight_decay)
        optimizer = adamw(groups, accelerator, lr=options.lr, betas=(0.9, 0.98), eps=1e-6)
        self.parallel, self.optimizer = accelerator.prepare(self.model, optimizer)
        # losses: sums since the last validation, and of how many steps
        self.progress: dict[str, Any] = {"step": 0, "seconds": 0.0, "best": -math.inf, "best_step": 0}
        self.progress |= {"losses": [0.0, 0.0, 0], "history": []}
        parts = {"model": self.model, "optimizer": self.optimizer, "scaler": accelerator.scaler}
        settings = settings_of(options, data) if settings is None else settings
        self.checkpoint = Checkpoint(folder / "checkpoint.pt", settings, self.progress, **parts)
        restored = self.checkpoint.restore()
        accelerator.wait_for_everyone()  # nobody replaces the checkpoint before all have read it

        self.collator = Collator(self.tokenizer, options.max_text_length)
        batches = PairBatches(data["train"], self.collator, accelerator.device)
        sampler = make_sampler(options, data["train"], seed)
        self.gradient = TrainingStep(self.parallel, batches, sampler, options, accelerator)
        self.valid = first_images(data["valid"], options.valid_images)
        if accelerator.is_main_process and not restored:  # what cannot be saved must not be trained first
            save_folder(self.model, self.tokenizer, folder / "initial")
            self.checkpoint.save()

    def train(self) -> None:
        """From where the progress stands to the last step."""
        options, progress, main = self.options, self.progress, self.accelerator.is_main_process
        begin, end = progress["step"], options.num_steps
        hidden = None if main else True
        bar = tqdm(range(begin, end), f"seed {self.seed}", initial=begin, total=end, unit="step", disable=hidden)
        writer = SummaryWriter(str(self.folder / "tensorboard"), purge_step=begin + 1) if main else None
        for step in bar:
            values = self.optimise(step)
            progress["step"] = step + 1
            validated = (step + 1) % options.valid_steps == 0 or step + 1 == end
            if validated:
                values |= self.validate()
                bar.set_postfix(loss=f"{values['rank_loss']:.3f}", **{options.select: f"{values[options.select]:.3f}"})
            if writer:
                for name, value in values.items():
                    writer.add_scalar(name, value, step + 1)
            if main and (validated or (step + 1) % options.save_steps == 0):
                self.checkpoint.save()
        if writer:
            writer.close()

    def optimise(self, step: int) -> dict[str, float]:
        """One optimiser step."""
        start = time.perf_counter()
        options, accelerator = self.options, self.accelerator
        torch.manual_seed(seed_of(self.seed, step, accelerator.process_index))
        self.parallel.train()
        rank_loss, iais = self.gradient.accumulate(step)
        if not math.isfinite(rank_loss + iais):
            raise InputError(f"step {step + 1}: the loss is {rank_loss + iais}; lower --lr or --iais-weight")
        if options.clip_norm:
            accelerator.clip_grad_norm_(self.parallel.parameters(), options.clip_norm)
        rate = learning_rate(step + 1, options.lr, options.warmup_steps, options.num_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.progress["losses"] = [*map(add, self.progress["losses"], (rank_loss, iais, 1))]
        self.progress["seconds"] += time.perf_counter() - start
        return {"rank_loss": rank_loss, "iais_loss": iais, "iais_weight": self.gradient.iais_weight(step), "lr": rate}

    def validate(self) -> dict[str, float]:
        """Metrics of the validation images; the model is kept where it is the best so far."""
        options, progress = self.options, self.progress
        found = metrics(self.model, self.valid, self.collator, options.score_batch, self.accelerator)
        if found[options.select] > progress["best"]:
            progress |= {"best": found[options.select], "best_step": progress["step"]}
            if self.accelerator.is_main_process:
                save_folder(self.model, self.tokenizer, self.folder / "model")
        rank_loss, iais, steps = progress["losses"]
        entry = {"step": progress["step"], "rank_loss": rank_loss / steps, "iais_loss": iais / steps, **found}
        progress["history"].append(entry)
        progress["losses"] = [0.0, 0.0, 0]
        if self.accelerator.is_main_process:
            write_json(self.folder / "history.json", progress["history"])
        return found


def train(
    options: Options,
    data: Mapping[str, RegionData],
    seed: int,
    folder: str | Path,
    accelerator: Accelerator | None = None,
    settings: Settings | None = None,
) -> dict[str, Any]:
    """Train with one seed.

    ``folder`` gets ``initial`` and ``model`` (as :func:`~vision_language.iais.encoder.load` reads them: before the
    first step, and best in validation), ``checkpoint.pt``, ``history.json`` and ``tensorboard``. A ``checkpoint.pt``
    that is there already is gone on from, and the end is that of an uninterrupted run, bit for bit on a CPU. Order,
    candidates and dropout come from (seed, step), so no generator's state is kept; of these only dropout depends on
    the number of processes.

    Args:
        data: the three splits.
        accelerator: devices, processes and precision. Default: one of ``options.mixed_precision``.
        settings: those of ``options`` and ``data``. Default: found anew, for which all features are read.

    Returns:
        Recalls and ISD of the kept model on the test split, its step and validation metric, seconds a step, history.

    Raises:
        OptionError: the checkpoint in ``folder`` was trained with other options, data or encoder; options that the data
            refuses.
        DataError: a feature that is not a finite number, in any split.
        CheckpointError: a damaged checkpoint.
        InputError: the loss is not finite.
    """
    accelerator = accelerator or make_accelerator(options.mixed_precision)
    folder = output_folder(folder)
    trainer = Trainer(options, data, seed, folder, accelerator, settings)
    trainer.train()
    accelerator.wait_for_everyone()  # the main process has written the model
    model, _ = load(folder / "model", accelerator.device)
    test = first_images(data["test"], options.test_images)
    progress = trainer.progress
    return {
        **metrics(model, test, trainer.collator, options.score_batch, accelerator),
        f"valid_{options.select}": progress["best"],
        "best_step": progress["best_step"],
        "processes": accelerator.num_processes,
        "seconds_per_step": progress["seconds"] / options.num_steps,
        "history": progress["history"],
    }


def settings_of(options: Options, data: Mapping[str, RegionData]) -> Settings:
    """The options and digests of what they name: a run is not mixed with one of other captions or another encoder."""
    inputs = {split: part.digest() for split, part in data.items()}
    if options.encoder != SCRATCH and Path(options.encoder).is_dir():
        inputs["encoder"] = fingerprint(options.encoder)
    if Path(options.uniter).is_file():
        inputs["uniter"] = fingerprint(options.uniter)
    return Settings.of(options, inputs=inputs)


def make_sampler(options: Options, data: RegionData, seed: int) -> AnchorSampler:
    """The sampler of ``options``, which checks them against the size of the training split."""
    return AnchorSampler(data.text_to_image.numpy(), options.batch_size, options.negatives, options.negative_size, seed)


def read_data(options: Options) -> dict[str, RegionData]:
    """The splits of ``options``, cut as it says."""
    return read_splits(options.data, max_regions=options.max_regions)


def run(
    options: Options, out: str | Path, seed: int = 1, runs: int = 1, accelerator: Accelerator | None = None
) -> Experiment:
    """Train with the seeds ``seed``, ``seed + 1``, ...; finished ones in ``out`` are not run again."""
    accelerator = accelerator or make_accelerator(options.mixed_precision)
    if options.batch_size % accelerator.num_processes:
        raise OptionError(
            f"--batch-size must be a multiple of the {accelerator.num_processes} processes, got {options.batch_size}"
        )
    data = read_data(options)
    make_sampler(options, data["train"], seed)  # bad options must not leave a results.json
    settings = settings_of(options, data)
    experiment = Experiment(out, settings, ("transformers", "accelerate"))
    accelerator.wait_for_everyone()  # all have read which runs are finished
    for number in range(seed, seed + runs):
        name = f"seed{number}"
        if name not in experiment.runs:
            found = train(options, data, number, Path(out) / name, accelerator, settings)
            accelerator.free_memory()
            if accelerator.is_main_process:
                experiment.add(name, found)
            else:
                experiment.runs[name] = found
    return experiment
