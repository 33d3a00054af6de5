"""fairseq's multi-head attention whose softmax may select keys."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from fairseq.modules import MultiheadAttention
from torch import Tensor

from fairseq_ext.modules.sparse_attention import attention_weights, blockwise_topk_attention, has_blockwise
from fairseq_ext.modules.topk import effective_k, ratio_softmax, topk_softmax
from fairseq_ext.training.errors import OptionError

__all__ = ["IncrementalState", "NotExportable", "SelectiveAttention", "additive", "averaged"]

IncrementalState = dict[str, dict[str, Tensor | None]]


def additive(mask: Tensor, like: Tensor) -> Tensor:
    """A mask, true where attention is forbidden, as numbers to add to scores: 0 and -inf, in the dtype of ``like``."""
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask.bool(), float("-inf"))


def averaged(weights: Tensor | None, need_head_weights: bool) -> Tensor | None:
    """Weights by head (H, B, T, S) in the form a layer returns: fairseq averages unless asked for the heads."""
    return weights if weights is None or need_head_weights else weights.mean(dim=0)


class NotExportable:
    """Refuses ``torch.jit.script`` and ONNX with one line instead of a compiler's."""

    option: str

    def __prepare_scriptable__(self) -> NoReturn:  # called by torch.jit.script for every module, before it compiles
        self.refuse_export("torch.jit.script")

    def prepare_for_onnx_export_(self, **kwargs: Any) -> NoReturn:
        self.refuse_export("ONNX")

    def refuse_export(self, form: str) -> NoReturn:
        raise OptionError(f"{self.option}: no {form} form; fairseq's layers, top-k attention and the norms have one")


def _renamed(method: Callable[..., Any], name: str) -> Any:
    """A copy of ``method`` named ``name``: TorchScript compiles a method under its ``__name__``, and only once."""
    copy = types.FunctionType(method.__code__, method.__globals__, name, method.__defaults__, method.__closure__)
    copy.__annotations__ = method.__annotations__
    return copy


class SelectiveAttention(MultiheadAttention):
    """:class:`fairseq.modules.MultiheadAttention` whose softmax may select keys.

    With every option off it *is* the parent, fused path and all. Otherwise the parent computes masked scores and
    values (:meth:`scores_and_values`) and only the steps after them are replaced: selection therefore happens after
    both masks, unlike in fairseq's own ``apply_sparse_mask`` hook.

    Args:
        normalizer, topk, topk_ratio, topk_min, select, causal: see :func:`fairseq_ext.modules.attention_weights`.
        *args, **kwargs: arguments of the parent. The slot of ``add_zero_attn`` is a key like others.

    Raises:
        OptionError: ``add_bias_kv`` beside an option that selects, or in a subclass.
    """

    # TorchScript knows no super()
    dense_attention = _renamed(MultiheadAttention.forward, "dense_attention")

    def __init__(
        self,
        *args: Any,
        normalizer: str = "softmax",
        topk: int = 0,
        topk_ratio: float = 0.0,
        topk_min: int = 0,
        select: str = "scores",
        causal: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.normalizer = normalizer
        self.topk, self.topk_ratio, self.topk_min = topk, topk_ratio, topk_min
        self.select, self.causal = select, causal
        self.is_dense = normalizer == "softmax" and not topk and not topk_ratio
        if self.bias_k is not None and not (self.is_dense and type(self) is SelectiveAttention):
            raise OptionError(
                "add_bias_kv: not with selected keys, views or MUSE, as fairseq's unfused attention does not count that"
                " key; add_zero_attn=True works"
            )
        # this flag keeps the parent off torch's fused attention, which ignores before_softmax
        self.skip_embed_dim_check = not self.is_dense

    def __prepare_scriptable__(self) -> SelectiveAttention:
        if self.normalizer != "softmax":
            raise OptionError(f"--attention-normalizer {self.normalizer}: no torch.jit.script form, top-k has one")
        if self.select != "scores":
            raise OptionError(f"--attention-topk-select {self.select}: no torch.jit.script form, scores has one")
        # The parent's forward names its class, which TorchScript recognises once that class has been compiled.
        torch.jit.script(MultiheadAttention(1, 1))
        return self

    def forward(
        self,
        query: Tensor,
        key: Tensor | None,
        value: Tensor | None,
        key_padding_mask: Tensor | None = None,
        incremental_state: IncrementalState | None = None,
        need_weights: bool = True,
        static_kv: bool = False,
        attn_mask: Tensor | None = None,
        before_softmax: bool = False,
        need_head_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Shapes and arguments as in the parent: ``query`` (T, B, C), weights (B, T, S) or, by head, (H, B, T, S)."""
        if self.is_dense or before_softmax:
            return self.dense_attention(
                query,
                key,
                value,
                key_padding_mask=key_padding_mask,
                incremental_state=incremental_state,
                need_weights=need_weights,
                static_kv=static_kv,
                attn_mask=attn_mask,
                before_softmax=before_softmax,
                need_head_weights=need_head_weights,
            )
        if not torch.jit.is_scripting():
            if not (need_weights or need_head_weights) and incremental_state is None:
                blockwise = self.blockwise(query, key, value, key_padding_mask, attn_mask)
                if blockwise is not None:
                    return self.out_proj(blockwise), None
        scores, values = self.scores_and_values(
            query, key, value, key_padding_mask, incremental_state, static_kv=static_kv, attn_mask=attn_mask
        )
        context, weights = self.attend(scores, values, query.size(1))
        output = self.out_proj(context)
        if need_head_weights:
            return output, weights
        return output, weights.mean(dim=0) if need_weights else None

    @torch.jit.unused
    def blockwise(
        self,
        query: Tensor,
        key: Tensor | None,
        value: Tensor | None,
        key_padding_mask: Tensor | None,
        attn_mask: Tensor | None,
    ) -> Tensor | None:
        """Contexts (T, B, C) without the scores in memory, or None where there is no kernel for that."""
        if self.self_attention:
            key = value = query
        elif self.encoder_decoder_attention:
            value = key
        assert key is not None and value is not None
        k = effective_k(key.size(0), self.topk)
        plain = self.normalizer == "softmax" and self.select == "scores" and not self.topk_ratio
        plain &= self.bias_k is None and not self.add_zero_attn and self.beam_size == 1
        plain &= attn_mask is None or (attn_mask.dim() == 2 and attn_mask.is_floating_point())
        if not plain or not has_blockwise(query, key.size(0), self.head_dim, k):
            return None
        keep = None if key_padding_mask is None else ~key_padding_mask.bool()[:, None, None]
        dropout = self.dropout_module
        context = blockwise_topk_attention(
            *(
                projection(states).unflatten(-1, (self.num_heads, -1)).permute(1, 2, 0, 3)
                for projection, states in ((self.q_proj, query), (self.k_proj, key), (self.v_proj, value))
            ),
            attn_mask,
            keep,
            dropout.p if self.training or dropout.apply_during_inference else 0.0,
            is_causal=False,  # the mask has it
            scale=self.scaling,
            k=k,
        )
        return None if context is None else context.permute(2, 0, 1, 3).flatten(2)

    def scores_and_values(
        self,
        query: Tensor,
        key: Tensor | None,
        value: Tensor | None,
        key_padding_mask: Tensor | None = None,
        incremental_state: IncrementalState | None = None,
        static_kv: bool = False,
        attn_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Masked scores (B*H, T, S) and values (B'*H, S, D), those of earlier steps included; B' is B, or B / beam."""
        assert self.skip_embed_dim_check, "torch's fused attention would answer"
        scores, values = self.dense_attention(
            query,
            key,
            value,
            key_padding_mask=key_padding_mask,
            incremental_state=incremental_state,
            static_kv=static_kv,
            attn_mask=attn_mask,
            before_softmax=True,
        )
        assert values is not None
        return scores, values

    def attend(self, scores: Tensor, value: Tensor, bsz: int) -> tuple[Tensor, Tensor]:
        """From :meth:`scores_and_values` to contexts (T, B, C) and weights (H, B, T, S)."""
        weights = self.weights(scores)
        probs = self.dropout_module(weights)
        if value.size(0) == probs.size(0):
            context = torch.bmm(probs, value)
        else:  # while decoding, the hypotheses of a beam share one copy of the encoder's values
            shared = value.unflatten(0, (-1, 1, self.num_heads))
            context = torch.matmul(probs.unflatten(0, (shared.size(0), -1, self.num_heads)), shared).flatten(0, 2)
        context = context.transpose(0, 1).reshape(-1, bsz, self.embed_dim)
        return context, weights.unflatten(0, (bsz, self.num_heads)).transpose(0, 1)

    def weights(self, scores: Tensor) -> Tensor:
        """From masked scores (B*H, T, S) to the weights of the selected keys."""
        if torch.jit.is_scripting():
            if self.topk_ratio > 0:
                return ratio_softmax(scores, self.topk_ratio, self.topk_min)
            return topk_softmax(scores, effective_k(scores.size(-1), self.topk))
        return self.any_weights(scores)

    @torch.jit.unused
    def any_weights(self, scores: Tensor) -> Tensor:
        """As :meth:`weights`, including the options that TorchScript cannot compile."""
        by_head = scores.unflatten(0, (scores.size(0) // self.num_heads, self.num_heads))
        return attention_weights(by_head, **self.selection()).flatten(0, 1)

    def selection(self) -> dict[str, Any]:
        """The arguments of :func:`~fairseq_ext.modules.attention_weights`."""
        budget = {"k": self.topk, "ratio": self.topk_ratio, "minimum": self.topk_min}
        return {"normalizer": self.normalizer, "select": self.select, "causal": self.causal, **budget}
