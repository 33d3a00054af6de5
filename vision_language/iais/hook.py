"""The hook on a model's last self-attention and its inputs, from which relation alignment computes its maps."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from transformers import PreTrainedModel

from vision_language.iais.blocks import AttentionBlocks, attention_blocks

__all__ = ["IAISHook"]

PARTS = ("query", "key", "num_attention_heads", "attention_head_size")
PLAIN = ("mask", "past", "cache", "output", "head", "encoder_", "kwargs")
"""Parts of the names that arguments of a self-attention may have beside its states. Any other argument, such as a bias
of relative positions, changes the scores in a way that cannot be computed from queries and keys."""
NUMBER = re.compile(r"(^|\.)\d+(?=\.|$)")
HIDDEN_SCORE = -1e3
"""An additive mask below this hides a position; models use -1e4 or the least number."""


class IAISHook:
    """Gives the blocks of the last layer's self-attention in any single-stream Hugging Face model (arXiv:2105.13868).

    It holds the states that enter the last self-attention in a forward pass, with their graph, until :meth:`blocks` is
    called or the next pass begins. It works with every attention implementation, with gradient checkpointing, mixed
    precision and ``DistributedDataParallel`` (given either the wrapped model or the bare one).

    Args:
        model: a model whose layers are of the BERT family (BERT, RoBERTa, VisualBERT, ViLT, ...), with any head, or
            such a self-attention itself. Hook a model before it is compiled.

    Attributes:
        attention: the self-attention.
        hidden: the states that entered it, ``(B, S, H)``, or None.

    Raises:
        ValueError: the model has no such self-attention; or it has several kinds, as models with two streams or with
            cross-attention do, which do not read words and regions as one sequence; or the scores of its
            self-attention depend on more than queries and keys.

    Example:
        >>> with IAISHook(model) as hook:
        ...     output = model(**batch)  # text, then regions
        ...     blocks = hook.blocks(text_mask, region_mask)
        >>> loss = retrieval_loss(output) + iais_loss(blocks)
    """

    def __init__(self, model: nn.Module) -> None:
        self.attention = _last_self_attention(model)
        self._model = model
        self.hidden: Tensor | None = None
        self._mask: Any = None
        self._active = self._with_graph = False
        # Gradient checkpointing runs layers again inside backward. Nobody asks for the blocks then, and a captured
        # tensor would only keep its graph alive. So the hook listens only while the model itself runs.
        self._handles = [
            model.register_forward_pre_hook(self._begin),
            self.attention.register_forward_pre_hook(self._capture, with_kwargs=True),
            model.register_forward_hook(self._end),
        ]

    def _begin(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self.hidden, self._mask, self._active = None, None, True

    def _capture(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._active:
            self.hidden = args[0] if args else kwargs["hidden_states"]
            self._mask = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
            self._with_graph = torch.is_grad_enabled() or self.hidden.requires_grad

    def _end(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._active = False

    def blocks(
        self,
        text_mask: Tensor,
        region_mask: Tensor,
        keep_scores: bool = False,
        rows: Tensor | slice | None = None,
    ) -> AttentionBlocks:
        """The :func:`attention_blocks` of the last forward pass; its states are released.

        Under ``torch.autocast``, call it inside the same context as the model.

        Args:
            text_mask: where the word pieces are, bool, ``(B, S)``, over the whole sequence of the last layer. In
                VisualBERT the sequence is the text, then the regions; in ViLT an image [CLS] stands between the text
                and the patches, and the order of the patches is drawn anew in each pass.
            region_mask: where the regions are, bool, ``(B, S)``.
            keep_scores: as in :func:`attention_blocks`.
            rows: the pairs to use, such as the matched ones: an index into the batch, applied to masks and states.
                Default: all.

        Raises:
            ValueError: a mask does not fit, or the model's own mask hides a word or region (padding, or attention that
                looks back only).
            RuntimeError: the model has not run since the last call; or gradients are wanted, but checkpointing with
                ``use_reentrant=True`` has hidden the graph.
        """
        hidden, mask = self.hidden, self._mask
        self.hidden = self._mask = None
        if hidden is None:
            reason = "the model has not run since the last blocks()"
            if _is_compiled(self._model):
                reason += "; a model that was compiled and run before it got its hook keeps running without: hook first"
            raise RuntimeError(f"IAISHook: {reason}")
        if not self._with_graph and torch.is_grad_enabled() and self.attention.training:
            raise RuntimeError(
                "IAISHook: the model ran without gradients; gradient checkpointing needs use_reentrant=False"
            )
        if rows is not None:
            hidden, text_mask, region_mask = hidden[rows], text_mask[rows], region_mask[rows]
            mask = mask[rows] if isinstance(mask, Tensor) and len(mask) > 1 else mask
        _refuse_hidden(mask, text_mask | region_mask)
        return attention_blocks(hidden, self.attention, text_mask, region_mask, keep_scores)

    def remove(self) -> None:
        """Detach from the model."""
        for handle in self._handles:
            handle.remove()
        self.hidden = self._mask = None

    def __enter__(self) -> IAISHook:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.remove()


def _last_self_attention(model: nn.Module) -> nn.Module:
    """The self-attention of the last layer of a model's only stack of layers."""
    name = type(model).__name__
    kinds: dict[str, list[tuple[str, nn.Module]]] = {}
    for path, module in model.named_modules():
        if all(hasattr(module, part) for part in PARTS):
            kinds.setdefault(NUMBER.sub(r"\1#", path), []).append((path, module))
    if not kinds:
        raise ValueError(f"IAISHook: {name} has no self-attention with {', '.join(PARTS)}")
    # a head may have a self-attention of its own
    in_layers = {kind: modules for kind, modules in kinds.items() if "#" in kind} or kinds
    path, attention = next(iter(in_layers.values()))[-1]
    others = [modules[0] for modules in in_layers.values()][1:] + list(_beside(model, path))
    if others:
        place, other = others[0]
        raise ValueError(
            f"IAISHook: {name} has {place} ({type(other).__name__}) beside {path}: words and regions in two streams, "
            "or cross-attention, are not one sequence; if a part of the model reads both as one, hook that part"
        )
    if reason := _not_plain(attention):
        raise ValueError(f"IAISHook: the {type(attention).__name__} of {name} {reason}: its maps cannot be made anew")
    return attention


def _beside(model: nn.Module, attention: str) -> Iterator[tuple[str, nn.Module]]:
    """Models, and lists of layers with attention, that do not hold ``attention``, such as a tower for images."""
    stack = NUMBER.split(attention)[0]
    for path, module in model.named_modules():
        if not path or f"{attention}.".startswith(f"{path}.") or path.startswith(f"{stack}."):
            continue
        attentive = any("attention" in type(part).__name__.lower() for part in module.modules())
        if isinstance(module, PreTrainedModel) or (isinstance(module, nn.ModuleList) and attentive):
            yield path, module


def _not_plain(attention: nn.Module) -> str:
    """Why the scores of ``attention`` depend on more than queries and keys; empty where they do not."""
    if getattr(attention, "is_causal", False):
        return "looks back only"
    for name in list(inspect.signature(attention.forward).parameters)[1:]:
        if not any(part in name for part in PLAIN):
            return f"takes {name} beside hidden states and masks"
    mixing = [name for name, part in attention.named_children() if isinstance(part, nn.Embedding | _ConvNd)]
    own = [name for name, _ in (*attention.named_parameters(recurse=False), *attention.named_buffers(recurse=False))]
    return "".join(f"has {name} beside queries and keys" for name in (mixing + own)[:1])


def _is_compiled(model: nn.Module) -> bool:
    return any(hasattr(module, "_orig_mod") or module._compiled_call_impl is not None for module in model.modules())


def _refuse_hidden(mask: Any, seen: Tensor) -> None:
    """Refuse positions that the model's own mask, ``(B, 1, 1 or S, S)``, hides from each other."""
    if not isinstance(mask, Tensor) or mask.dim() != 4 or mask.size(-1) != seen.size(-1):
        return
    hidden = (~mask if mask.dtype == torch.bool else mask < HIDDEN_SCORE).any(1)
    if (hidden & seen[:, :, None] & seen[:, None, :]).any():
        raise ValueError(
            "IAISHook: the model's attention mask hides a word or region of text_mask or region_mask from another: "
            "padding, or attention that looks back only"
        )
