r"""MUSE layers merged into two matrices for generation.

The branches of a MUSE layer read one input and are summed, so their input projections are one matrix of stacked rows
and their output projections one matrix of stacked columns (Zhao et al., arXiv 1911.09483, who report 31% more tokens
per second than a Transformer):

.. math::
    [q ; k ; v ; q' ; f] &= W_{in} h + b_{in} \\
    y &= x + W_{out} \, [\mathrm{att}(q, k, v) ; D(v) ; \mathrm{att}(q', k', v') ; \sigma(f)] + b_{out}

with :math:`b_{out}` the sum of the branches' biases and :math:`k', v'` the encoder's, computed once a sentence. It is
a conversion of trained layers: the results are those of the original up to rounding, the matrices are copies.
"""

from __future__ import annotations

from typing import Any, Self

import torch
import torch.nn.functional as F
from fairseq.incremental_decoding_utils import FairseqIncrementalState
from fairseq.modules import MultiheadAttention
from torch import Tensor, nn

from fairseq_ext.models.attention import IncrementalState, NotExportable, SelectiveAttention
from fairseq_ext.models.cross_view_attention import CrossViewAttention
from fairseq_ext.models.muse_attention import MuseSelfAttention
from fairseq_ext.models.muse_layers import MuseDecoderLayer, MuseEncoderLayer
from fairseq_ext.modules.muse import MultiScaleConv
from fairseq_ext.modules.sparse_attention import attention_weights


def _stack_rows(*linears: nn.Linear) -> nn.Linear:
    """One layer whose output is the concatenation of the outputs of ``linears``."""
    weight = torch.cat([linear.weight for linear in linears])
    return _frozen_linear(weight, torch.cat([linear.bias for linear in linears]))


def _stack_columns(*linears: nn.Linear) -> nn.Linear:
    """One layer whose input is the concatenation of the inputs of ``linears`` and whose output is their sum."""
    weight = torch.cat([linear.weight for linear in linears], dim=1)
    return _frozen_linear(weight, torch.stack([linear.bias for linear in linears]).sum(dim=0))


def _frozen_linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    linear = nn.Linear(weight.size(1), weight.size(0), device="meta")
    # laid out by columns: for the few rows of a beam, CPUs multiply by such a matrix about a quarter faster
    linear.weight = nn.Parameter(weight.detach().t().contiguous().t(), requires_grad=False)
    linear.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return linear


def _additive(key_padding_mask: Tensor, like: Tensor) -> Tensor:
    """A padding mask (B, S) as what is added to scores (B, H, T, S)."""
    zeros = torch.zeros(key_padding_mask.shape, dtype=like.dtype, device=like.device)
    return zeros.masked_fill(key_padding_mask.bool(), float("-inf"))[:, None, None]


class _Attention:
    """The part of attention between the projections, with the selection of ``attention``."""

    def __init__(self, attention: MultiheadAttention) -> None:
        self.scaling = attention.scaling
        self.selection: dict[str, Any] = {}
        if isinstance(attention, SelectiveAttention) and not attention.is_dense:
            self.selection = attention.selection()

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, need_weights: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """``query`` (B, H, T, D), ``key`` and ``value`` (B, H, S, D), additive ``mask``; weights (B, H, T, S)."""
        if not (self.selection or need_weights):
            return F.scaled_dot_product_attention(query, key, value, mask, scale=self.scaling), None
        scores = (query * self.scaling) @ key.transpose(-2, -1)
        weights = attention_weights(scores if mask is None else scores + mask, **self.selection)
        return weights @ value, weights


class _FusedLayer(NotExportable, nn.Module):
    """What the two kinds of layers share: self-attention, convolution and feed-forward network."""

    option = "--block muse, muse-simple"

    def __init__(self, layer: MuseEncoderLayer | MuseDecoderLayer) -> None:
        super().__init__()
        attention = layer.self_attn
        self.embed_dim, self.num_heads = attention.embed_dim, attention.num_heads
        self.ffn_dim = layer.fc1.out_features
        self.normalize_before = layer.normalize_before
        self.activation_fn = layer.activation_fn
        self.norm = layer.self_attn_layer_norm
        self.self_attention = _Attention(attention)
        self.conv = attention.conv if isinstance(attention, MuseSelfAttention) else None
        self.mask_padding = self.conv is not None and attention.mask_padding

    def train(self, mode: bool = True) -> Self:
        if mode:
            raise RuntimeError("a fused layer has no dropout and no gradients: train the model it was made from")
        return super().train(mode)

    def attend_and_convolve(
        self, qkv: Tensor, key_padding_mask: Tensor | None, attn_mask: Tensor | None
    ) -> list[Tensor]:
        """The self-attention and convolution blocks of whole sequences, from ``qkv`` (T, B, 3 * C)."""
        query, key, value = qkv.unflatten(-1, (3, self.num_heads, -1)).permute(2, 1, 3, 0, 4)
        mask = attn_mask
        if key_padding_mask is not None:
            padding = _additive(key_padding_mask, qkv)
            mask = padding if mask is None else padding + mask
        context, _ = self.self_attention(query, key, value, mask)
        blocks = [context.permute(2, 0, 1, 3).flatten(2)]
        if self.conv is not None:
            blocks.append(self.conv(qkv[..., -self.embed_dim :], key_padding_mask if self.mask_padding else None))
        return blocks

    def extra_repr(self) -> str:
        return f"{self.embed_dim}, num_heads={self.num_heads}, normalize_before={self.normalize_before}"


class FusedMuseEncoderLayer(_FusedLayer):
    """A :class:`~fairseq_ext.models.muse_layers.MuseEncoderLayer` with one input and one output matrix.

    Example:
        >>> fused = FusedMuseEncoderLayer.from_layer(layer)
    """

    def __init__(self, layer: MuseEncoderLayer) -> None:
        super().__init__(layer)
        attention = layer.self_attn
        self.in_proj = _stack_rows(attention.q_proj, attention.k_proj, attention.v_proj, layer.fc1)
        self.out_proj = _stack_columns(attention.out_proj, layer.fc2)
        self.eval()

    @classmethod
    def from_layer(cls, layer: MuseEncoderLayer) -> FusedMuseEncoderLayer:
        """The fused copy of a trained layer, which stays as it is; norm and convolution are shared with it."""
        return cls(layer)

    def forward(self, x: Tensor, encoder_padding_mask: Tensor | None, attn_mask: Tensor | None = None) -> Tensor:
        """Shapes as in :class:`~fairseq_ext.models.muse_layers.MuseEncoderLayer`."""
        if attn_mask is not None:
            attn_mask = torch.zeros_like(attn_mask, dtype=x.dtype).masked_fill(attn_mask.bool(), float("-inf"))
        h = self.norm(x) if self.normalize_before else x
        qkv, hidden = self.in_proj(h).split([3 * self.embed_dim, self.ffn_dim], dim=-1)
        blocks = self.attend_and_convolve(qkv, encoder_padding_mask, attn_mask)
        x = x + self.out_proj(torch.cat([*blocks, self.activation_fn(hidden)], dim=-1))
        return x if self.normalize_before else self.norm(x)


class _StepConv(nn.Module):
    """The last position of a causal :class:`~fairseq_ext.modules.muse.MultiScaleConv`, all kernel sizes at once.

    Every kernel is widened to the largest one. The taps it does not have get a logit of minus infinity from the bias,
    so that one softmax serves all sizes.
    """

    def __init__(self, conv: MultiScaleConv) -> None:
        super().__init__()
        heads, self.width = conv.convs[0].num_heads, max(part.kernel_size for part in conv.convs)
        weights, biases = [], []
        for part in conv.convs:
            absent = (0, 0, self.width - part.kernel_size, 0)
            taps = part.weight_linear.weight.detach().unflatten(0, (heads, part.kernel_size))
            weights.append(F.pad(taps, absent))
            biases.append(F.pad(taps.new_zeros(heads, part.kernel_size), absent[2:], value=float("-inf")))
        # rows ordered head, kernel, tap: the kernels of a head are the rows of one small matrix
        self.predictor = _frozen_linear(torch.stack(weights, 1).flatten(0, 2), torch.stack(biases, 1).flatten())
        self.shape = (heads, len(conv.convs), self.width)
        self.register_buffer("shares", None if conv.gate is None else conv.gate.weight.detach().softmax(0)[None])

    def forward(self, last: Tensor, values: Tensor) -> Tensor:
        """``last`` (B, C) is the newest of ``values`` (B, H, T, D); result (B, C), without a gate (B, n * C)."""
        kernels = self.predictor(last).unflatten(-1, self.shape).softmax(dim=-1)
        if self.shares is not None:
            kernels = self.shares @ kernels
        taps = min(self.width, values.size(2))
        return (kernels[..., -taps:] @ values[:, :, -taps:]).transpose(1, 2).flatten(1)


class FusedMuseDecoderLayer(FairseqIncrementalState, _FusedLayer):
    """A :class:`~fairseq_ext.models.muse_layers.MuseDecoderLayer` with one input and one output matrix.

    The queries and the output projection of the cross-attention are merged as well, unless it reads several views:
    then ``encoder_attn`` is the original module, whose output is added.

    Example:
        >>> fused = FusedMuseDecoderLayer.from_layer(layer)
    """

    def __init__(self, layer: MuseDecoderLayer) -> None:
        super().__init__(layer)
        attention, cross = layer.self_attn, layer.encoder_attn
        self.need_attn = layer.need_attn
        self.beam_size = 1
        self.step_conv = None if self.conv is None else _StepConv(self.conv)
        rows = [attention.q_proj, attention.k_proj, attention.v_proj]
        columns = [attention.out_proj]
        merged = cross is not None and not isinstance(cross, CrossViewAttention)
        if merged:
            rows.append(cross.q_proj)
            columns.append(cross.out_proj)
            self.cross_attention = _Attention(cross)
            self.memory_proj = _stack_rows(cross.k_proj, cross.v_proj)
            self.beam_size = cross.beam_size
        self.in_proj = _stack_rows(*rows, layer.fc1)
        self.out_proj = _stack_columns(*columns, layer.fc2)
        self.widths = [self.embed_dim, 2 * self.embed_dim, self.embed_dim if merged else 0, self.ffn_dim]
        self.merges_cross_attention = merged
        self.encoder_attn = None if merged else cross
        self.eval()

    @classmethod
    def from_layer(cls, layer: MuseDecoderLayer) -> FusedMuseDecoderLayer:
        """The fused copy of a trained layer, which stays as it is; norm, convolution and views are shared with it."""
        return cls(layer)

    def forward(
        self,
        x: Tensor,
        encoder_out: Tensor | None = None,
        encoder_padding_mask: Tensor | None = None,
        incremental_state: IncrementalState | None = None,
        self_attn_mask: Tensor | None = None,
        self_attn_padding_mask: Tensor | None = None,
        need_attn: bool = False,
        need_head_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None, None]:
        """Shapes as in :class:`~fairseq_ext.models.muse_layers.MuseDecoderLayer`; incremental, one position a call."""
        need_weights = need_attn or need_head_weights or self.need_attn
        h = self.norm(x) if self.normalize_before else x
        projected = self.in_proj(h)
        hidden = projected[..., -self.ffn_dim :]
        if incremental_state is None:
            qkv = projected[..., : 3 * self.embed_dim]
            blocks = self.attend_and_convolve(qkv, self_attn_padding_mask, self_attn_mask)
        else:
            blocks = self.step(projected[0], incremental_state, self_attn_padding_mask)
        weights = None
        if self.merges_cross_attention:
            query = projected[..., 3 * self.embed_dim : 4 * self.embed_dim]
            memory = self.memory(encoder_out, encoder_padding_mask, incremental_state)
            context, weights = self.read(query, *memory, need_weights)
            blocks.append(context)
        y = x + self.out_proj(torch.cat([*blocks, self.activation_fn(hidden)], dim=-1))
        if self.encoder_attn is not None and encoder_out is not None:
            context, weights = self.encoder_attn(
                h,
                encoder_out,
                encoder_out,
                key_padding_mask=encoder_padding_mask,
                incremental_state=incremental_state,
                static_kv=True,
                need_weights=need_weights,
                need_head_weights=need_head_weights,
            )
            y = y + context
        elif weights is not None and not need_head_weights:
            weights = weights.mean(dim=0)
        return (y if self.normalize_before else self.norm(y)), weights, None

    def step(
        self, projected: Tensor, incremental_state: IncrementalState, key_padding_mask: Tensor | None
    ) -> list[Tensor]:
        """The self-attention and convolution blocks of the newest position, from ``projected`` (B, ...)."""
        saved = self.get_incremental_state(incremental_state, "self") or {}
        past, padding = saved.get("key_value"), saved.get("padding")
        # keys and values share one cache (B, T, 2 * C): one tensor to extend and to reorder
        latest = projected[:, None, self.embed_dim : 3 * self.embed_dim]
        cache = latest if past is None else torch.cat([past, latest], dim=1)
        if key_padding_mask is not None or padding is not None:
            seen = cache.size(1) - (0 if key_padding_mask is None else 1)
            if padding is None:
                padding = torch.zeros(cache.size(0), 0, dtype=torch.bool, device=cache.device)
            padding = F.pad(padding, (0, seen - padding.size(1)))
            if key_padding_mask is not None:
                padding = torch.cat([padding, key_padding_mask.bool()], dim=1)
        self.set_incremental_state(incremental_state, "self", {"key_value": cache, "padding": padding})
        query = projected[:, : self.embed_dim].unflatten(-1, (self.num_heads, 1, -1))
        key, value = cache.unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind()
        context, _ = self.self_attention(query, key, value, None if padding is None else _additive(padding, cache))
        blocks = [context.reshape(1, -1, self.embed_dim)]
        if self.step_conv is not None:
            blocks.append(self.step_conv(latest[:, 0, self.embed_dim :], value)[None])
        return blocks

    def memory(
        self, encoder_out: Tensor | None, key_padding_mask: Tensor | None, incremental_state: IncrementalState | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Keys, values (B', H, S, D) and mask of the encoder's output, B' being B, or B / beam when shared by beams."""
        saved = self.get_incremental_state(incremental_state, "memory")
        if saved is not None:
            return saved["key"], saved["value"], saved["mask"]
        if encoder_out is None:
            raise ValueError("encoder_out must be given to a layer with merged cross-attention, got None")
        if incremental_state is not None and self.beam_size > 1:
            encoder_out = encoder_out[:, :: self.beam_size]
            key_padding_mask = None if key_padding_mask is None else key_padding_mask[:: self.beam_size]
        mask = None
        if key_padding_mask is not None and key_padding_mask.any():
            mask = _additive(key_padding_mask, encoder_out)
        key_value = self.memory_proj(encoder_out).unflatten(-1, (2, self.num_heads, -1)).permute(2, 1, 3, 0, 4)
        key, value = key_value.contiguous().unbind()
        self.set_incremental_state(incremental_state, "memory", {"key": key, "value": value, "mask": mask})
        return key, value, mask

    def read(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, need_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Cross-attention from queries (T, B, C): contexts (T, B, C), weights by head (H, B, T, S)."""
        length, batch, _ = query.shape
        # the hypotheses of a beam read one memory like successive positions of one sentence
        beam = batch // key.size(0)
        query = query.unflatten(-1, (self.num_heads, -1)).unflatten(1, (-1, beam)).permute(1, 3, 2, 0, 4).flatten(2, 3)
        context, weights = self.cross_attention(query, key, value, mask, need_weights)
        context = context.unflatten(2, (beam, length)).permute(3, 0, 2, 1, 4).reshape(length, batch, -1)
        if weights is not None:
            weights = weights.unflatten(2, (beam, length)).permute(1, 0, 2, 3, 4).flatten(1, 2)
        return context, weights

    def reorder_incremental_state(self, incremental_state: IncrementalState, new_order: Tensor) -> IncrementalState:
        """Called by beam search between two steps."""
        for name in ("self", "memory"):
            saved = self.get_incremental_state(incremental_state, name)
            order = new_order
            if saved is None:
                continue
            if name == "memory":
                if saved["key"].size(0) * self.beam_size == new_order.size(0):
                    continue  # as in fairseq: hypotheses then only change places within their sentence
                order = new_order[:: self.beam_size] // self.beam_size
            reordered = {key: None if part is None else part.index_select(0, order) for key, part in saved.items()}
            self.set_incremental_state(incremental_state, name, reordered)
        return incremental_state

    def set_beam_size(self, beam_size: int) -> None:
        """Lets the ``beam_size`` hypotheses of a sentence share the keys and values of the encoder's output."""
        self.beam_size = beam_size

    def make_generation_fast_(self, need_attn: bool = False, **kwargs: Any) -> None:
        self.need_attn = need_attn


def _has_plain_projections(layer: MuseEncoderLayer | MuseDecoderLayer) -> bool:
    attention = layer.self_attn
    linears = [attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj, layer.fc1, layer.fc2]
    return all(type(linear) is nn.Linear for linear in linears)


def fuse_for_inference(module: nn.Module) -> nn.Module:
    """Replaces every MUSE layer inside ``module`` by its fused form, in place, and returns ``module``.

    fairseq's ``prepare_for_inference_`` does so for ``transformer_ext`` models unless ``--muse-no-fuse`` is given. What
    remains cannot be trained, and its state dict fits fused models only: save before fusing. A layer whose linear maps
    were replaced, as quantization does, keeps them and stays as it is.

    Args:
        module: a model, an encoder or a decoder.
    """
    fused_forms: dict[type[nn.Module], Any] = {
        MuseEncoderLayer: FusedMuseEncoderLayer,
        MuseDecoderLayer: FusedMuseDecoderLayer,
    }
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) in fused_forms and _has_plain_projections(child):
                setattr(parent, name, fused_forms[type(child)].from_layer(child))
    return module
