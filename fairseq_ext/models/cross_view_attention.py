"""Cross-attention to several encoder layers, for ``--cross-view``."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fairseq_ext.models.attention import IncrementalState, NotExportable, SelectiveAttention, averaged
from fairseq_ext.modules.cross_view import CrossViewFusion

__all__ = ["CrossViewAttention"]


class CrossViewAttention(NotExportable, SelectiveAttention):
    """Cross-attention of one decoder layer to several encoder layers (arXiv 2005.08081).

    ``key`` carries all encoder layers side by side on the channel axis, (S, B, Ne * C), so that fairseq's beam search
    has one tensor to reorder. Each view keeps a cache of its own: as the keys are static, the second view would read
    the first one's keys and values from a shared cache, silently.

    Args:
        fusion: which views this layer reads and how it joins them.
        *args, **kwargs: the arguments of :class:`SelectiveAttention`.
    """

    option = "--cross-view"

    def __init__(self, *args: Any, fusion: CrossViewFusion, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fusion = fusion
        separate = fusion.fusion == "separate" and len(fusion.views) > 1
        self.aux = SelectiveAttention(*args, **kwargs) if separate else None

    def forward(  # type: ignore[override]
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        incremental_state: IncrementalState | None = None,
        need_weights: bool = True,
        static_kv: bool = True,
        need_head_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """``query`` (T, B, C), ``key`` and ``value`` both (S, B, Ne * C); weights (B, T, S) or, by head, (H, B, T, S).

        Raises:
            ValueError: without ``static_kv``: encoder layers do not grow while a sentence is generated.
        """
        if not static_kv:
            raise ValueError("static_kv must be True for the layers of an encoder, got False")
        need_weights = need_weights or need_head_weights

        def attend(query: Tensor, memory: Tensor, mask: Tensor | None, slot: int) -> tuple[Tensor, Tensor | None]:
            return self.attend_view(query, memory, mask, slot, incremental_state, need_weights)

        context, weights = self.fusion(attend, query, self.fusion.select(key), key_padding_mask)
        return context, averaged(weights, need_head_weights)

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
        attention = super().forward if self.aux is None or slot == 0 else self.aux
        return attention(
            query,
            memory,
            memory,
            key_padding_mask=key_padding_mask,
            incremental_state=self.view_state(incremental_state, slot),
            need_weights=need_weights,
            static_kv=True,
            need_head_weights=need_weights,
        )

    def view_state(self, incremental_state: IncrementalState | None, slot: int) -> IncrementalState | None:
        """The part of ``incremental_state`` with one view's keys and values, which is an incremental state itself."""
        if incremental_state is None:
            return None
        return incremental_state.setdefault(self._get_full_incremental_state_key(f"view.{slot}"), {})

    def reorder_incremental_state(self, incremental_state: IncrementalState, new_order: Tensor) -> IncrementalState:
        for slot in range(len(self.fusion.views)):
            attention = super() if self.aux is None or slot == 0 else self.aux
            attention.reorder_incremental_state(self.view_state(incremental_state, slot), new_order)
        return incremental_state
