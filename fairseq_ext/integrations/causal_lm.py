"""The loss of a causal language model without the logits of a batch."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from fairseq_ext.integrations.trainer import check_options, mean_over_items, next_labels, on_device
from fairseq_ext.integrations.trial import device_of, undisturbed
from fairseq_ext.losses import fused_linear_encouraging_loss
from fairseq_ext.training.errors import OptionError

__all__ = ["FusedCausalLMLoss"]

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class FusedCausalLMLoss:
    r"""Loss of a Hugging Face causal language model, its output layer and the encouraging loss in one.

    .. math:: \frac1N \sum_{y_{n+1} \ne -100} \ell(W h_n + b,\; y_{n+1})

    with :math:`\ell` the encouraging loss (Zhao et al., arXiv:2110.06537) or, with ``bonus_weight=0``, the
    cross-entropy. Value and gradients are those of ``model(..., labels=labels).loss`` with that loss, but only one
    block of the ``(B, T, V)`` logits is in memory at a time
    (:func:`~fairseq_ext.losses.fused_linear_encouraging_loss`). It is for a training loop of your own, in one process:
    wrappers that train a model in several processes (DDP, FSDP) do not see this call.

    Args:
        model: a ``PreTrainedModel`` whose logits are a linear map of its last hidden states: GPT-2, Llama and most
            others, also as a ``PeftModel`` whose adapters are inside. Whether they are is tried out on two tokens. The
            head may be replaced later (``resize_token_embeddings``).
        **options: options of :func:`~fairseq_ext.losses.fused_linear_encouraging_loss`: ``log_end``,
            ``label_smoothing``, ``bonus_weight``, ``class_weight``, ...

    Shape:
        - call: ``loss(labels, num_items_in_batch=None, **inputs)`` with labels :math:`(B, T)`, not shifted and -100
          where ignored, and the inputs of the model without labels; a scalar.

    Raises:
        OptionError: a model with another head (soft-capping in Gemma 2, scales in Cohere and Granite) or with a prefix
            (prompt tuning); hooks on the model or on its head, even if they are added later; several processes; mixed
            precision inside ``model.forward`` (``Accelerator.prepare``); or an option out of its range.

    Example:
        >>> loss = FusedCausalLMLoss(model, log_end=0.75)
        >>> loss(batch["labels"], input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).backward()
    """

    def __init__(self, model: nn.Module, **options: Any) -> None:
        self.model, self.options = model, options
        backbone, head = _parts(model)
        check_options(options, "class_weight", head.out_features)
        _check_logits(model, backbone, head)

    def __call__(self, labels: Tensor, num_items_in_batch: Tensor | int | None = None, **inputs: Any) -> Tensor:
        backbone, head = _parts(self.model)
        hidden = backbone(**inputs).last_hidden_state
        labels = next_labels(labels.to(hidden.device))
        total = fused_linear_encouraging_loss(
            *(hidden.flatten(0, 1), head.weight, labels.flatten(), head.bias),
            reduction="sum",
            **on_device(self.options, hidden),
        )
        return mean_over_items(total, labels, num_items_in_batch)


def _parts(model: Any) -> tuple[nn.Module, nn.Linear]:
    """The model without its head, and the head; both at the time of the call."""
    name = type(model).__name__
    wrapper, model = model, model.get_base_model() if hasattr(model, "get_base_model") else model  # of PEFT
    if (
        torch.distributed.is_available()
        and torch.distributed.is_initialized()
        and torch.distributed.get_world_size() > 1
    ):
        raise OptionError("model: the fused loss is for one process; in several, gradients would not be averaged")
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if head is None or getattr(model, "base_model", model) is model:
        raise OptionError(f"model: {name} is no language model of transformers with an output layer")
    if (type(head).__base__ if is_parametrized(head) else type(head)) is not nn.Linear:
        raise OptionError(f"model: the output layer of {name} is {type(head).__name__}, which is no plain nn.Linear")
    for part in (wrapper, model, head):
        if any(vars(part)[kind] for kind in HOOKS):
            raise OptionError(f"model: {type(part).__name__} has hooks, which this loss would not call; remove them")
    if getattr(model.config, "is_encoder_decoder", False) or getattr(model.config, "output_router_logits", False):
        raise OptionError(f"model: {name} is an encoder-decoder, or adds the loss of a router (output_router_logits)")
    if "_original_forward" in vars(wrapper) | vars(model):
        raise OptionError(
            f"model: this loss does not call the forward of {name}, where accelerate's mixed precision is; give it "
            "accelerator.unwrap_model(model, keep_fp32_wrapper=False), and call the loss under accelerator.autocast()"
        )
    return model.base_model, head


def _check_logits(model: Any, backbone: nn.Module, head: nn.Linear) -> None:
    """Refuse a model whose logits are something else than its head applied to its last hidden states."""
    inputs = torch.arange(2, device=device_of(model))[None]
    with undisturbed(model):
        logits = model(input_ids=inputs).logits
        expected = F.linear(backbone(input_ids=inputs).last_hidden_state, head.weight, head.bias)
    if not torch.equal(expected.to(logits), logits):
        raise OptionError(
            f"model: the logits of {type(model).__name__} are not a linear map of its last hidden states alone"
        )
