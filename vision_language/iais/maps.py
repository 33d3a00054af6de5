r"""The four blocks of the last self-attention: words to words, regions to regions, and across.

A single-stream transformer reads the word pieces L and the regions V of a pair as one sequence. With the queries and
keys of its last layer, in head a of A,

    S_RC = 1/A Σ_a softmax over C of (q^a_R k^a_Cᵀ / √d),   (R, C) in {(L, L), (V, V), (L, V), (V, L)}

so every row of every block sums to 1, whatever else is in the sequence.

Shuhuai Ren, Junyang Lin, Guangxiang Zhao, Rui Men, An Yang, Jingren Zhou, Xu Sun, Hongxia Yang, "Learning Relation
Alignment for Calibrated Cross-modal Retrieval", ACL-IJCNLP 2021, arXiv:2105.13868.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

__all__ = ["AttentionBlocks", "IAISHook", "attention_blocks", "block_softmax"]

PARTS = ("query", "key", "num_attention_heads", "attention_head_size")


class AttentionBlocks(NamedTuple):
    """Maps of a batch of pairs, words and regions left-aligned in the order of the sequence, padding exactly 0."""

    ll: Tensor
    """Words to words, ``(B, L, L)``, L the largest number of words in the batch."""
    vv: Tensor
    """Regions to regions, ``(B, V, V)``, V the largest number of regions in the batch."""
    lv: Tensor
    """Words to regions, ``(B, L, V)``."""
    vl: Tensor
    """Regions to words, ``(B, V, L)``."""
    words: Tensor
    """Number of words of each pair, ``(B,)``, int64."""
    regions: Tensor
    """Number of regions of each pair, ``(B,)``, int64."""
    scores: tuple[Tensor, Tensor] | None = None
    """Scores of ``ll`` and ``vv`` by head, ``(B, A, L, L)`` and ``(B, A, V, V)``, undefined at padding; on request."""

    def swapped(self) -> AttentionBlocks:
        """The same blocks with words and regions in each other's place."""
        scores = None if self.scores is None else (self.scores[1], self.scores[0])
        return AttentionBlocks(self.vv, self.ll, self.vl, self.lv, self.regions, self.words, scores)


def block_softmax(scores: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Softmax over some columns, in float32 or better, and 0 everywhere else.

    Args:
        scores: ``(*, R, C)``.
        rows: the rows to keep, bool, ``(*, R)``.
        columns: the columns to normalise over, bool, ``(*, C)``.
    """
    dtype = torch.promote_types(scores.dtype, torch.float32)
    columns = columns[..., None, :]
    masked = scores.masked_fill(~columns, torch.finfo(scores.dtype).min)
    return masked.softmax(-1, dtype=dtype) * (rows[..., :, None] & columns)


def _left_aligned(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Positions of the True entries of each row, ``(B, N)``, N at least 1, and which of them are real."""
    count = mask.sum(1)
    width = max(1, int(count.max()))
    index = mask.logical_not().to(torch.uint8).argsort(dim=1, stable=True)[:, :width]
    return index, torch.arange(width, device=mask.device) < count[:, None]


def attention_blocks(
    hidden: Tensor, attention: nn.Module, text_mask: Tensor, region_mask: Tensor, keep_scores: bool = False
) -> AttentionBlocks:
    r"""The head-averaged blocks :math:`S_{LL}, S_{VV}, S_{LV}, S_{VL}` of one self-attention (arXiv:2105.13868).

    Computed anew from the queries and keys, not from the layer's own probabilities: those are normalised over the whole
    sequence, have gone through dropout, and do not exist in fused kernels. No dropout is applied here. Gradients flow
    into ``hidden`` and the query and key projections.

    Args:
        hidden: the states that enter ``attention``, ``(B, S, H)``.
        attention: a self-attention of the BERT family: ``query`` and ``key`` map H to A·d, and
            ``num_attention_heads`` is A, ``attention_head_size`` d.
        text_mask: the word pieces, bool, ``(B, S)``. The paper leaves [CLS] and [SEP] out.
        region_mask: the regions, bool, ``(B, S)``.
        keep_scores: also return the scores by head, which ``pseudo_norm="softmax_scores"`` of
            :func:`~vision_language.iais.losses.iais_loss` needs.

    Raises:
        ValueError: where a mask does not fit ``hidden``.
    """
    for name, mask in (("text_mask", text_mask), ("region_mask", region_mask)):
        if mask.shape != hidden.shape[:2]:
            expected, found = tuple(hidden.shape[:2]), tuple(mask.shape)
            raise ValueError(f"{name} must have the shape of the sequences, {expected}, got {found}")
    (word_index, is_word), (region_index, is_region) = _left_aligned(text_mask), _left_aligned(region_mask)
    index = torch.cat((word_index, region_index), 1)
    chosen = hidden.gather(1, index[..., None].expand(-1, -1, hidden.size(-1)))
    layer = cast(Any, attention)
    shape = (*chosen.shape[:2], layer.num_attention_heads, layer.attention_head_size)
    query, key = (project(chosen).view(shape).transpose(1, 2) for project in (layer.query, layer.key))
    scores = (query * layer.attention_head_size**-0.5) @ key.mT

    split = word_index.size(1)
    words, regions = (slice(split), is_word[:, None]), (slice(split, None), is_region[:, None])

    def block(rows: tuple[slice, Tensor], columns: tuple[slice, Tensor]) -> Tensor:
        return block_softmax(scores[..., rows[0], columns[0]], rows[1], columns[1]).mean(1)

    return AttentionBlocks(
        ll=block(words, words),
        vv=block(regions, regions),
        lv=block(words, regions),
        vl=block(regions, words),
        words=is_word.sum(1),
        regions=is_region.sum(1),
        scores=(scores[..., :split, :split], scores[..., split:, split:]) if keep_scores else None,
    )


class IAISHook:
    """Gives the blocks of the last self-attention of any single-stream Hugging Face model (arXiv:2105.13868).

    Holds the states that enter the last self-attention of each forward pass, with their graph, until :meth:`blocks` or
    the next pass. Works with every attention implementation, with gradient checkpointing, mixed precision and
    ``DistributedDataParallel`` (whether it gets the wrapped model or the bare one).

    Args:
        model: a model whose layers are of the BERT family (BERT, RoBERTa, VisualBERT, ViLT, ...), or such a
            self-attention itself.

    Attributes:
        attention: the self-attention.
        hidden: the states that entered it, ``(B, S, H)``, or None.

    Raises:
        ValueError: where the model has no such self-attention.

    Example:
        >>> with IAISHook(model) as hook:
        ...     output = model(**batch)  # text, then regions
        ...     blocks = hook.blocks(text_mask, region_mask)
        >>> loss = retrieval_loss(output) + iais_loss(blocks)
    """

    def __init__(self, model: nn.Module) -> None:
        found = [
            module
            for name, module in model.named_modules()
            if all(hasattr(module, part) for part in PARTS)
            and "crossattention" not in f"{name}.{type(module).__name__}".lower()
        ]
        if not found:
            raise ValueError(f"IAISHook: {type(model).__name__} has no self-attention with {', '.join(PARTS)}")
        self.attention = found[-1]
        self.hidden: Tensor | None = None
        self._active = self._with_graph = False
        # Gradient checkpointing runs layers again inside backward, when nobody will ask for the blocks any more and a
        # captured tensor would only keep its graph alive. So the hook listens only while the model itself runs.
        self._handles = [
            model.register_forward_pre_hook(self._begin),
            self.attention.register_forward_pre_hook(self._capture, with_kwargs=True),
            model.register_forward_hook(self._end),
        ]

    def _begin(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self.hidden, self._active = None, True

    def _capture(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._active:
            self.hidden = args[0] if args else kwargs["hidden_states"]
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
        """:func:`attention_blocks` of the last forward pass, whose states are let go.

        Under ``torch.autocast`` call it inside the same context as the model.

        Args:
            text_mask: the word pieces, bool, ``(B, S)``, over the whole sequence of the last layer. In VisualBERT that
                is the text, then the regions; in ViLT an image [CLS] stands between the text and the patches, whose
                order is drawn anew at each pass.
            region_mask: the regions, bool, ``(B, S)``.
            keep_scores: as in :func:`attention_blocks`.
            rows: the pairs to use, such as the matched ones: an index into the batch, applied to masks and states.
                Default: all.

        Raises:
            RuntimeError: where the model has not run since the last call, or where gradients are wanted and
                checkpointing with ``use_reentrant=True`` has hidden the graph.
        """
        hidden, self.hidden = self.hidden, None
        if hidden is None:
            raise RuntimeError("IAISHook: the model has not run since the last blocks()")
        if not self._with_graph and torch.is_grad_enabled() and self.attention.training:
            raise RuntimeError(
                "IAISHook: the model ran without gradients; gradient checkpointing needs use_reentrant=False"
            )
        if rows is not None:
            hidden, text_mask, region_mask = hidden[rows], text_mask[rows], region_mask[rows]
        return attention_blocks(hidden, self.attention, text_mask, region_mask, keep_scores)

    def remove(self) -> None:
        """Detach from the model."""
        for handle in self._handles:
            handle.remove()
        self.hidden = None

    def __enter__(self) -> IAISHook:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.remove()
