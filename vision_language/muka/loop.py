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

from fairseq_ext.errors import OptionError
from fairseq_ext.files import load_safely, save_atomically
from vision_language.checkpoint import Checkpoint
from vision_language.muka.objectives import Objective
from vision_language.muka.options import TrainingOptions
from vision_language.muka.tokens import Tokens

__all__ = ["fit"]

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


def _seed_of(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


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
    objective.to(accelerator.device)
    per_epoch = math.ceil(len(tokens) / options.batch_size)
    total = per_epoch * options.epochs
    groups = parameter_groups(objective, options, added_lr)
    # Seven times as fast as the default on a CPU, where a small model's step is half of the time of a small batch.
    fused = accelerator.device.type in ("cpu", "cuda")
    optimizer = accelerator.prepare_optimizer(torch.optim.AdamW(groups, lr=options.lr, fused=fused))
    schedule = get_linear_schedule_with_warmup(optimizer.optimizer, math.ceil(options.warmup * total), total)
    # losses: means since the last validation, and of how many steps
    progress: dict[str, Any] = {
        "step": 0,
        "seconds": 0.0,
        "best": math.inf,
        "best_step": 0,
        "losses": [],
        "history": [],
    }
    parts = {"objective": objective, "optimizer": optimizer, "schedule": schedule, "scaler": accelerator.scaler}
    checkpoint, best = Checkpoint(folder / "checkpoint.pt", settings, progress, **parts), folder / "best.pt"
    checkpoint.restore()
    parallel = accelerator.prepare_model(objective)
    rank, world = accelerator.process_index, accelerator.num_processes

    def step_on(rows: np.ndarray) -> Tensor:
        torch.manual_seed(_seed_of(options.seed, progress["step"], rank))
        # A process without rows still takes part in the exchange of gradients, with zeros.
        share = rows[rank::world] if len(rows[rank::world]) else rows[:1]
        known = [signal[torch.from_numpy(share)].to(accelerator.device) for signal in signals]
        loss = parallel(tokens.batch(share, accelerator.device), known) * (len(rows[rank::world]) / len(rows))
        optimizer.zero_grad()
        accelerator.backward(loss * world)  # gradients are averaged over the processes
        accelerator.clip_grad_norm_(objective.parameters(), options.max_grad_norm)
        optimizer.step()
        if not accelerator.optimizer_step_was_skipped:
            schedule.step()
        return loss.detach()

    def mean_loss(losses: list[Tensor]) -> float:
        mean = float(accelerator.reduce(torch.stack(losses).mean(), "sum"))
        if not math.isfinite(mean):
            raise OptionError(f"--lr {options.lr}: the loss is {mean} at step {progress['step']}; lower it")
        progress["losses"].append((mean, len(losses)))
        return mean

    sign = 1 if select == "loss" else -1
    batches: list[np.ndarray] = []
    recent: list[Tensor] = []
    hidden = None if accelerator.is_main_process else True
    with (
        tqdm(total=total, initial=progress["step"], unit="step", desc=folder.name, disable=hidden) as bar,
        _board(folder, progress["step"], accelerator) as write,
    ):
        while progress["step"] < total:
            epoch, position = divmod(progress["step"], per_epoch)
            if not batches or position == 0:
                batches = tokens.shuffled(options.batch_size, options.seed, epoch)
            start = time.perf_counter()
            objective.train()
            recent.append(step_on(batches[position]))
            progress["step"] = step = progress["step"] + 1
            progress["seconds"] += time.perf_counter() - start
            bar.update()

            ends = position + 1 == per_epoch
            validates = step == total or (step % options.eval_every == 0 if options.eval_every else ends)
            saves = validates or (options.save_every > 0 and step % options.save_every == 0)
            if saves or len(recent) == LOG_EVERY:
                loss, recent = mean_loss(recent), []
                write(step, {"train/loss": loss, "train/lr": schedule.get_last_lr()[0]})
                bar.set_postfix(loss=f"{loss:.4f}")
            if validates:
                entry = validate()
                means, counts = zip(*progress["losses"], strict=True)
                train_loss = float(np.average(means, weights=counts))
                progress["history"].append({"step": step, "train_loss": train_loss, **entry})
                progress["losses"] = []
                write(step, {f"valid/{name}": value for name, value in entry.items()})
                if sign * entry[select] < progress["best"]:
                    progress |= {"best": sign * entry[select], "best_step": step}
                    if accelerator.is_main_process:
                        save_atomically(objective.model.state_dict(), best)
            if saves and accelerator.is_main_process:
                checkpoint.save()

    accelerator.wait_for_everyone()
    objective.model.load_state_dict(load_safely(best))
    chosen = next(entry for entry in progress["history"] if entry["step"] == progress["best_step"])
    return {
        "best_step": progress["best_step"],
        **{f"valid_{name}": value for name, value in chosen.items() if name not in ("step", "train_loss")},
        "steps": total,
        "seconds_per_epoch": progress["seconds"] / options.epochs,
        "history": progress["history"],
    }
