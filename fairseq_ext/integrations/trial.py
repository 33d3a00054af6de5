"""Finds out what a model computes: by a trial on a few tokens, or from the code of its classes."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fairseq_ext.training.errors import OptionError, one_line

__all__ = ["IGNORED", "OwnLoss", "device_of", "functions_of", "own_loss", "undisturbed"]

IGNORED = -100
LENGTH = 4


class OwnLoss(NamedTuple):
    """The cross-entropy that a model computes from ``labels``."""

    shift: bool
    """Whether the label of a position is that of the next."""
    classes: int


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards the model and the random state are as they were before.

    Attributes and children of modules are restored too: a short input switches BigBird's attention to another class.
    """
    device = device_of(model)
    before = [(module, dict(vars(module)), dict(module._modules)) for module in model.modules()]
    with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
        for module, _, _ in before:
            module.training = False  # eval() of some adapters merges weights
        try:
            yield
        finally:
            for module, attributes, children in before:
                vars(module).clear()
                vars(module).update(attributes)
                module._modules.clear()
                module._modules.update(children)


def device_of(model: nn.Module) -> torch.device:
    """The device of the first parameter: that of the embeddings, where a model is spread over several devices."""
    return next(model.parameters(), torch.empty(0)).device


def functions_of(cls: type[nn.Module]) -> list[FunctionType]:
    """The methods that a class defines or inherits, without those that every module has."""
    bases = cls.__mro__[: cls.__mro__.index(nn.Module)]
    return [inspect.unwrap(value) for base in bases for value in vars(base).values() if hasattr(value, "__code__")]


def own_loss(model: Any) -> OwnLoss:
    """Whether the loss of a Hugging Face model shifts labels, measured on four tokens of which one has a label.

    Raises:
        OptionError: the model computes no loss from ``labels``, or another one than the cross-entropy of its logits.
    """
    name = type(model).__name__
    try:
        with undisturbed(model):
            inputs = _inputs(model)
            # The label, at position 1, is the class whose log-probability differs most from that at position 0.
            log_p = model(**inputs).logits[0].float().log_softmax(-1).cpu()
            chosen = int((log_p[0] - log_p[1]).abs().argmax())
            labels = torch.full((1, len(log_p)), IGNORED, device=device_of(model))
            labels[0, 1] = chosen
            outputs = model(**inputs, labels=labels)
            loss, precision = float(outputs.loss), torch.finfo(outputs.logits.dtype).eps
    except Exception as error:
        reason = f"loss_type {getattr(model, 'loss_type', None)}; tried out: {one_line(error)}"
        raise OptionError(f"model: {name} has no loss of one label a position ({reason}); your own needs shift=") from (
            error
        )
    if outputs.get("aux_loss") is not None:
        raise OptionError("output_router_logits: the model's auxiliary loss would be lost beside this one")
    candidates = {shift: -float(log_p[at, chosen]) for shift, at in ((True, 0), (False, 1))}
    tolerance = max(1e-4, 3 * precision)
    fits = [shift for shift, value in candidates.items() if abs(loss - value) <= tolerance * (1 + abs(value))]
    if len(fits) != 1:
        raise OptionError(
            f"model: the loss of {name} is {loss:.4f} for one label, where cross-entropy is {candidates[True]:.4f} "
            f"if it is shifted and {candidates[False]:.4f} if not: give shift="
        )
    return OwnLoss(fits[0], log_p.size(-1))


def _inputs(model: Any) -> dict[str, Tensor | tuple[Tensor]]:
    """Four words, none of them special; where the encoder does not read words, its output is given instead."""
    config, device = model.config, device_of(model)
    special = {value for key, value in config.to_dict().items() if key.endswith(("_token_id", "_token_index"))}
    ids = torch.tensor([[number for number in range(LENGTH + len(special)) if number not in special][:LENGTH]])
    ids = ids.to(device)
    words: dict[str, Tensor | tuple[Tensor]] = {"input_ids": ids}
    if getattr(config, "is_encoder_decoder", False):
        if model.main_input_name != "input_ids":
            width = getattr(config, "encoder", config).hidden_size
            words = {"encoder_outputs": (torch.zeros(1, LENGTH, width, dtype=model.dtype, device=device),)}
        words["decoder_input_ids"] = ids
    elif "attention_mask" in inspect.signature(model.forward).parameters:
        words["attention_mask"] = torch.ones_like(ids)
    return words
