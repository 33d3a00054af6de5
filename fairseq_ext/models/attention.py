"""fairseq's multi-head attention with the suite's selections, the MUSE convolution and several views."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from fairseq.modules import FairseqDropout, MultiheadAttention
from fairseq.modules.quant_noise import quant_noise
from torch import Tensor, nn

from fairseq_ext.modules.cross_view import CrossViewFusion
from fairseq_ext.modules.muse import MultiScaleConv
from fairseq_ext.modules.sparse_attention import attention_weights
from fairseq_ext.modules.topk import effective_k, topk_softmax
from fairseq_ext.training.errors import OptionError

IncrementalState = dict[str, dict[str, Tensor | None]]


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
    """A copy of ``method``: TorchScript compiles a method under its ``__name__``, and once."""
    copy = types.FunctionType(method.__code__, method.__globals__, name, method.__defaults__, method.__closure__)
    copy.__annotations__ = method.__annotations__
    return copy


class SelectiveAttention(MultiheadAttention):
    """:class:`fairseq.modules.MultiheadAttention` whose softmax may select keys.

    With every option off it *is* the parent, fused path and all. Otherwise the parent computes masked scores and
    values (``before_softmax=True``) and only what follows is replaced: selection therefore happens after both masks,
    which fairseq's own ``apply_sparse_mask`` hook does not give.

    Args:
        normalizer, topk, topk_ratio, topk_min, select, causal: see :func:`fairseq_ext.modules.attention_weights`.
        *args, **kwargs: the parent's.
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
        # the flag that keeps the parent off torch's fused attention, which ignores before_softmax
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
        output, values = self.dense_attention(
            query,
            key,
            value,
            key_padding_mask=key_padding_mask,
            incremental_state=incremental_state,
            need_weights=need_weights,
            static_kv=static_kv,
            attn_mask=attn_mask,
            before_softmax=before_softmax or not self.is_dense,
            need_head_weights=need_head_weights,
        )
        if self.is_dense or before_softmax:
            return output, values
        assert values is not None
        context, weights = self.attend(output, values, query.size(1))
        output = self.out_proj(context)
        if need_head_weights:
            return output, weights
        return output, weights.mean(dim=0) if need_weights else None

    def attend(self, scores: Tensor, value: Tensor, bsz: int) -> tuple[Tensor, Tensor]:
        """Masked scores (B*H, T, S) and values (B'*H, S, D) to contexts (T, B, C) and weights (H, B, T, S)."""
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
        """Masked scores (B*H, T, S) to the weights of the selected keys."""
        if torch.jit.is_scripting():
            return topk_softmax(scores, effective_k(scores.size(-1), self.topk, self.topk_ratio, self.topk_min))
        return self.any_weights(scores)

    @torch.jit.unused
    def any_weights(self, scores: Tensor) -> Tensor:
        """As :meth:`weights`, with what TorchScript cannot compile."""
        by_head = scores.unflatten(0, (scores.size(0) // self.num_heads, self.num_heads))
        return attention_weights(by_head, **self.selection()).flatten(0, 1)

    def selection(self) -> dict[str, Any]:
        """The arguments of :func:`~fairseq_ext.modules.attention_weights`."""
        budget = {"k": self.topk, "ratio": self.topk_ratio, "minimum": self.topk_min}
        return {"normalizer": self.normalizer, "select": self.select, "causal": self.causal, **budget}


class MuseSelfAttention(NotExportable, SelectiveAttention):
    """Self-attention and dynamic convolutions that share the value projection, joined by one output projection.

    Zhao et al., *MUSE: Parallel Multi-Scale Attention for Sequence to Sequence Learning*, arXiv 1911.09483:
    ``out_proj([attention ; conv(v)])``.

    Args:
        conv: the convolutions, causal in a decoder.
        mask_padding: zero the values at padding before the convolutions. ``False`` is what the released models do.
        *args, **kwargs: of :class:`SelectiveAttention`.
    """

    option = "--block muse"

    def __init__(self, *args: Any, conv: MultiScaleConv, mask_padding: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conv = conv
        self.mask_padding = mask_padding
        out_proj = nn.Linear(self.embed_dim + conv.out_dim, self.embed_dim)
        nn.init.xavier_uniform_(out_proj.weight)
        nn.init.zeros_(out_proj.bias)
        noise = kwargs.get("q_noise", 0.0), kwargs.get("qn_block_size", 8)
        self.out_proj = quant_noise(out_proj, *noise)
        for part in conv.convs:
            quant_noise(part.weight_linear, *noise)
            # one that --retain-dropout can keep
            part.dropout_module = FairseqDropout(part.dropout_module.p, module_name=type(part).__name__)
        self.skip_embed_dim_check = True

    def forward(  # type: ignore[override]
        self,
        query: Tensor,
        key: Tensor | None,
        value: Tensor | None,
        key_padding_mask: Tensor | None = None,
        incremental_state: IncrementalState | None = None,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        return self.out_proj(self.branches(query, key_padding_mask, incremental_state, attn_mask)), None

    def branches(
        self,
        query: Tensor,
        key_padding_mask: Tensor | None = None,
        incremental_state: IncrementalState | None = None,
        attn_mask: Tensor | None = None,
    ) -> Tensor:
        """``[attention ; conv]`` before the output projection, (T, B, C + conv.out_dim)."""
        tgt_len, bsz, _ = query.size()
        scores, cached_values = super().forward(
            query, query, query, key_padding_mask, incremental_state, attn_mask=attn_mask, before_softmax=True
        )
        context, _ = self.attend(scores, cached_values, bsz)
        values = cached_values[:, -tgt_len:].transpose(0, 1).reshape(tgt_len, bsz, self.embed_dim)
        return torch.cat([context, self.convolve(values, key_padding_mask, incremental_state)], dim=-1)

    def convolve(
        self, values: Tensor, key_padding_mask: Tensor | None, incremental_state: IncrementalState | None
    ) -> Tensor:
        if incremental_state is None:
            return self.conv(values, key_padding_mask if self.mask_padding else None)
        saved = self.get_incremental_state(incremental_state, "conv_state") or {}
        state = [saved[str(index)] for index in range(len(saved))] or None
        output, state = self.conv.step(values, state)
        self.set_incremental_state(
            incremental_state, "conv_state", {str(index): buffer for index, buffer in enumerate(state)}
        )
        return output

    def reorder_incremental_state(self, incremental_state: IncrementalState, new_order: Tensor) -> Any:
        saved = self.get_incremental_state(incremental_state, "conv_state")
        if saved is not None:
            reordered = {name: buffer.index_select(0, new_order) for name, buffer in saved.items()}
            self.set_incremental_state(incremental_state, "conv_state", reordered)
        return super().reorder_incremental_state(incremental_state, new_order)


class CrossViewAttention(NotExportable, SelectiveAttention):
    """Cross-attention of one decoder layer to several encoder layers (arXiv 2005.08081).

    ``key`` carries all encoder layers side by side on the channel axis, (S, B, Ne * C): that is one tensor for
    fairseq's beam search to reorder. Each view keeps a cache of keys and values of its own: with a shared one, static
    keys mean that the second view would silently be answered with the first one's.

    Args:
        fusion: which views this layer reads and how it joins them.
        *args, **kwargs: of :class:`SelectiveAttention`.
    """

    option = "--cross-view"

    def __init__(self, *args: Any, fusion: CrossViewFusion, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fusion = fusion
        separate = fusion.fusion == "separate" and len(fusion.views) > 1
        self.aux = SelectiveAttention(*args, **kwargs) if separate else None
        self._slot = 0

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
        del value, attn_mask, before_softmax  # keys and values are the same views; cross-attention has no causal mask
        need_weights = need_weights or need_head_weights

        def attend(query: Tensor, memory: Tensor, mask: Tensor | None, slot: int) -> tuple[Tensor, Tensor | None]:
            return self.attend_view(query, memory, mask, slot, incremental_state, need_weights)

        context, weights = self.fusion(attend, query, self.fusion.select(key), key_padding_mask)
        if weights is not None and not need_head_weights:
            weights = weights.mean(dim=0)
        return context, weights

    def attend_view(
        self,
        query: Tensor,
        memory: Tensor,
        key_padding_mask: Tensor | None,
        slot: int,
        incremental_state: IncrementalState | None = None,
        need_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attends to one view; weights by head, (H, B, T, S)."""
        self._slot = slot
        attention = super().forward if self.aux is None or slot == 0 else self.aux
        return attention(
            query,
            memory,
            memory,
            key_padding_mask=key_padding_mask,
            incremental_state=incremental_state,
            need_weights=need_weights,
            static_kv=True,
            need_head_weights=need_weights,
        )

    def _get_input_buffer(self, incremental_state: IncrementalState | None) -> dict[str, Tensor | None]:
        return self.get_incremental_state(incremental_state, f"attn_state.{self._slot}") or {}

    def _set_input_buffer(self, incremental_state: IncrementalState, buffer: dict[str, Tensor | None]) -> Any:
        return self.set_incremental_state(incremental_state, f"attn_state.{self._slot}", buffer)

    def reorder_incremental_state(self, incremental_state: IncrementalState, new_order: Tensor) -> Any:
        for slot in range(len(self.fusion.views)):
            self._slot = slot
            incremental_state = super().reorder_incremental_state(incremental_state, new_order) or incremental_state
        return incremental_state
