"""The training loop: AdamW on batches that the processes share, and the weights of the best validation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import get_linear_schedule_with_warmup

from fairseq_ext.training.accelerator import adamw
from fairseq_ext.training.checkpoint import BestWeights
from fairseq_ext.training.directions import lower_is_better
from fairseq_ext.training.loop import Training
from fairseq_ext.training.settings import Settings
from vision_language.muka.convergence import converged
from vision_language.muka.objectives import Objective
from vision_language.muka.options import TrainingOptions
from vision_language.muka.tokens import Tokens

__all__ = ["fit"]


def fit(
    options: TrainingOptions,
    objective: Objective,
    tokens: Tokens,
    signals: Sequence[Tensor],
    validate: Callable[[], Mapping[str, float]],
    out: Path,
    settings: Settings,
    accelerator: Accelerator,
    select: str = "loss",
    until_converged: bool = False,
) -> dict[str, Any]:
    """Minimise ``objective`` with AdamW, and leave the weights of the best validation in its model.

    Order and dropout come from the seed and the number of the step alone. Each process takes its share of a batch;
    gradients are those of the whole batch, but for DFA's and CFL's terms, which are means over each share.

    Args:
        objective: the model with its loss.
        tokens: n training texts.
        signals: what the loss needs for each of them, tensors of n rows.
        validate: gives at least ``loss``, and ``accuracy`` where there are labels.
        out: of the checkpoint; one that is there is resumed, bit for bit on a CPU.
        settings: a checkpoint of others is refused.
        select: ``"loss"`` (lower is better) or ``"accuracy"`` picks the weights; of equal accuracies the one with the
            lower loss, and of these the first.
        until_converged: end with the first validation at which :func:`~vision_language.muka.convergence.converged`.

    Returns:
        as :meth:`~fairseq_ext.training.loop.Training.record`, with each figure of the best validation and
        ``converged``.

    Raises:
        OptionError: a checkpoint of other settings; a loss that is not finite.
        CheckpointError: a damaged checkpoint.
    """
    per_epoch, total, warmup = options.steps(len(tokens))
    objective.to(accelerator.device)
    groups = objective.parameter_groups(options.weight_decay)
    optimizer = accelerator.prepare_optimizer(adamw(groups, accelerator, lr=options.lr))
    schedule = get_linear_schedule_with_warmup(optimizer.optimizer, warmup, total)
    parallel = accelerator.prepare_model(objective)
    best = BestWeights(objective.model)

    def optimise(rows: np.ndarray) -> Tensor:
        objective.train()
        world, share = accelerator.num_processes, rows[accelerator.process_index :: accelerator.num_processes]
        weight = len(share) * world / len(rows)  # gradients are averaged over the processes
        # A process without rows still takes part in the exchange of gradients, with zeros.
        share = share if len(share) else rows[:1]
        targets = [signal[torch.from_numpy(share)].to(accelerator.device) for signal in signals]
        loss = weight * parallel(tokens.batch(share, accelerator.device), targets)
        optimizer.zero_grad()
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(objective.parameters(), options.clip_norm)
        optimizer.step()
        if not accelerator.optimizer_step_was_skipped:
            schedule.step()
        return loss

    training = Training(
        total,
        select=select,
        lower_is_better=bool(lower_is_better(select)),
        tie="loss",
        validate_every=options.validate_every or per_epoch,
        until=(lambda history: bool(converged(history, warmup))) if until_converged else None,
        save_every=options.save_every,
        seed=options.seed,
        folder=out,
        settings=settings,
        parts={
            "objective": objective,
            "optimizer": optimizer,
            "schedule": schedule,
            "scaler": accelerator.scaler,
            "best": best,
        },
        accelerator=accelerator,
        name=out.name,
        advice=f"lower --lr {options.lr:g}",
    )
    batches: list[np.ndarray] = []
    for step in training:
        epoch, position = divmod(step - 1, per_epoch)
        if not batches or position == 0:
            batches = tokens.shuffled(options.batch_size, options.seed, epoch)
        lr = schedule.get_last_lr()[0]  # of this step; afterwards the schedule is at the next
        training.log(train_loss=optimise(batches[position]), lr=lr)
        if training.validates and training.improved(validate()):
            best.keep()
    best.restore()
    record = training.record()
    chosen = next(entry for entry in record["history"] if entry["step"] == record["best_step"])
    figures = {f"valid_{name}": chosen[name] for name in ("loss", "accuracy") if name in chosen}
    return figures | record | {"converged": converged(record["history"], warmup)}
