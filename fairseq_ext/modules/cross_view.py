r"""Cross-view decoding: which encoder layers a decoder layer reads, and how it combines them.

Liu et al., *Layer-Wise Cross-View Decoding for Sequence-to-Sequence Learning*, arXiv 2005.08081.

With :math:`E_j` the output of encoder layer :math:`j = 1..N_e` (the embedding output is never a view) and
:math:`G = E_{N_e}` the global view, decoder layer :math:`i = 1..N_d` (1 is next to the target embeddings) reads

============  ==========================================  =====================================
strategy      views of layer i for Ne = Nd = N            in words
============  ==========================================  =====================================
none          (G)                                         the Transformer
gca           (G, E_{N-i+1})                              granularity consistent: coarse to fine
gpa           (G, E_i)                                    granularity parallel: same index
fga           (G, E_1)                                    fine-grained
fma           (E_1, ..., E_N)                             full matching
ama           (E_1, ..., E_N), weighted by the query      adaptive matching
ama-static    (E_1, ..., E_N), weighted by the layer      transparent attention (Bapna et al. 2018)
============  ==========================================  =====================================

The strategies are those of the paper's figure. How the views are combined, what the attention of ``ama`` computes,
how view norms are shared and the schedule for unequal depths are **our choice**: the authors published no code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from fairseq_ext.modules.topk import topk_softmax

__all__ = ["FUSIONS", "STRATEGIES", "CrossViewFusion", "check_cross_view", "view_schedule"]

STRATEGIES = ("none", "gca", "gpa", "fga", "fma", "ama", "ama-static")
_OF_TWO = ("gate", "sequential", "separate")
FUSIONS = ("mean", "sum", "concat", *_OF_TWO)

Attend = Callable[[Tensor, Tensor, Tensor | None, int], tuple[Tensor, Tensor | None]]


def check_cross_view(strategy: str, fusion: str = "mean", use_global: bool = True) -> None:
    """Raises ValueError for combinations that have no meaning."""
    if strategy not in STRATEGIES:
        raise ValueError(f"cross-view strategy must be one of {', '.join(STRATEGIES)}, got {strategy!r}")
    if fusion not in FUSIONS:
        raise ValueError(f"cross-view fusion must be one of {', '.join(FUSIONS)}, got {fusion!r}")
    if strategy == "fma" and fusion in _OF_TWO:
        raise ValueError(f"cross-view fusion {fusion!r} joins at most two views; fma takes mean, sum or concat")
    if strategy in ("none", "ama", "ama-static") and fusion != "mean":
        raise ValueError(f"cross-view fusion {fusion!r} does not apply to cross-view {strategy!r}")
    if not use_global and strategy not in ("gca", "gpa", "fga"):
        raise ValueError(f"cross-view {strategy!r} has no global view to leave out; gca, gpa and fga have")
    if not use_global and fusion != "mean":
        raise ValueError(f"cross-view fusion {fusion!r} needs two views; without the global view there is one")


def view_schedule(
    strategy: str, num_encoder_layers: int, num_decoder_layers: int, use_global: bool = True
) -> list[tuple[int, ...]]:
    r"""The encoder layers (1-based) that each decoder layer reads, global view first.

    For unequal depths the end points are kept and the layers between are spread evenly (our choice), with
    :math:`r(x) = \lfloor x + 1/2 \rfloor`:
    :math:`a_{gca}(i) = 1 + r\big((N_e - 1)(N_d - i)/(N_d - 1)\big)` and
    :math:`a_{gpa}(i) = 1 + r\big((N_e - 1)(i - 1)/(N_d - 1)\big)`; :math:`a = 1` for a single decoder layer.
    A second view that is the global one is dropped.

    Args:
        strategy: one of :data:`STRATEGIES`.
        num_encoder_layers: :math:`N_e`.
        num_decoder_layers: :math:`N_d`.
        use_global: ``False`` leaves only the second view (an ablation; for gpa the layer-wise attention of
            He et al. 2018).

    Returns:
        One tuple for each decoder layer, bottom first.

    Example:
        >>> view_schedule("gca", 6, 3)
        [(6,), (6, 4), (6, 1)]
    """
    check_cross_view(strategy, use_global=use_global)
    if num_encoder_layers < 1 or num_decoder_layers < 1:
        raise ValueError(f"cross-view needs layers on both sides, got {num_encoder_layers} and {num_decoder_layers}")
    last = num_encoder_layers
    if strategy == "none":
        return [(last,)] * num_decoder_layers
    if strategy in ("fma", "ama", "ama-static"):
        return [tuple(range(1, last + 1))] * num_decoder_layers

    def spread(steps: int) -> int:
        if num_decoder_layers == 1:
            return 1
        # integer form of floor(x + 1/2): no rounding of halves to even
        return 1 + (2 * (last - 1) * steps + num_decoder_layers - 1) // (2 * (num_decoder_layers - 1))

    schedule: list[tuple[int, ...]] = []
    for layer in range(1, num_decoder_layers + 1):
        view = {"gca": spread(num_decoder_layers - layer), "gpa": spread(layer - 1), "fga": 1}[strategy]
        if not use_global:
            schedule.append((view,))
        else:
            schedule.append((last,) if view == last else (last, view))
    return schedule


class CrossViewFusion(nn.Module):
    r"""Combines the cross-attention contexts :math:`c_v = \mathrm{MHA}_i(h, v)` of one decoder layer's views.

    ==========  =====================================================================  ====================
    fusion      context                                                                extra parameters
    ==========  =====================================================================  ====================
    mean        :math:`\frac1m \sum_v c_v`, one set of projections                     0
    sum         :math:`\sum_v c_v`, one set of projections                             0
    concat      :math:`\mathrm{MHA}_i(h, [v_1; ...; v_m])`: one joint softmax           0
    gate        :math:`(1-g) c_G + g c_A`, :math:`g = \sigma(s_i)`, :math:`s_i` init 0  1 per layer
    sequential  two residual sub-layers, G then A (the decoder layer runs them)        2d per layer
    separate    mean, the second view with projections of its own                      4d^2 + 4d per layer
    ==========  =====================================================================  ====================

    A layer of a single view has none of these parameters (our choice).

    ``ama``: :math:`u_{t,j} = (W_A h_t) \cdot c_{t,j} / \sqrt d`, :math:`\alpha_t = \mathrm{softmax}_j(u_t)`,
    :math:`C_t = \sum_j \alpha_{t,j} c_{t,j}`, one :math:`W_A` for the whole decoder.
    ``ama-static``: :math:`C = \mathrm{MHA}_i(h, \sum_j \mathrm{softmax}(S_i)_j E_j)`.

    The module does not own an attention: :meth:`forward` calls the one it is given, once for each view.

    Args:
        embed_dim: width :math:`d` of the queries and of every view.
        views: the 1-based encoder layers of this decoder layer, a row of :func:`view_schedule`.
        strategy: one of :data:`STRATEGIES`.
        fusion: one of :data:`FUSIONS`; mean by default (our choice, see the module's docstring).
        ama_proj: the :math:`W_A` that all decoder layers share; required by, and only used for, ``ama``.

    Shape:
        - query :math:`(T, B, d)`; each view :math:`(S, B, d)`; key_padding_mask :math:`(B, S)`, true at padding
        - context :math:`(T, B, d)`; attention map :math:`(H, B, T, S)`: that of the global view (mean, sum, gate,
          separate), of :math:`E_{N_e}` (fma), folded back to S (concat), or weighted like the contexts (ama)

    Raises:
        ValueError: for a combination that :func:`check_cross_view` refuses, ``ama`` without ``ama_proj``, no views or
            numbers below 1, or more than two views where the fusion joins two; in :meth:`forward`, for two views with
            ``sequential``.
    """

    def __init__(
        self,
        embed_dim: int,
        views: Sequence[int],
        strategy: str = "gca",
        fusion: str = "mean",
        ama_proj: nn.Linear | None = None,
    ) -> None:
        super().__init__()
        check_cross_view(strategy, fusion)
        if not views or min(views) < 1:
            raise ValueError(f"views must be encoder layers, 1 at the bottom, got {tuple(views)}")
        if fusion in _OF_TWO and len(views) > 2:
            raise ValueError(f"cross-view fusion {fusion!r} joins at most two views, got {tuple(views)}")
        if strategy == "ama" and ama_proj is None:
            raise ValueError("cross-view 'ama' needs ama_proj, the projection that all decoder layers share")
        self.embed_dim = embed_dim
        self.views = tuple(views)
        self.strategy = strategy
        self.fusion = fusion
        self.ama_proj = ama_proj if strategy == "ama" else None
        gated = fusion == "gate" and len(self.views) == 2
        self.gate = nn.Parameter(torch.empty(())) if gated else None
        self.mix = nn.Parameter(torch.empty(len(self.views))) if strategy == "ama-static" else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for parameter in (self.gate, self.mix):
            if parameter is not None:
                nn.init.zeros_(parameter)

    def select(self, packed: Tensor) -> list[Tensor]:
        """This layer's views, out of all encoder layers side by side on the channel axis, :math:`(S, B, N_e d)`."""
        return [packed[..., (view - 1) * self.embed_dim : view * self.embed_dim] for view in self.views]

    def forward(
        self, attend: Attend, query: Tensor, views: Sequence[Tensor], key_padding_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """``attend(query, memory, key_padding_mask, slot)`` returns a context and its map (or ``None``); ``slot``
        numbers the memories of this layer, so that a decoder can keep one cache of keys and values for each."""
        if self.mix is not None:
            memory = (torch.stack(list(views), dim=-1) * self.mix.softmax(dim=0)).sum(dim=-1)
            return attend(query, memory, key_padding_mask, 0)
        if self.fusion == "sequential" and len(views) > 1:
            raise ValueError("cross-view fusion 'sequential' is two sub-layers of a decoder layer, not one context")
        if self.fusion == "concat":
            return self._joint_softmax(attend, query, views, key_padding_mask)

        contexts, maps = zip(
            *[attend(query, view, key_padding_mask, slot) for slot, view in enumerate(views)], strict=True
        )
        if self.ama_proj is not None:
            return self._adaptive(self.ama_proj, query, contexts, maps)
        returned_map = maps[-1] if self.strategy == "fma" else maps[0]
        if len(contexts) == 1:
            return contexts[0], returned_map
        if self.gate is not None:
            return torch.lerp(contexts[0], contexts[1], self.gate.sigmoid().to(contexts[0])), returned_map
        if self.fusion != "sum":
            contexts = tuple(context / len(contexts) for context in contexts)  # before the sum, which may overflow
        return sum(contexts[1:], contexts[0]), returned_map

    @staticmethod
    def _joint_softmax(
        attend: Attend, query: Tensor, views: Sequence[Tensor], key_padding_mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        mask = None if key_padding_mask is None else key_padding_mask.repeat(1, len(views))
        context, weights = attend(query, torch.cat(list(views), dim=0), mask, 0)
        if weights is not None:
            weights = weights.unflatten(-1, (len(views), views[0].size(0))).sum(dim=-2)
        return context, weights

    @staticmethod
    def _adaptive(
        ama_proj: nn.Linear, query: Tensor, contexts: Sequence[Tensor], maps: Sequence[Tensor | None]
    ) -> tuple[Tensor, Tensor | None]:
        stacked = torch.stack(list(contexts), dim=-1)  # (T, B, d, m)
        scores = torch.einsum("tbd,tbdm->tbm", ama_proj(query) / math.sqrt(query.size(-1)), stacked)
        alpha = topk_softmax(scores, 0)  # in half precision a score may be infinite
        context = torch.einsum("tbm,tbdm->tbd", alpha, stacked)
        present = [weights for weights in maps if weights is not None]
        if not present:
            return context, None
        stacked_maps = torch.stack(present, dim=-1)
        # fairseq's maps are float32 whatever the model computes in
        return context, torch.einsum("tbm,hbtsm->hbts", alpha.to(stacked_maps), stacked_maps)

    def extra_repr(self) -> str:
        return f"views={self.views}, strategy={self.strategy}, fusion={self.fusion}"
