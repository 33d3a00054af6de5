"""The loss of a causal language model without the logits of a batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fairseq_ext.integrations.trainer import check_options, mean_over_items, next_labels
from fairseq_ext.losses import fused_linear_encouraging_loss
from fairseq_ext.training.errors import OptionError


class FusedCausalLMLoss:
    r"""Loss of a Hugging Face causal language model, its output layer and the encouraging loss in one.

    .. math:: \frac1N \sum_{y_{n+1} \ne -100} \ell(W h_n + b,\; y_{n+1})

    with :math:`\ell` the encouraging loss (Zhao et al., arXiv:2110.06537) or, with ``bonus_weight=0``, the
    cross-entropy. Value and gradients are those of ``model(..., labels=labels).loss`` with that loss, but of the
    ``(B, T, V)`` logits one block is in memory at a time
    (:func:`~fairseq_ext.losses.fused_linear_encouraging_loss`). For a training loop of your own, in one process: what
    wraps a model to train it in several (DDP, FSDP) does not see this call.

    Args:
        model: a ``PreTrainedModel`` whose logits are a linear map of its last hidden states: GPT-2, Llama and most
            others. That is tried out on two tokens.
        **options: of :func:`~fairseq_ext.losses.fused_linear_encouraging_loss`: ``log_end``, ``label_smoothing``,
            ``bonus_weight``, ``class_weight``, ...

    Shape:
        - call: ``loss(labels, num_items_in_batch=None, **inputs)`` with labels :math:`(B, T)`, not shifted and -100
          where ignored, and the inputs of the model without labels; a scalar.

    Raises:
        OptionError: a model with another head (soft-capping in Gemma 2, scales in Cohere and Granite), several
            processes, or an option out of its range.

    Example:
        >>> loss = FusedCausalLMLoss(model, log_end=0.75)
        >>> loss(batch["labels"], input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).backward()
    """

    def __init__(self, model: nn.Module, **options: Any) -> None:
        check_options({name: value for name, value in options.items() if name != "class_weight"})
        self.backbone, self.head, self.options = *_parts(model), options

    def __call__(self, labels: Tensor, num_items_in_batch: Tensor | int | None = None, **inputs: Any) -> Tensor:
        hidden = self.backbone(**inputs).last_hidden_state
        labels = next_labels(labels.to(hidden.device))
        total = fused_linear_encouraging_loss(
            *(hidden.flatten(0, 1), self.head.weight, labels.flatten(), self.head.bias),
            reduction="sum",
            **self.options,
        )
        return mean_over_items(total, labels, num_items_in_batch)


def _parts(model: Any) -> tuple[nn.Module, nn.Linear]:
    """The model without its head, and the head."""
    name = type(model).__name__
    if (
        torch.distributed.is_available()
        and torch.distributed.is_initialized()
        and torch.distributed.get_world_size() > 1
    ):
        raise OptionError("model: the fused loss is for one process; in several, gradients would not be averaged")
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if type(head) is not nn.Linear or getattr(model, "base_model", model) is model:
        raise OptionError(f"model: {name} is no language model of transformers with a linear output layer")
    if getattr(model.config, "is_encoder_decoder", False) or getattr(model.config, "output_router_logits", False):
        raise OptionError(f"model: {name} is an encoder-decoder, or adds the loss of a router (output_router_logits)")
    backbone = model.base_model
    seen: dict[str, Tensor] = {}
    hooks = [
        backbone.register_forward_hook(lambda _, __, output: seen.update(states=output.last_hidden_state)),
        head.register_forward_hook(lambda _, inputs, output: seen.update(inputs=inputs[0], output=output)),
    ]
    try:
        with torch.no_grad(), torch.random.fork_rng():
            logits = model(input_ids=torch.arange(2, device=head.weight.device)[None]).logits
    finally:
        for hook in hooks:
            hook.remove()
    if not (torch.equal(seen["states"], seen["inputs"]) and torch.equal(seen["output"], logits)):
        raise OptionError(f"model: the logits of {name} are not a linear map of its last hidden states alone")
    return backbone, head
