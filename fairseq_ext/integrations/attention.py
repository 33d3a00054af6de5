"""Top-k and sparse attention in Hugging Face models, through transformers' own attention interface."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairseq_ext.integrations.trial import functions_of
from fairseq_ext.modules import attention_weights, topk_attention
from fairseq_ext.modules.sparse_attention import attention_scores, repeat_heads
from fairseq_ext.training.errors import OptionError

__all__ = ["SelectiveAttention", "register_attention"]

# Arguments that models hand through to every attention although they mean nothing to it.
WITHOUT_EFFECT = frozenset(
    (
        *("num_items_in_batch", "output_hidden_states", "output_router_logits", "return_dict", "use_cache"),
        *("position_ids", "cache_position", "position_embeddings", "past_key_values", "logits_to_keep"),
        "deterministic",  # of flash attention's backward pass
    )
)
# Where a name has one of these parts, transformers takes it for an implementation of its own.
RESERVED = ("eager", "flash", "flex", "paged", "sdpa")
OWN_SOFTMAX = {"softmax", "Softmax", "log_softmax", "scaled_dot_product_attention", "multi_head_attention_forward"}
_registered: dict[str, SelectiveAttention] = {}


@dataclass(frozen=True)
class SelectiveAttention:
    """An attention function as transformers calls it; the fields are the arguments of :func:`register_attention`."""

    k: int
    name: str
    normalizer: str
    alpha: float
    select: str
    straight_through: bool

    def weights(self, scores: Tensor) -> Tensor:
        """From masked scores ``(B, H, T, S)`` to weights."""
        return attention_weights(
            scores,
            normalizer=self.normalizer,
            k=self.k,
            straight_through=self.straight_through,
            alpha=self.alpha,
            select=self.select,
        )

    def __call__(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        dropout: float = 0.0,
        scaling: float | None = None,
        is_causal: bool | None = None,
        sliding_window: int | None = None,
        output_attentions: bool | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """From ``query`` (B, H, T, D), ``key`` and ``value`` (B, H or fewer, S, D) to a context (B, T, H, D) and, on
        request, weights (B, H, T, S)."""
        self._refuse_others(module, kwargs)
        if sliding_window is not None and attention_mask is None and key.size(2) > sliding_window:
            raise OptionError(f"{self.name}: {type(module).__name__} has a sliding window that is not in its mask")
        key, value = repeat_heads(query, key), repeat_heads(query, value)
        if attention_mask is None:  # nothing is masked, unless the module says so
            is_causal = query.size(2) > 1 and (getattr(module, "is_causal", False) if is_causal is None else is_causal)
        else:
            is_causal = False
            if attention_mask.dtype != torch.bool:  # float32 under autocast
                attention_mask = attention_mask.to(query.dtype)
        if self.normalizer == "softmax" and self.select == "scores" and not output_attentions:
            context = topk_attention(
                *(query, key, value, attention_mask, dropout, is_causal),
                scale=scaling,
                straight_through=self.straight_through,
                k=self.k,
            )
            return context.transpose(1, 2).contiguous(), None
        scale = query.size(-1) ** -0.5 if scaling is None else scaling
        dense = self.normalizer == "softmax" and self.select == "scores" and not 0 < self.k < key.size(2)
        scores = attention_scores(query, key, scale, selects=not dense)
        if is_causal:
            attention_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        if attention_mask is not None:
            boolean = attention_mask.dtype == torch.bool
            scores = scores.masked_fill(~attention_mask, -torch.inf) if boolean else scores + attention_mask
        weights = self.weights(scores).to(query.dtype)
        context = F.dropout(weights, dropout) @ value
        return context.transpose(1, 2).contiguous(), weights

    def _refuse_others(self, module: nn.Module, kwargs: dict[str, Any]) -> None:
        for name, value in kwargs.items():
            if name not in WITHOUT_EFFECT and value is not None and value is not False:
                raise OptionError(
                    f"attn_implementation={self.name!r}: {type(module).__name__} asks for {name}, which this attention "
                    "does not compute"
                )


def always_masked(**arguments: Any) -> Tensor | None:
    """The mask of ``"sdpa"``, but a causal mask is never left out, as for ``"eager"``.

    transformers leaves a causal mask out where the attention's ``is_causal`` could say the same, but only models that
    support ``"sdpa"`` set ``is_causal`` correctly.
    """
    from transformers.masking_utils import sdpa_mask

    return sdpa_mask(**arguments | {"allow_is_causal_skip": False})


def register_attention(
    k: int = 8,
    name: str = "topk",
    *,
    normalizer: str = "softmax",
    alpha: float = 1.5,
    select: str = "scores",
    straight_through: bool = False,
) -> None:
    r"""Make top-k attention an ``attn_implementation`` of Hugging Face models.

    .. math::
        \text{dropout}(\text{topk-softmax}_k(\text{scaling} \cdot Q K^\top + M))\, V

    (Explicit Sparse Transformer, Zhao et al., arXiv:1912.11637.) Every attention of the model selects, self and cross;
    masks come first, so neither padding nor the empty places of a static cache are selected. With ``k`` at or above the
    number of keys a model gives the same results as with ``"sdpa"``, but a query without any key gives zeros; with
    fewer, its scores are rounded to half precision where it runs in that (:func:`~fairseq_ext.modules.topk_attention`).

    It is for models whose attentions all go through transformers' ``AttentionInterface``: BERT, GPT-2, Llama, BART,
    Marian, ViT and most others. A model that computes an attention itself (T5), has none, or asks for something else
    than masks, scaling and dropout (soft-capping in Gemma 2, sinks in gpt-oss) is refused by name; in the first two
    cases this happens when the model is made. In a model of several parts, some may keep another attention:
    ``attn_implementation={"text_config": "topk", "vision_config": "sdpa"}``.

    The name is not saved with a model: give it again to ``from_pretrained``. Calls with ``output_attentions=True``
    return the selected weights.

    Args:
        k: keys that each query keeps; 0 is dense. Default: 8, as in the authors' IWSLT De-En runs.
        name: the name for ``attn_implementation``. One name is one setting: another ``k`` needs another name.
        normalizer, alpha: see :func:`~fairseq_ext.modules.attention_weights`; sparsemax and entmax take ``k=0``.
        select: ``"scores"``, ``"heads"`` or a form of ``"probabilities"``, see there. ``"window"`` is refused, as it
            needs the position of the query.
        straight_through: see :func:`~fairseq_ext.modules.topk_softmax`.

    Raises:
        OptionError: an option out of its range, a name that transformers uses, or one registered with other settings.

    Example:
        >>> register_attention(k=8)
        >>> model = AutoModelForCausalLM.from_pretrained("gpt2", attn_implementation="topk")
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    attention = SelectiveAttention(k, name, normalizer, alpha, select, straight_through)
    if not re.fullmatch(r"[A-Za-z][\w-]*", name):
        raise OptionError(f"name: must be a word of letters, digits, _ and -, from a letter on, got {name!r}")
    if any(part in name for part in RESERVED):
        raise OptionError(
            f"name: {name!r} must not contain {' or '.join(RESERVED)}: transformers gives those words a meaning of "
            "its own"
        )
    if name in AttentionInterface().valid_keys() and name not in _registered:
        raise OptionError(f"name: {name!r} is the attention of somebody else already; choose another name")
    if not isinstance(k, int):
        raise OptionError(f"k: must be a whole number, got {k!r}")
    if select == "window":
        raise OptionError("select: 'window' needs the position of the query, which transformers does not pass")
    if _registered.get(name, attention) != attention:
        raise OptionError(f"name: {name!r} is {_registered[name]} already; models may use it, choose another name")
    try:
        attention.weights(torch.zeros(1, 1, 1, 2))
    except ValueError as error:
        raise OptionError(str(error)) from error
    if not _registered:
        _check_models()
    _registered[name] = attention
    AttentionInterface.register(name, attention)
    # Without a mask function of that name transformers would pass no mask at all.
    AttentionMaskInterface.register(name, always_masked)


def _check_models() -> None:
    """Have each model checked when it is made or switched: transformers only looks whether the name is registered."""
    from transformers import PreTrainedModel

    def before(method: str, check: Callable[..., None]) -> None:
        unchecked = getattr(PreTrainedModel, method)

        @functools.wraps(unchecked)
        def checked(self: Any, *args: Any, **kwargs: Any) -> Any:
            check(self, *args, **kwargs)
            return unchecked(self, *args, **kwargs)

        setattr(PreTrainedModel, method, checked)

    before("get_correct_attn_implementation", _refuse_own_table)  # before the layers are made
    before("post_init", lambda model: _refuse_own_attention(model, model.config._attn_implementation))
    before("set_attn_implementation", _refuse_switch)


def _refuse_own_table(model: Any, requested_attention: str | None, is_init_check: bool = False) -> None:
    """Refuse models older than the interface: they look classes up by name, and would end with a KeyError."""
    for variable, table in vars(sys.modules[type(model).__module__]).items():
        if requested_attention in _registered and isinstance(table, dict) and "eager" in table:
            raise OptionError(f"{_refusal(model, requested_attention)}: it takes what is in its {variable} alone")


def _refuse_switch(model: Any, attn_implementation: str | dict[str, str], allow_all_kernels: bool = False) -> None:
    if isinstance(attn_implementation, str):
        return _refuse_own_attention(model, attn_implementation, model.modules())
    for part, name in attn_implementation.items():
        config = getattr(model.config, part, model.config)
        for module in model.modules():
            if getattr(module, "config", None) is config and hasattr(module, "set_attn_implementation"):
                _refuse_own_attention(module, name, module.modules())


def _refuse_own_attention(model: Any, name: str | None, modules: Iterable[nn.Module] | None = None) -> None:
    """Refuse a model in which the attention registered as ``name`` would not reach every attention of ``modules``."""
    if name not in _registered:
        return
    classes = {type(module) for module in modules or _parts_with(model, name)}
    if own := sorted(cls.__name__ for cls in classes if _kind(cls) == "own"):
        raise OptionError(f"{_refusal(model, name)}: {', '.join(own)} computes an attention itself")
    if not any(_kind(cls) == "interface" for cls in classes):
        raise OptionError(f"{_refusal(model, name)}: no attention in it uses that")


def _refusal(model: Any, name: str | None) -> str:
    return f"attn_implementation={name!r}: {type(model).__name__} does not go through transformers' AttentionInterface"


def _parts_with(module: nn.Module, name: str) -> Iterator[nn.Module]:
    yield module
    for child in module.children():
        implementation = getattr(getattr(child, "config", None), "_attn_implementation", name)
        if implementation == name:
            yield from _parts_with(child, name)


def _kind(cls: type[nn.Module]) -> str | None:
    """``"interface"`` for an attention that asks for its function, ``"own"`` for one that computes it itself."""
    from transformers import PreTrainedModel

    if issubclass(cls, PreTrainedModel):  # its base class administers the interface
        return None
    names = _names(cls)
    if "ALL_ATTENTION_FUNCTIONS" in names:
        return "interface"
    own = issubclass(cls, nn.MultiheadAttention) or ("att" in cls.__name__.lower() and names & OWN_SOFTMAX)
    return "own" if own else None


def _names(cls: type[nn.Module]) -> set[str]:
    """The names that the methods of a class use."""
    return {name for function in functions_of(cls) for name in function.__code__.co_names}
