"""What the fused forms of MUSE layers share: stacked matrices, attention between them, the encoder's layer."""

from __future__ import annotations

from typing import Any, Self

import torch
import torch.nn.functional as F
from fairseq.modules import MultiheadAttention
from torch import Tensor, nn

from fairseq_ext.models.attention import NotExportable, SelectiveAttention
from fairseq_ext.models.muse_attention import MuseSelfAttention
from fairseq_ext.models.muse_layers import MuseDecoderLayer, MuseEncoderLayer
from fairseq_ext.modules.sparse_attention import attention_weights


def stack_rows(*linears: nn.Linear) -> nn.Linear:
    """One layer whose output is the concatenation of the outputs of ``linears``."""
    weight = torch.cat([linear.weight for linear in linears])
    return frozen_linear(weight, torch.cat([linear.bias for linear in linears]))


def stack_columns(*linears: nn.Linear) -> nn.Linear:
    """One layer whose input is the concatenation of the inputs of ``linears`` and whose output is their sum."""
    weight = torch.cat([linear.weight for linear in linears], dim=1)
    return frozen_linear(weight, torch.stack([linear.bias for linear in linears]).sum(dim=0))


def frozen_linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    linear = nn.Linear(weight.size(1), weight.size(0), device="meta")
    # laid out by columns: for the few rows of a beam, CPUs multiply by such a matrix about a quarter faster
    linear.weight = nn.Parameter(weight.detach().t().contiguous().t(), requires_grad=False)
    linear.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return linear


def additive(key_padding_mask: Tensor, like: Tensor) -> Tensor:
    """A padding mask (B, S) as what is added to scores (B, H, T, S)."""
    zeros = torch.zeros(key_padding_mask.shape, dtype=like.dtype, device=like.device)
    return zeros.masked_fill(key_padding_mask.bool(), float("-inf"))[:, None, None]


class FusedAttention:
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


class FusedLayer(NotExportable, nn.Module):
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
        self.self_attention = FusedAttention(attention)
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
            padding = additive(key_padding_mask, qkv)
            mask = padding if mask is None else padding + mask
        context, _ = self.self_attention(query, key, value, mask)
        blocks = [context.permute(2, 0, 1, 3).flatten(2)]
        if self.conv is not None:
            blocks.append(self.conv(qkv[..., -self.embed_dim :], key_padding_mask if self.mask_padding else None))
        return blocks

    def extra_repr(self) -> str:
        return f"{self.embed_dim}, num_heads={self.num_heads}, normalize_before={self.normalize_before}"


class FusedMuseEncoderLayer(FusedLayer):
    """A :class:`~fairseq_ext.models.muse_layers.MuseEncoderLayer` with one input and one output matrix.

    Example:
        >>> fused = FusedMuseEncoderLayer.from_layer(layer)
    """

    def __init__(self, layer: MuseEncoderLayer) -> None:
        super().__init__(layer)
        attention = layer.self_attn
        self.in_proj = stack_rows(attention.q_proj, attention.k_proj, attention.v_proj, layer.fc1)
        self.out_proj = stack_columns(attention.out_proj, layer.fc2)
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
