r"""ISD: how far the relations among words and those among regions are apart in a matched pair. Lower is better.

Shuhuai Ren, Junyang Lin, Guangxiang Zhao, Rui Men, An Yang, Jingren Zhou, Xu Sun, Hongxia Yang, "Learning Relation
Alignment for Calibrated Cross-modal Retrieval", ACL-IJCNLP 2021, arXiv:2105.13868. The authors' code does not
include the metric: this is a reading of its description.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fairseq_ext.losses import matrix_kl
from vision_language.iais.losses import iais_loss
from vision_language.iais.maps import AttentionBlocks, block_softmax

__all__ = ["isd", "isd_annotated", "map_entropy"]

AGGREGATIONS = ("mean", "sum", "max")


def isd(blocks: AttentionBlocks) -> Tensor:
    """ISD of each pair without annotation, ``(B,)``: both sides of singular alignment. Our choice of a proxy.

    Each word is compared through the region that it attends to most, and the reverse, in place of annotated items.
    """
    with torch.no_grad():
        return iais_loss(blocks, "singular", "both", reduction="none")


def map_entropy(blocks: AttentionBlocks) -> Tensor:
    r"""How flat the maps of each pair are, ``(B,)``: 1 where each row attends to all alike, 0 where to one alone.

    .. math:: \frac{1}{n_L + n_V} \Big(\sum_i \frac{H(S_{LL}[i])}{\log n_L} + \sum_j \frac{H(S_{VV}[j])}{\log n_V}\Big)

    with the entropy H of a row. Beside :func:`isd` it tells maps that agree from maps that went flat, whose distance
    is 0 too. A side of one word or region counts as 0. Our choice of a control.
    """
    with torch.no_grad():
        total = 0.0
        for maps, count in ((blocks.ll, blocks.words), (blocks.vv, blocks.regions)):
            entropy = torch.special.entr(maps.double()).sum((-1, -2))
            total = total + entropy / count.clamp_min(2).double().log()
        return (total / (blocks.words + blocks.regions).clamp_min(1)).to(blocks.ll.dtype)


def isd_annotated(
    s_ll: Tensor, s_vv: Tensor, text_items: Tensor, region_items: Tensor, aggregation: str = "mean"
) -> Tensor:
    r"""ISDa: ISD over items that are annotated in both modalities, such as phrases with their boxes (arXiv:2105.13868).

    For items p with words :math:`A_p` and regions :math:`B_p`,

    .. math::
        E^L_{pq} = \mathrm{agg}\, S_{LL}[A_p, A_q], \qquad E^V_{pq} = \mathrm{agg}\, S_{VV}[B_p, B_q], \qquad
        \mathrm{ISDa} = \mathrm{mKL}(\mathrm{softmax}(E^L), \mathrm{softmax}(E^V))

    with the softmax over rows.

    Args:
        s_ll: words to words, ``(*, L, L)``; no item may name padding.
        s_vv: regions to regions, ``(*, V, V)``.
        text_items: which words belong to each item, 0 or 1, ``(*, N, L)``.
        region_items: which regions belong to each item, 0 or 1, ``(*, N, V)``. An annotated box that no region covers
            (by an overlap of half, say) leaves its item empty.
        aggregation: over the entries of an item pair, ``"mean"``, ``"sum"`` or ``"max"``. The default is our choice.

    Returns:
        ``(*)``. Items without a word or without a region are dropped. A pair with fewer than two items left has no
        relation to compare and is nan; :func:`torch.nanmean` averages over the others.

    Raises:
        ValueError: for an unknown aggregation, or items that do not fit the maps.
    """
    if aggregation not in AGGREGATIONS:
        raise ValueError(f"aggregation must be one of {', '.join(AGGREGATIONS)}, got {aggregation!r}")
    for name, items, relations in (("text_items", text_items, s_ll), ("region_items", region_items, s_vv)):
        if items.size(-1) != relations.size(-1):
            raise ValueError(
                f"{name} must have {relations.size(-1)} columns, one for each row of its map, got {items.size(-1)}"
            )
    text, regions = text_items.bool(), region_items.bool()
    present = text.any(-1) & regions.any(-1)
    e_ll, e_vv = (
        block_softmax(_aggregate(relations, items, aggregation), present, present)
        for relations, items in ((s_ll, text), (s_vv, regions))
    )
    count = present.sum(-1)
    return matrix_kl(e_ll, e_vv, count).masked_fill(count < 2, torch.nan)


def _aggregate(relations: Tensor, items: Tensor, aggregation: str) -> Tensor:
    """Entries between all items, ``(*, N, N)``; those of an empty item are finite and mean nothing."""
    if aggregation == "max":
        # Rows of one item, then columns of the other; probabilities are never below the 0 put in the place of the rest.
        by_rows = torch.where(items[..., :, :, None], relations[..., None, :, :], 0).amax(-2)
        return torch.where(items[..., None, :, :], by_rows[..., :, None, :], 0).amax(-1)
    weights = items.to(relations.dtype)
    if aggregation == "mean":
        weights = weights / weights.sum(-1, keepdim=True).clamp_min(1)
    return weights @ relations @ weights.mT
