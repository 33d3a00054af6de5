"""Inductive training of PPRGo on local personalised-PageRank rows, with ReNode weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from fairseq_ext.training.accelerator import make_accelerator
from fairseq_ext.training.board import log_test
from fairseq_ext.training.checkpoint import BestWeights
from fairseq_ext.training.files import save_atomically
from fairseq_ext.training.loop import Training, finite
from fairseq_ext.training.modes import evaluating
from fairseq_ext.training.runs import Experiment
from fairseq_ext.training.settings import Settings, digest
from graph.inputs import as_tensor
from graph.metrics import classification_metrics
from graph.remembered import Remembered
from graph.renode.inductive_split import InductiveSplit
from graph.renode.large_graph import LargeGraph
from graph.renode.losses import Loss
from graph.renode.metrics import f1, f1_scores
from graph.renode.npz import MASKS
from graph.renode.options import LargeOptions, LargeRuns
from graph.renode.pprgo import Batch, PPRGo, RowBatches, predict_logits
from graph.renode.recipe import LargeRecipe

__all__ = ["evaluate", "fit", "run"]


def fit(
    model: PPRGo,
    batches: RowBatches,
    loss: Loss,
    valid: RowBatches | None = None,
    recipe: LargeRecipe | None = None,
    seed: int = 0,
    *,
    accelerator: Accelerator | None = None,
    folder: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Minimise Σ_v w_v · loss(z_v, y_v) with Adam, and leave the best epoch's weights in ``model``.

    Order and dropout of an epoch come from (seed, epoch) alone, so a resumed training needs no state of a generator,
    and ends bit for bit where an uninterrupted one ends.

    Args:
        batches: this process's shares of the training rows.
        loss: called with logits, classes and weights; the mean of w · loss. Released: cross-entropy.
        valid: rows whose weighted F1 picks the epoch; without them it is the last one, as released.
        recipe: how to train. Default: as released, but for the validation.
        seed: of order and dropout. Default 0.
        accelerator: devices and processes, in float32. Default: those of ``accelerate launch``.
        folder: of the checkpoint to resume from and to save to. Default: none.
        settings: a checkpoint of other settings is refused.

    Returns:
        ``epochs``, ``seconds_per_epoch`` and ``history``; with ``valid`` also ``valid_f1`` and ``best_epoch``.

    Raises:
        OptionError: a loss that is not finite; a checkpoint of other settings.
        CheckpointError: a damaged checkpoint, or one that cannot be written.
    """
    recipe = recipe or LargeRecipe()
    accelerator = accelerator or make_accelerator()  # sparse products know float32 only
    model.to(accelerator.device)
    optimizer = torch.optim.Adam(model.parameters(), recipe.lr, weight_decay=recipe.weight_decay)
    best, parallel = BestWeights(model), accelerator.prepare_model(model)
    training = Training(
        recipe.epochs,
        unit="epoch",
        select="f1",
        validate_every=recipe.validate_every if valid else 0,
        patience=recipe.patience,
        save_every=recipe.validate_every,
        folder=folder,
        settings=settings,
        parts={"model": model, "optimizer": optimizer, "best": best},
        accelerator=accelerator,
        name=Path(folder).name if folder else "",
        advice=f"lower --lr {recipe.lr}",
    )
    whole, validation = _only_batch(batches), (_only_batch(valid) or valid) if valid else []
    for epoch in training:
        generator = np.random.default_rng([seed, epoch])
        torch.manual_seed(int(generator.integers(2**32)) + accelerator.process_index)
        rows = whole or batches.epoch(generator.permutation(len(batches.y)))
        training.log(loss=_train_epoch(parallel, rows, loss, optimizer, accelerator, recipe.reduction))
        if training.validates and training.improved({"f1": _validate(model, validation, accelerator)}):
            best.keep()
    best.restore()
    return training.record()


def _train_epoch(
    model: nn.Module,
    batches: Iterable[Batch],
    loss: Loss,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
    reduction: str,
) -> Tensor:
    """One pass; the mean of the batches' losses."""
    model.train()
    losses = []
    for batch in batches:
        logits = model(batch.x, batch.ppr)
        # A process without rows still takes part in the exchange of gradients, with zeros.
        share = loss(logits, batch.y, batch.weight) * len(batch.y) if len(batch.y) else logits.sum()
        # Gradients are averaged over the processes, but a batch's loss is the sum of their shares.
        total = share * accelerator.num_processes / (batch.size if reduction == "mean" else 1)
        optimizer.zero_grad()
        accelerator.backward(total)
        optimizer.step()
        losses.append(total.detach())
    return torch.stack(losses).mean()


def _only_batch(batches: RowBatches) -> list[Batch]:
    """The batch that holds all rows, where there is one: building it anew would cost more than its step."""
    return list(batches) if len(batches.y) <= batches.batch_size else []


@torch.no_grad()
def _validate(model: PPRGo, batches: Iterable[Batch], accelerator: Accelerator) -> float:
    """Weighted F1 of the rows of all processes."""
    with evaluating(model):
        results = [torch.stack([batch.y, model(batch.x, batch.ppr).argmax(1)], 1) for batch in batches]
    # The shares of the processes differ in length; -1 fills them up.
    padded = accelerator.pad_across_processes(torch.cat(results), pad_index=-1)
    truth, predicted = accelerator.gather(padded).cpu().numpy().T
    return f1(truth[truth >= 0], predicted[truth >= 0])


def evaluate(
    model: PPRGo, graph: LargeGraph, split: InductiveSplit, options: LargeOptions, device: torch.device
) -> dict[str, Any]:
    """F1 of each part of a split, and the other metrics of its test nodes, by inference over the whole graph.

    Raises:
        OptionError: logits that are not finite.
    """
    logits = predict_logits(
        model,
        graph.x,
        graph.adjacency,
        alpha=options.alpha,
        steps=options.inference_steps,
        normalization=options.normalization,
        device=device,
    )
    finite(torch.from_numpy(logits), f"lower --lr {options.lr}")
    scores: dict[str, Any] = {}
    for part, nodes in split._asdict().items():
        scores |= f1_scores(graph.y[nodes], logits[nodes].argmax(1), "" if part == "test" else f"{part}_")
    return scores | classification_metrics(*(torch.from_numpy(values[split.test]) for values in (logits, graph.y)))


def run(options: LargeOptions, runs: LargeRuns | None = None) -> Experiment:
    """Train on every split from every initialisation that the folder of ``runs`` does not hold yet.

    The folder of a run gets ``model.pt`` (best epoch) and, until it is finished, ``checkpoint.pt`` (last epoch).

    Returns:
        For each run what :func:`evaluate` and :func:`fit` return.

    Raises:
        InputError: options or data that cannot be used, before anything is written.
    """
    runs = runs or LargeRuns()
    accelerator = make_accelerator(device=runs.device)
    graph = options.load_large()
    options = options.with_kind(options.dataset, graph.masks)
    splits = [options.make_split(graph, seed) for seed in range(runs.splits)]
    counts = [np.bincount(graph.y[split.train], minlength=graph.num_classes) for split in splits]
    if all(len(np.unique(count)) == 1 for count in counts):
        options.refuse_weights_of_classes()
    inputs = {"graph": graph.digest}
    if options.split_kind == "public":
        inputs["masks"] = digest(*(as_tensor(graph.masks[name], name) for name in MASKS))
    settings = Settings.of(options, inputs=inputs)

    @Remembered  # one for all runs of a split
    def batches(split: int) -> tuple[RowBatches, RowBatches | None]:
        train = options.make_batches(graph, splits[split].train, accelerator, weighted=True)
        return train, options.make_batches(graph, splits[split].valid, accelerator) if options.patience else None

    def train_run(name: str, split: int, init: int) -> dict[str, Any]:
        train, valid = batches(split)
        torch.manual_seed(init)
        model = options.make_model(graph.x.shape[1], graph.num_classes)
        loss = options.make_loss(torch.from_numpy(counts[split]).to(accelerator.device))
        folder = Path(runs.out, name)
        record = fit(
            model, train, loss, valid, options, init, accelerator=accelerator, folder=folder, settings=settings
        )
        if not accelerator.is_main_process:
            return record
        save_atomically(model.state_dict(), folder / "model.pt")
        metrics = evaluate(model, graph, splits[split], options, accelerator.device)
        tested = {name: value for name, value in metrics.items() if not name.startswith(("train_", "valid_"))}
        log_test(tested, record.get("best_epoch", record["epochs"]))
        return metrics | record

    experiment = Experiment(runs.out, settings, ("scipy", "accelerate"), device=accelerator.device)
    return experiment.complete(
        {name: partial(train_run, name, **seeds) for name, seeds in runs.seeds.items()}, accelerator
    )
