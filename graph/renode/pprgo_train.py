"""Inductive training of PPRGo on local personalised-PageRank rows, with ReNode weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from scipy import sparse
from torch import Tensor
from tqdm import tqdm

from fairseq_ext.losses import reduce_weighted
from fairseq_ext.training.checkpoint import Checkpoint
from fairseq_ext.training.errors import OptionError, choose
from graph.renode.inputs import node_ids
from graph.renode.pprgo import Batch, PPRGo, RowBatches
from graph.renode.pprgo_data import LargeGraph
from graph.renode.totoro import renode_weights, totoro, totoro_from_rows
from graph.renode.train import f1

__all__ = ["REDUCTIONS", "SCORES", "labelled_weights", "train"]

SCORES = ("exact", "push-softmax")
REDUCTIONS = ("sum", "mean")


def labelled_weights(
    graph: LargeGraph,
    nodes: np.ndarray,
    rows: sparse.csr_array,
    *,
    alpha: float = 0.15,
    w_min: float = 0.75,
    w_max: float = 1.25,
    ties: str = "index",
    score: str = "exact",
) -> np.ndarray:
    """ReNode weights of labelled nodes.

    Args:
        nodes: (L,) their ids, in the order of ``rows``, or a mask over all nodes.
        rows: (L, n) their pushed rows, which only ``score="push-softmax"`` looks at.
        alpha: restart probability. Default 0.15, as released.
        w_min, w_max: 0.75 and 1.25, the released defaults for large graphs. Equal bounds weigh all nodes alike.
        ties: how equal scores rank; default ``"index"``, as released. See :func:`~graph.renode.renode_weights`.
        score: ``"exact"``, the default and our choice: :func:`~graph.renode.totoro`, by sparse solves; or
            ``"push-softmax"``: :func:`~graph.renode.totoro_from_rows`, as released.

    Returns:
        (L,) float32.
    """
    choose("--totoro", score, SCORES)
    labels = torch.from_numpy(graph.y)
    ids = node_ids(nodes, len(labels), "nodes")
    if score == "exact":
        scores = totoro(graph.edge_index, labels, ids, alpha=alpha)
    else:
        scores = totoro_from_rows(rows, labels[ids])
    return renode_weights(scores, w_min, w_max, ties).float().numpy()


def weighted_cross_entropy(logits: Tensor, y: Tensor, weight: Tensor | None) -> Tensor:
    """The mean of weight times cross-entropy."""
    return reduce_weighted(F.cross_entropy(logits, y, reduction="none"), weight)


def train(
    model: PPRGo,
    batches: RowBatches,
    valid: RowBatches | None = None,
    *,
    loss: Callable[[Tensor, Tensor, Tensor | None], Tensor] = weighted_cross_entropy,
    accelerator: Accelerator | None = None,
    lr: float = 5e-3,
    weight_decay: float = 1e-4,
    epochs: int = 800,
    patience: int = 100,
    interval: int = 1,
    reduction: str = "sum",
    seed: int = 0,
    checkpoint: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, int | float]:
    """Minimise Σ_v w_v · loss(z_v, y_v) with Adam, and leave the best epoch's weights in ``model``.

    Order and dropout of an epoch come from (seed, epoch) alone, so a resumed training needs no state of a generator,
    and ends bit for bit where an uninterrupted one ends.

    Args:
        batches: this process's shares of the training rows.
        valid: rows whose weighted F1 picks the epoch; without them it is the last one, as released.
        loss: called with logits, classes and weights; the mean of w · loss. Default: cross-entropy, as released.
        lr, weight_decay, epochs: 0.005, 1e-4 and 800, as released.
        patience: epochs without a better F1 that end the training, at least 1. Default 100; our choice, like
            validation itself.
        interval: epochs between validations and checkpoints. Default 1.
        reduction: ``"sum"`` over the batch, the default, as released; or ``"mean"``.
        seed: of order and dropout. Default 0.
        checkpoint: file to go on from and to save to.
        settings: a checkpoint of other settings is refused.

    Returns:
        ``{"epochs": of them run, "best_epoch": ..., "best_valid_weighted_f1": ...}``, the last two with ``valid`` only.

    Raises:
        OptionError: a loss that is not finite; a ``checkpoint`` of other settings.
        CheckpointError: a damaged ``checkpoint``.
    """
    choose("--reduction", reduction, REDUCTIONS)
    accelerator = accelerator or Accelerator(mixed_precision="no")  # sparse products know float32 only
    model.to(accelerator.device)
    optimizer = torch.optim.Adam(model.parameters(), lr, weight_decay=weight_decay)
    state: dict[str, Any] = {"epoch": 0, "best_epoch": 0, "best_f1": -1.0, "best": None}
    kept = None
    if checkpoint is not None:
        kept = Checkpoint(checkpoint, settings or {}, state, model=model, optimizer=optimizer)
        if not kept.restore() and accelerator.is_main_process:
            kept.save()  # what cannot be saved must not be trained first
    parallel = accelerator.prepare_model(model)
    whole, whole_valid = _only_batch(batches), valid and _only_batch(valid)

    hidden = None if accelerator.is_main_process else True
    bar = tqdm(total=epochs, initial=state["epoch"], disable=hidden, unit="epoch")

    def patient() -> bool:
        """Epochs without a validation, all of them where there is none, end nothing."""
        unknown = valid is None or state["epoch"] % interval
        return bool(unknown) or state["epoch"] - state["best_epoch"] < patience

    while state["epoch"] < epochs and patient():
        state["epoch"] += 1
        generator = np.random.default_rng([seed, state["epoch"]])
        torch.manual_seed(int(generator.integers(2**32)) + accelerator.process_index)
        model.train()
        for batch in whole or batches.epoch(generator.permutation(len(batches.y))):
            logits = parallel(batch.x, batch.ppr)
            # A process without rows still takes part in the exchange of gradients, with zeros.
            share = loss(logits, batch.y, batch.weight) * len(batch.y) if len(batch.y) else logits.sum()
            # Gradients are averaged over the processes, but a batch's loss is the sum of their shares.
            total = share * accelerator.num_processes / (batch.size if reduction == "mean" else 1)
            if not total.isfinite():
                raise OptionError(f"--lr {lr}: the loss is {total.item()} in epoch {state['epoch']}")
            optimizer.zero_grad()
            accelerator.backward(total)
            optimizer.step()
        bar.update()
        if state["epoch"] % interval and state["epoch"] < epochs:
            continue
        if valid is not None:
            score = _validate(model, whole_valid or valid, accelerator)
            bar.set_postfix(valid_f1=f"{score:.4f}")
            if score > state["best_f1"]:
                best = {name: value.detach().clone() for name, value in model.state_dict().items()}
                state |= {"best_f1": score, "best_epoch": state["epoch"], "best": best}
        if kept and accelerator.is_main_process:
            kept.save()
    bar.close()
    if state["best"] is None:
        return {"epochs": state["epoch"]}
    model.load_state_dict(state["best"])
    return {"epochs": state["epoch"], "best_epoch": state["best_epoch"], "best_valid_weighted_f1": state["best_f1"]}


def _only_batch(batches: RowBatches) -> list[Batch]:
    """The batch that holds all rows, where there is one: building it anew would cost more than its step."""
    return list(batches) if len(batches.y) <= batches.batch_size else []


@torch.no_grad()
def _validate(model: PPRGo, batches: Iterable[Batch], accelerator: Accelerator) -> float:
    model.eval()
    results = [torch.stack([batch.y, model(batch.x, batch.ppr).argmax(1)], 1) for batch in batches]
    # The shares of the processes differ in length; -1 fills them up.
    padded = accelerator.pad_across_processes(torch.cat(results), pad_index=-1)
    truth, predicted = accelerator.gather(padded).cpu().numpy().T
    return f1(truth[truth >= 0], predicted[truth >= 0])
