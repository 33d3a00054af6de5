"""The training loop of teachers and students: one or more processes, checkpoints, the best weights by validation."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from tensorboardX import SummaryWriter
from torch import Tensor
from tqdm import tqdm
from transformers import get_linear_schedule_with_warmup

from fairseq_ext.training.accelerator import adamw
from fairseq_ext.training.checkpoint import Checkpoint
from fairseq_ext.training.errors import CheckpointError, OptionError
from fairseq_ext.training.files import load_safely, save_atomically
from fairseq_ext.training.loop import seed_of
from vision_language.muka.objectives import Objective
from vision_language.muka.options import TrainingOptions
from vision_language.muka.tokens import Tokens

__all__ = ["Trainer", "fit"]

LOG_EVERY = 20


def parameter_groups(objective: Objective, options: TrainingOptions, added_lr: float) -> list[dict[str, Any]]:
    """The model's parameters, those of norms and biases without decay, and the layers that a method adds."""
    own = [parameter for parameter in objective.model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in own if p.dim() > 1], "weight_decay": options.weight_decay},
        {"params": [p for p in own if p.dim() <= 1], "weight_decay": 0.0},
        {"params": objective.added_parameters(), "weight_decay": 0.0, "lr": added_lr},
    ]
    return [group for group in groups if group["params"]]


@contextlib.contextmanager
def _board(folder: Path, step: int, accelerator: Accelerator) -> Iterator[Callable[[int, Mapping[str, float]], None]]:
    """Writes numbers for tensorboard, in the main process only."""
    if not accelerator.is_main_process:
        yield lambda step, values: None
        return
    with SummaryWriter(str(folder / "tensorboard"), purge_step=step) as writer:

        def write(step: int, values: Mapping[str, float]) -> None:
            for name, value in values.items():
                writer.add_scalar(name, value, step)

        yield write


class Trainer:
    """One training with its optimiser and progress; see :func:`fit`."""

    def __init__(
        self,
        objective: Objective,
        tokens: Tokens,
        signals: Sequence[Tensor],
        validation: Callable[[], dict[str, float]],
        options: TrainingOptions,
        accelerator: Accelerator,
        folder: Path,
        *,
        select: str,
        added_lr: float,
        settings: Mapping[str, Any],
    ) -> None:
        self.objective, self.tokens, self.signals, self.validation = objective, tokens, signals, validation
        self.options, self.accelerator, self.folder, self.select = options, accelerator, folder, select
        self.best = folder / "best.pt"
        self.per_epoch = math.ceil(len(tokens) / options.batch_size)
        self.total = self.per_epoch * options.epochs

        objective.to(accelerator.device)
        groups = parameter_groups(objective, options, added_lr)
        self.optimizer = accelerator.prepare_optimizer(adamw(groups, accelerator, lr=options.lr))
        warmup = math.ceil(options.warmup * self.total)
        self.schedule = get_linear_schedule_with_warmup(self.optimizer.optimizer, warmup, self.total)
        # losses: means since the last validation, and of how many steps
        self.progress: dict[str, Any] = {"step": 0, "seconds": 0.0, "best": math.inf, "best_step": 0}
        self.progress |= {"losses": [], "history": []}
        self.recent: list[Tensor] = []
        parts = {"objective": objective, "optimizer": self.optimizer, "schedule": self.schedule}
        path = folder / "checkpoint.pt"
        self.checkpoint = Checkpoint(path, settings, self.progress, **parts, scaler=accelerator.scaler)
        if self.checkpoint.restore() and self.progress["best_step"]:
            self.best_weights()  # not found missing at the end only
        self.parallel = accelerator.prepare_model(objective)

    def train(self) -> None:
        """From where the progress stands to the last step."""
        options, progress, main = self.options, self.progress, self.accelerator.is_main_process
        batches: list[np.ndarray] = []
        hidden = None if main else True
        with (
            tqdm(total=self.total, initial=progress["step"], unit="step", desc=self.folder.name, disable=hidden) as bar,
            _board(self.folder, progress["step"], self.accelerator) as write,
        ):
            while progress["step"] < self.total:
                epoch, position = divmod(progress["step"], self.per_epoch)
                if not batches or position == 0:
                    batches = self.tokens.shuffled(options.batch_size, options.seed, epoch)
                self.optimise(batches[position])
                bar.update()
                step = progress["step"]
                validates = step == self.total or step % (options.eval_every or self.per_epoch) == 0
                saves = validates or (options.save_every > 0 and step % options.save_every == 0)
                if saves or len(self.recent) == LOG_EVERY:
                    loss = self.mean_loss()
                    write(step, {"train/loss": loss, "train/lr": self.schedule.get_last_lr()[0]})
                    bar.set_postfix(loss=f"{loss:.4f}")
                if validates:
                    write(step, {f"valid/{name}": value for name, value in self.validate().items()})
                if saves and main:
                    self.checkpoint.save()
        self.accelerator.wait_for_everyone()

    def optimise(self, rows: np.ndarray) -> None:
        """One optimiser step on the texts ``rows``, of which this process takes its share."""
        start, accelerator, progress = time.perf_counter(), self.accelerator, self.progress
        rank, world = accelerator.process_index, accelerator.num_processes
        torch.manual_seed(seed_of(self.options.seed, progress["step"], rank))
        self.objective.train()
        # A process without rows still takes part in the exchange of gradients, with zeros.
        share = rows[rank::world] if len(rows[rank::world]) else rows[:1]
        known = [signal[torch.from_numpy(share)].to(accelerator.device) for signal in self.signals]
        loss = self.parallel(self.tokens.batch(share, accelerator.device), known)
        loss = loss * (len(rows[rank::world]) / len(rows))
        self.optimizer.zero_grad()
        accelerator.backward(loss * world)  # gradients are averaged over the processes
        accelerator.clip_grad_norm_(self.objective.parameters(), self.options.max_grad_norm)
        self.optimizer.step()
        if not accelerator.optimizer_step_was_skipped:
            self.schedule.step()
        self.recent.append(loss.detach())
        progress["step"] += 1
        progress["seconds"] += time.perf_counter() - start

    def mean_loss(self) -> float:
        """The mean over the steps since the last call, and over all processes; kept for the next validation."""
        mean = float(self.accelerator.reduce(torch.stack(self.recent).mean(), "sum"))
        if not math.isfinite(mean):
            raise OptionError(f"--lr {self.options.lr}: the loss is {mean} at step {self.progress['step']}; lower it")
        self.progress["losses"].append((mean, len(self.recent)))
        self.recent = []
        return mean

    def validate(self) -> dict[str, float]:
        """The figures of the validation texts; the weights are kept where they are the best so far."""
        progress, entry = self.progress, self.validation()
        means, counts = zip(*progress["losses"], strict=True)
        train_loss = float(np.average(means, weights=counts))
        progress["history"].append({"step": progress["step"], "train_loss": train_loss, **entry})
        progress["losses"] = []
        value = entry[self.select] if self.select == "loss" else -entry[self.select]
        if value < progress["best"]:
            progress |= {"best": value, "best_step": progress["step"]}
            if self.accelerator.is_main_process:
                save_atomically(self.objective.model.state_dict(), self.best)
        return entry

    def best_weights(self) -> dict[str, Tensor]:
        """The weights of the best validation so far.

        Raises:
            CheckpointError: their file is missing, damaged, or of another model.
        """
        found, own = load_safely(self.best), self.objective.model.state_dict()
        if not isinstance(found, dict) or {name: value.shape for name, value in own.items()} != {
            name: getattr(value, "shape", None) for name, value in found.items()
        }:
            raise CheckpointError(f"{self.best}: not the weights of this model; delete it and {self.checkpoint.path}")
        return found

    def record(self) -> dict[str, Any]:
        """What :func:`fit` returns; the best weights are put into the model."""
        progress = self.progress
        self.objective.model.load_state_dict(self.best_weights())
        chosen = next(entry for entry in progress["history"] if entry["step"] == progress["best_step"])
        return {
            "best_step": progress["best_step"],
            **{f"valid_{name}": value for name, value in chosen.items() if name not in ("step", "train_loss")},
            "steps": self.total,
            "seconds_per_epoch": progress["seconds"] / self.options.epochs,
            "history": progress["history"],
        }


def fit(
    objective: Objective,
    tokens: Tokens,
    signals: Sequence[Tensor],
    validate: Callable[[], dict[str, float]],
    options: TrainingOptions,
    accelerator: Accelerator,
    folder: Path,
    *,
    select: str = "loss",
    added_lr: float = 0.0,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Minimise ``objective`` with AdamW, and leave the weights of the best validation in its model.

    Order and dropout come from the seed and the number of the step alone. A ``checkpoint.pt`` in ``folder`` is gone on
    from, and the end is that of an uninterrupted run, bit for bit on a CPU. Each process takes its share of a batch;
    gradients are those of the whole batch, but for DFA's and CFL's terms, which are means over each share.

    Args:
        objective: the model with its loss.
        tokens: n training texts.
        signals: what the loss needs for each of them, tensors of n rows.
        validate: gives at least ``loss``, and ``accuracy`` where there are labels.
        folder: of ``checkpoint.pt`` and ``best.pt``.
        select: ``"loss"`` (lower is better) or ``"accuracy"`` picks the weights; the first of equals.
        added_lr: step size of the parameters beside the model's.
        settings: a checkpoint of other settings is refused.

    Returns:
        ``best_step``, ``valid_loss`` and ``valid_accuracy`` there, ``steps``, ``seconds_per_epoch`` without validation,
        and the ``history``.

    Raises:
        OptionError: a checkpoint of other settings; a loss that is not finite.
        CheckpointError: a damaged checkpoint.
    """
    choice: dict[str, Any] = {"select": select, "added_lr": added_lr, "settings": settings}
    trainer = Trainer(objective, tokens, signals, validate, options, accelerator, folder, **choice)
    trainer.train()
    return trainer.record()
