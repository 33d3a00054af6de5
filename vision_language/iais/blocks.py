r"""The four blocks of the last self-attention: words to words, regions to regions, and across.

A single-stream transformer reads the word pieces :math:`L` and the regions :math:`V` of a pair as one sequence. With
the queries and keys of its last layer, in head :math:`a` of :math:`A`,

.. math:: S_{RC} = \frac{1}{A} \sum_{a=1}^{A} \mathrm{softmax}\left(\frac{q^a_R (k^a_C)^\top}{\sqrt{d}}\right),
    \qquad (R, C) \in \{(L, L), (V, V), (L, V), (V, L)\}

with the softmax over :math:`C`, so every row of every block sums to 1, whatever else is in the sequence.

Shuhuai Ren, Junyang Lin, Guangxiang Zhao, Rui Men, An Yang, Jingren Zhou, Xu Sun, Hongxia Yang, "Learning Relation
Alignment for Calibrated Cross-modal Retrieval", ACL-IJCNLP 2021, arXiv:2105.13868.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from fairseq_ext.precision import compute_dtype, widen

__all__ = ["AttentionBlocks", "attention_blocks", "block_softmax"]


class AttentionBlocks(NamedTuple):
    """Attention maps of a batch of pairs.

    Words and regions are left-aligned, in the order of the sequence; at padding a map is exactly 0.
    """

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
    """Scores behind ``ll`` and ``vv`` by head, ``(B, A, L, L)`` and ``(B, A, V, V)``, undefined at padding; or None."""

    def swapped(self) -> AttentionBlocks:
        """The same blocks with words and regions in each other's place."""
        scores = None if self.scores is None else (self.scores[1], self.scores[0])
        return AttentionBlocks(self.vv, self.ll, self.vl, self.lv, self.regions, self.words, scores)


def block_softmax(scores: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Softmax over some of the columns, in float32 or better; all other entries are 0.

    Args:
        scores: ``(*, R, C)``.
        rows: the rows to keep, bool, ``(*, R)``.
        columns: the columns to normalise over, bool, ``(*, C)``.
    """
    columns = columns[..., None, :]
    masked = scores.masked_fill(~columns, torch.finfo(scores.dtype).min)
    return masked.softmax(-1, dtype=compute_dtype(scores)) * (rows[..., :, None] & columns)


def _left_aligned(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Positions of the True entries of each row, ``(B, N)``, N at least 1, and which of them are real."""
    count = mask.sum(1)
    width = max([1, *count.tolist()])  # of no pairs too
    index = mask.logical_not().to(torch.uint8).argsort(dim=1, stable=True)[:, :width]
    return index, torch.arange(width, device=mask.device) < count[:, None]


def attention_blocks(
    hidden: Tensor, attention: nn.Module, text_mask: Tensor, region_mask: Tensor, keep_scores: bool = False
) -> AttentionBlocks:
    r"""The head-averaged blocks :math:`S_{LL}, S_{VV}, S_{LV}, S_{VL}` of one self-attention (arXiv:2105.13868).

    Computed anew from the queries and keys, not from the layer's own probabilities: those are normalised over the whole
    sequence, have gone through dropout, and do not exist in fused kernels. No dropout is applied here. Gradients flow
    into ``hidden`` and the query and key projections. Of half precision, queries and keys are; scores and maps are in
    float32.

    Args:
        hidden: the states that enter ``attention``, ``(B, S, H)``; B may be 0, as where no pair of a batch is matched.
        attention: a self-attention of the BERT family: ``query`` and ``key`` map H to A·d, and
            ``num_attention_heads`` is A, ``attention_head_size`` d.
        text_mask: the word pieces, bool, ``(B, S)``. The paper leaves [CLS] and [SEP] out.
        region_mask: the regions, bool, ``(B, S)``.
        keep_scores: also return the scores by head, which ``pseudo_norm="softmax_scores"`` of
            :func:`~vision_language.iais.alignment.iais_loss` needs.

    Raises:
        ValueError: where a mask does not fit ``hidden``.
    """
    for name, mask in (("text_mask", text_mask), ("region_mask", region_mask)):
        if mask.shape != hidden.shape[:2]:
            wanted, shape = tuple(hidden.shape[:2]), tuple(mask.shape)
            raise ValueError(f"{name} must have the shape of the sequences, {wanted}, got {shape}")
    (word_index, is_word), (region_index, is_region) = _left_aligned(text_mask), _left_aligned(region_mask)
    index = torch.cat((word_index, region_index), 1)
    chosen = hidden.gather(1, index[..., None].expand(-1, -1, hidden.size(-1)))
    layer = cast(Any, attention)
    shape = (*chosen.shape[:2], layer.num_attention_heads, layer.attention_head_size)
    query, key = (project(chosen).view(shape).transpose(1, 2) for project in (layer.query, layer.key))
    # Scores beyond float16 are infinite in it, and bfloat16 tells those of a sharp map apart no more.
    with torch.autocast(hidden.device.type, enabled=False):
        scores = (widen(query) * layer.attention_head_size**-0.5) @ widen(key).mT

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
