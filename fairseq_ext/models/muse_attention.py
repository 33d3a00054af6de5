"""The self-attention of MUSE layers: attention and convolution over the same values."""

from __future__ import annotations

from typing import Any

import torch
from fairseq.modules import FairseqDropout
from fairseq.modules.quant_noise import quant_noise
from torch import Tensor, nn

from fairseq_ext.models.attention import IncrementalState, NotExportable, SelectiveAttention
from fairseq_ext.modules.muse import MultiScaleConv

__all__ = ["MuseSelfAttention"]


class MuseSelfAttention(NotExportable, SelectiveAttention):
    """Self-attention and dynamic convolutions that share the value projection, joined by one output projection.

    Zhao et al., *MUSE: Parallel Multi-Scale Attention for Sequence to Sequence Learning*, arXiv 1911.09483:
    ``out_proj([attention ; conv(v)])``.

    Args:
        conv: the convolutions, causal in a decoder.
        mask_padding: set the values at padding to zero before the convolutions. The released models do not (``False``).
        *args, **kwargs: the arguments of :class:`SelectiveAttention`.
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
            # a dropout that --retain-dropout can keep
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
        scores, cached_values = self.scores_and_values(
            query, query, query, key_padding_mask, incremental_state, attn_mask=attn_mask
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
