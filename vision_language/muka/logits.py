"""Logits of many texts, in batches that the processes share, and their accuracy."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from fairseq_ext.training.modes import evaluating
from fairseq_ext.training.progress import progress
from vision_language.muka.models import Classifier
from vision_language.muka.tokens import Tokens
from vision_language.muka.trial import prove_reading

__all__ = ["accuracy", "logits_of", "predict_logits", "row_values"]


def row_values(
    tokens: Tokens,
    values_of: Callable[[dict[str, Tensor], int], Tensor],
    batch_size: int,
    accelerator: Accelerator,
    description: str = "",
) -> Tensor:
    """Values of every text, ``(n, *)`` on the CPU, computed in batches that the processes share.

    Args:
        tokens: n texts.
        values_of: called with the model's arguments for B texts and the number of the batch; gives ``(B, *)``.
        batch_size: B.
        description: of the progress bar.
    """
    batches = list(enumerate(tokens.in_order(batch_size)))
    values = None
    for step in progress(range(0, len(batches), accelerator.num_processes), description, leave=False):
        # Towards the end a process may be without a batch; it repeats the last, so that all know the shape.
        number, rows = batches[min(step + accelerator.process_index, len(batches) - 1)]
        part = values_of(tokens.batch(rows, accelerator.device), number).float()
        if values is None:
            values = part.new_zeros(len(tokens), *part.shape[1:])
        if step + accelerator.process_index < len(batches):
            values[torch.from_numpy(rows)] = part
    assert values is not None, "no text"
    return accelerator.reduce(values, "sum").cpu()


@torch.no_grad()
def predict_logits(
    model: nn.Module, tokens: Tokens, batch_size: int, accelerator: Accelerator, description: str = ""
) -> Tensor:
    """Logits of every text without dropout, ``(n, C)`` on the CPU; the model is left in the mode it was in."""

    def logits(batch: dict[str, Tensor], number: int) -> Tensor:
        with accelerator.autocast():
            return model(**batch).logits

    with evaluating(model):
        return row_values(tokens, logits, batch_size, accelerator, description)


def logits_of(
    classifier: Classifier,
    texts: Sequence[str],
    accelerator: Accelerator,
    max_length: int = 0,
    batch_size: int = 64,
) -> Tensor:
    """Logits of all texts, ``(n, C)``; the model does not stay on the device.

    Raises:
        CheckpointError: a model that cannot read the texts.
    """
    prove_reading(classifier, texts, max_length)
    tokens = classifier.tokens(texts, max_length)
    classifier.model.to(accelerator.device)
    logits = predict_logits(classifier.model, tokens, batch_size, accelerator, classifier.folder.name)
    classifier.model.cpu()
    return logits


def accuracy(logits: Tensor, gold: Tensor) -> float:
    """Share of the texts whose class has the largest logit."""
    return float((logits.argmax(-1) == gold).double().mean())
