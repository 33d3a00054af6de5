r"""Adaptive attention span, and its combination with top-k selection.

Every head learns how far back it looks (Sukhbaatar, Grave, Bojanowski & Joulin, "Adaptive Attention Span in
Transformers", arXiv 1905.07799). Of the :math:`L` positions before a query, slot :math:`L - 1` being the previous one,
head :math:`h` with span parameter :math:`z_h \in [0, 1]` and ramp :math:`R` keeps

.. math::
    m_{hl} = \text{clamp}\Big(\frac{l + 1 - L + z_h L}{R} + 1,\; 0,\; 1\Big), \qquad
    b_{hl} = a_{hl}\, m_{hl}, \qquad
    a'_{hl} = \frac{[b_{hl} \ge t]\, b_{hl}}{\sum_j [b_{hj} \ge t]\, b_{hj} + 10^{-8}}

with :math:`t` the :math:`k`-th largest of the row: the top-k step of the Explicit Sparse Transformer (arXiv
1912.11637), here on probabilities *after* the span mask. Because of the renormalisation this is top-k before the
softmax, up to the span mask.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairseq_ext.modules.band import Band
from fairseq_ext.modules.masks import check_mask
from fairseq_ext.modules.topk import Budget, effective_k, kth_largest, ratio_budget, topk_softmax
from fairseq_ext.precision import compute_dtype, widen

__all__ = ["AdaptiveSpan", "AdaptiveSpanAttention"]

_TRIM_UNIT = 64  # spans are trimmed in steps of this many slots, so that shapes change rarely


class AdaptiveSpan(nn.Module):
    r"""Soft span mask, top-k selection and renormalisation for attention weights over the last ``max_span`` positions.

    Add :meth:`span_loss` to the training loss, call :meth:`clamp_` after every optimiser step, and drop the first
    :meth:`trim_length` keys before computing the scores.

    Args:
        num_heads: heads ``H``.
        max_span: slots ``L`` (8192 in the released enwik8 run).
        ramp: width ``R`` of the soft edge (default and released runs: 32).
        init: initial ``z`` of every head, in ``[0, 1]``; 0 starts with a span of only the ramp.
        k, ratio, minimum: top-k budget, see :func:`~fairseq_ext.modules.topk.effective_k`; a ratio refers
            to the trimmed length, unless :meth:`forward` is given budgets. All zero is dense. The released runs use
            ``k`` of 32 and 8.
        loss_coeff: factor of :meth:`span_loss` (released enwik8 run: 5e-7).

    Shape:
        - attn: ``(B * H, T, L')`` with ``L' <= L`` (the last ``L'`` slots), heads fastest; the output has the same
          shape.

    Raises:
        ValueError: an argument is out of its range, or ``attn`` does not fit ``num_heads`` and ``max_span``.
    """

    def __init__(
        self,
        num_heads: int,
        max_span: int,
        *,
        ramp: int = 32,
        init: float = 0.0,
        k: int = 0,
        ratio: float = 0.0,
        minimum: int = 0,
        loss_coeff: float = 0.0,
    ) -> None:
        super().__init__()
        for name, number in (("num_heads", num_heads), ("max_span", max_span), ("ramp", ramp)):
            if number < 1:
                raise ValueError(f"{name} must be at least 1, got {number}")
        if not 0 <= init <= 1:
            raise ValueError(f"init must be between 0 and 1, got {init}")
        if not 0 <= loss_coeff < math.inf:
            raise ValueError(f"loss_coeff must be 0 or positive, got {loss_coeff}")
        effective_k(max_span, k, ratio, minimum)  # raises on a bad budget
        self.num_heads = num_heads
        self.max_span = max_span
        self.ramp = ramp
        self.init = init
        self.k, self.ratio, self.minimum = k, ratio, minimum
        self.loss_coeff = loss_coeff
        self.current_val = nn.Parameter(torch.empty(num_heads, 1, 1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.constant_(self.current_val, self.init)

    def mask(self, length: int | None = None) -> Tensor:
        """The soft mask ``m`` of the last ``length`` slots (default: all), shape ``(H, 1, length)``."""
        length = self.max_span if length is None else length
        slots = torch.arange(1 - length, 1, device=self.current_val.device)
        # Half precision cannot tell the slots of a long span apart.
        z = self.current_val.to(compute_dtype(self.current_val))
        return ((slots + z * self.max_span) / self.ramp + 1).clamp(0, 1)

    def forward(self, attn: Tensor, normalize: bool = True, budget: Tensor | None = None) -> Tensor:
        """Mask, select and renormalise ``attn``, probabilities over the slots.

        Args:
            attn: see above.
            normalize: ``False`` leaves out the last step, for a caller that normalises jointly with persistent memory
                slots.
            budget: how many slots each row keeps, ``(B * H, T, 1)``. By default the budget that ``k`` or ``ratio``
                gives for all ``L'`` slots, masked ones included (the released rule).
        """
        rows, _, length = attn.shape
        if rows % self.num_heads:
            raise ValueError(f"attn must have batch * {self.num_heads} rows (num_heads), got {rows}")
        if length > self.max_span:
            raise ValueError(f"attn must have at most max_span={self.max_span} slots, got {length}")
        # In half precision the 1e-8 below is 0, and a row without visible weight would be 0 / 0.
        wide = widen(attn).unflatten(0, (rows // self.num_heads, self.num_heads)) * self.mask(length)
        wide = wide.flatten(0, 1)
        k: Budget = effective_k(length, self.k, self.ratio, self.minimum)
        if budget is not None:  # TorchScript gives both branches of an expression one type
            k = budget
        if length and (self.k or self.ratio or budget is not None):
            wide = wide.masked_fill(wide < kth_largest(wide.detach(), k), 0.0)
        if normalize:
            wide = wide / (wide.sum(-1, keepdim=True) + 1e-8)
        return wide.to(attn.dtype)

    def span_loss(self) -> Tensor:
        """``loss_coeff * L * mean_h(z_h)``; summed over the layers and added to the training loss."""
        z = self.current_val.to(compute_dtype(self.current_val))
        return self.loss_coeff * self.max_span * z.mean()

    @torch.no_grad()
    def clamp_(self) -> None:
        """Bring ``z`` back into ``[0, 1]``, after an optimiser step."""
        self.current_val.clamp_(0, 1)

    def current_max_span(self) -> int:
        """Length of the longest head's span, ramp included: ``clamp(ceil(max_h z_h * L) + R, 0, L)``."""
        return self._span(self.current_val.max().item())

    def current_avg_span(self) -> int:
        """Length of the average span, ramp included: :meth:`current_max_span` with the mean of ``z``."""
        return self._span(self.current_val.mean().item())

    def _span(self, z: float) -> int:
        return max(0, min(math.ceil(z * self.max_span) + self.ramp, self.max_span))

    def trim_length(self) -> int:
        """Leading slots that no head looks at, rounded down to a multiple of 64; at least one slot is always left."""
        return min(self.max_span - 1, self.max_span - self.current_max_span()) // _TRIM_UNIT * _TRIM_UNIT

    def cache_size(self) -> int:
        """How many past states to keep: the span, plus 64 so that it can grow before the next states arrive."""
        return min(self.max_span, self.max_span - self.trim_length() + _TRIM_UNIT)

    def extra_repr(self) -> str:
        return (
            f"num_heads={self.num_heads}, max_span={self.max_span}, ramp={self.ramp}, init={self.init}, k={self.k}, "
            f"ratio={self.ratio}, minimum={self.minimum}, loss_coeff={self.loss_coeff}"
        )


class AdaptiveSpanAttention(nn.Module):
    r"""Multi-head attention of each position to the ``max_span`` positions before it, itself excluded.

    .. math::
        s_{il} = \frac{q_i \cdot (k_{i + l} + e_l)}{\sqrt{d_h}}, \quad l = 0, \dots, L - 1, \qquad
        a_i = \text{span}(\text{softmax}(s_i)), \qquad o_i = \sum_l a_{il}\, v_{i + l}

    with :math:`k_j, v_j` the projections of a memory of up to :math:`L` earlier states and the block itself, and
    :math:`e_l` a relative position embedding shared by heads and, usually, by layers. There are no biases.
    (Sukhbaatar et al., arXiv 1905.07799; top-k on top of it: the released code of Zhao et al., arXiv 1912.11637.) Cost
    and memory are :math:`2 T L` scores per head, with :math:`L` no longer than the spans that :class:`AdaptiveSpan`
    does not trim. A position without anything before it gets zeros.

    Args:
        embed_dim: model width ``E``.
        num_heads: heads ``H``; must divide ``embed_dim``.
        max_span: slots ``L``.
        dropout: dropout on the weights (released enwik8 run: 0.3).
        ramp, init, k, ratio, minimum, loss_coeff: see :class:`AdaptiveSpan`, here as ``self.span``; a ratio refers to
            the unmasked slots of each position, so that neither padding nor later positions change which are kept.

    Shape:
        - query: ``(B, T, E)``; memory: ``(B, M + T, E)`` with ``M <= L``, its last ``T`` states those of ``query``'s
          positions; position: ``(1, E / H, L)``; key_padding_mask: ``(B, M + T)``, true at states that no position may
          attend to; output: ``(B, T, E)``.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        max_span: int,
        *,
        dropout: float = 0.0,
        ramp: int = 32,
        init: float = 0.0,
        k: int = 0,
        ratio: float = 0.0,
        minimum: int = 0,
        loss_coeff: float = 0.0,
    ) -> None:
        super().__init__()
        if num_heads < 1 or embed_dim % num_heads:
            raise ValueError(f"num_heads must divide embed_dim={embed_dim}, got {num_heads}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")
        self.num_heads = num_heads
        self.dropout_module = nn.Dropout(dropout)
        self.span = AdaptiveSpan(
            num_heads, max_span, ramp=ramp, init=init, k=k, ratio=ratio, minimum=minimum, loss_coeff=loss_coeff
        )
        self.q_proj = nn.Linear(embed_dim, embed_dim, bias=False)
        self.k_proj = nn.Linear(embed_dim, embed_dim, bias=False)
        self.v_proj = nn.Linear(embed_dim, embed_dim, bias=False)
        self.out_proj = nn.Linear(embed_dim, embed_dim, bias=False)

    def forward(
        self, query: Tensor, memory: Tensor, position: Tensor, key_padding_mask: Tensor | None = None
    ) -> Tensor:
        queries, earlier = query.size(1), memory.size(1) - query.size(1)
        max_span = self.span.max_span
        if not 0 <= earlier <= max_span:
            raise ValueError(
                f"memory must have T to max_span + T states ({queries} to {max_span + queries}), got {memory.size(1)}"
            )
        if position.size(-1) != max_span:
            raise ValueError(f"position must have max_span = {max_span} slots, got {position.size(-1)}")
        visible = max_span - self.span.trim_length()
        unseen = max(0, earlier - visible)  # not even projected
        memory = memory[:, unseen:]
        mask = None if key_padding_mask is None else key_padding_mask[:, unseen:]
        return self.attend(query, self.k_proj(memory), self.v_proj(memory), position, mask, visible)

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        position: Tensor,
        key_padding_mask: Tensor | None,
        visible: int,
    ) -> Tensor:
        """The rest of :meth:`forward`, for a caller that keeps projected keys and values, each ``(B, M + T, E)``.

        ``visible`` is how many positions back any head may look, ``max_span - span.trim_length()``.
        """
        if key_padding_mask is not None:
            check_mask("key_padding_mask", key_padding_mask)
        (batch, queries, _), earlier = query.shape, key.size(1) - query.size(1)
        length = max(0, min(visible, key.size(1) - 1))
        absent = length - earlier  # slots before the first key; below 0, keys before the first slot
        if absent > 0:
            present = key.new_zeros(key.shape[:2], dtype=torch.bool) if key_padding_mask is None else key_padding_mask
            key_padding_mask = F.pad(present, (absent, 0), value=True)
        elif key_padding_mask is not None:
            key_padding_mask = key_padding_mask[:, -absent:]
        q = self._split_heads(self.q_proj(query) / math.sqrt(query.size(-1) // self.num_heads))
        k, v = (self._split_heads(F.pad(x, (0, 0, absent, 0))) for x in (key, value))
        band = Band(queries, max(length, _TRIM_UNIT))
        scores = band.products(q, k) + q @ position[..., position.size(-1) - length :]
        # In float32 from the softmax to the end of the span: the weight that the span leaves visible may be tiny.
        scores = scores.to(compute_dtype(q))
        if key_padding_mask is not None and length:
            hidden = key_padding_mask.unfold(1, length, 1)[:, None, :queries]
            scores = scores.unflatten(0, (batch, self.num_heads)).masked_fill(hidden, -math.inf).flatten(0, 1)
        budget = ratio_budget(scores, self.span.ratio, self.span.minimum) if self.span.ratio else None
        attn = self.dropout_module(self.span(topk_softmax(scores, 0), budget=budget).to(v))
        out = band.sums(attn, v)
        return self.out_proj(out.unflatten(0, (batch, self.num_heads)).transpose(1, 2).flatten(2))

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, x.size(-1) // self.num_heads)).transpose(1, 2).flatten(0, 1)

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}"
