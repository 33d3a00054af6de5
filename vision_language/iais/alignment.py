r"""Alignment of self-attentions: the loss that pulls each map towards its mirror, and ISD, how far they are apart.

For a matched pair, whose words L and regions V should relate to each other alike,

    singular     P_LL[i, i'] = S_VV[a_i, a_i'],  a_i = argmax_j S_LV[i, j],  then softmax over rows
    distributed  P_LL = S_LV S_VL
    loss_L = mKL(S_LL, P_LL)

and the same for regions with L and V in each other's place. The total loss is the ranking loss plus λ loss, where λ is
annealed from about 0 to 1 over the training. The authors' code does not include ISD: what is here
is our reconstruction. mKL is what we call the divergence of that code, :func:`~fairseq_ext.losses.matrix_kl`.

Shuhuai Ren, Junyang Lin, Guangxiang Zhao, Rui Men, An Yang, Jingren Zhou, Xu Sun, Hongxia Yang, "Learning Relation
Alignment for Calibrated Cross-modal Retrieval", ACL-IJCNLP 2021, arXiv:2105.13868.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fairseq_ext.losses import matrix_kl
from fairseq_ext.precision import widen
from vision_language.iais.blocks import AttentionBlocks, block_softmax

__all__ = ["annealing", "iais_loss", "isd", "isd_annotated", "map_entropy", "mirrored_maps"]

KINDS = ("singular", "distributed", "soft")
MODALITIES = ("L", "V", "both")
PSEUDO_NORMS = ("softmax", "renorm", "softmax_scores")
SCHEDULES: dict[str, Callable[[float], float]] = {
    "linear": float,
    "exp": lambda progress: math.exp(5 * (progress - 1)),
    "log": lambda progress: -math.expm1(-5 * progress),
    "const": lambda progress: 1.0,
}
AGGREGATIONS = ("mean", "sum", "max")
DISTRIBUTED_EPS = 1e-6
TINY = 1e-12
LEAST = 1e-30
"""Added to what ``"renorm"`` divides by its sum: a row whose entries are all 0 in float32 gets equal shares."""


def _check(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")


def _widened(blocks: AttentionBlocks) -> AttentionBlocks:
    """bfloat16 products of two maps would be coarser than their differences."""
    return blocks._replace(ll=widen(blocks.ll), vv=widen(blocks.vv), lv=widen(blocks.lv), vl=widen(blocks.vl))


def _is_word(blocks: AttentionBlocks) -> Tensor:
    return torch.arange(blocks.ll.size(1), device=blocks.ll.device) < blocks.words[:, None]


def _mirror(blocks: AttentionBlocks, kind: str, pseudo_norm: str) -> Tensor:
    """P_LL, ``(B, L, L)``, 0 at padding."""
    if kind == "distributed":
        return blocks.lv @ blocks.vl
    carrier, source = blocks.lv.detach(), blocks.vv
    if kind == "singular":
        # One-hot rows pick entries exactly, and the gradient of a product is deterministic on GPUs, a gather's is not.
        carrier = F.one_hot(carrier.argmax(-1), carrier.size(-1)).to(carrier.dtype)
    words = _is_word(blocks)
    if pseudo_norm == "softmax_scores":
        assert blocks.scores is not None
        carrier, source = carrier[:, None].to(blocks.scores[1].dtype), blocks.scores[1]
        return block_softmax(carrier @ source @ carrier.mT, words[:, None], words[:, None]).mean(1)
    carried = carrier @ source @ carrier.mT
    if pseudo_norm == "softmax":
        return block_softmax(carried, words, words)
    # A softmax of logarithms divides by the sum, however small it is, and its gradient is that of the shares.
    return block_softmax((carried + LEAST).log(), words, words)


def _loss(blocks: AttentionBlocks, kind: str, pseudo_norm: str) -> Tensor:
    """loss_L of each pair, ``(B,)``."""
    own, mirror = blocks.ll, _mirror(blocks, kind, pseudo_norm)
    if kind == "soft":
        own = block_softmax(own, _is_word(blocks), _is_word(blocks))
    loss = matrix_kl(own, mirror, blocks.words, eps=DISTRIBUTED_EPS if kind == "distributed" else 0.0, tiny=TINY)
    return loss.where((blocks.words > 0) & (blocks.regions > 0), 0.0)


def _check_mirror(blocks: AttentionBlocks, kind: str, pseudo_norm: str) -> None:
    _check("kind", kind, KINDS)
    _check("pseudo_norm", pseudo_norm, PSEUDO_NORMS)
    if kind != "singular" and pseudo_norm != "softmax":
        raise ValueError(f"pseudo_norm {pseudo_norm!r} is for kind 'singular' alone, got {kind!r}")
    if pseudo_norm == "softmax_scores" and blocks.scores is None:
        raise ValueError("pseudo_norm 'softmax_scores' needs blocks with keep_scores=True")


def iais_loss(
    blocks: AttentionBlocks,
    kind: str = "singular",
    modality: str = "both",
    pseudo_norm: str = "softmax",
    reduction: str = "mean",
) -> Tensor:
    r"""Distance of the intra-modal maps of matched pairs from their mirrors in the other modality (arXiv:2105.13868).

    .. math:: \ell_L = \mathrm{mKL}(S_{LL}, P_{LL}), \qquad \ell_V = \mathrm{mKL}(S_{VV}, P_{VV})

    where mKL is :func:`~fairseq_ext.losses.matrix_kl`. Nothing but the choice of anchors is detached: gradients flow
    through both sides of it.

    Args:
        blocks: the maps of matched pairs only.
        kind: how the mirror is made.

            * ``"singular"``: each word takes the region that it attends to most, :math:`a_i`, and
              :math:`P_{LL}[i, i'] = S_{VV}[a_i, a_{i'}]`, normalised over rows; several words may share a region.
            * ``"distributed"``: :math:`P_{LL} = S_{LV} S_{VL}`, whose rows sum to 1. The map of the other modality is
              not used. Logarithms of the input side of the divergence take :math:`\epsilon = 10^{-6}`.
            * ``"soft"``: :math:`P_{LL} = \mathrm{softmax}(S_{LV} S_{VV} S_{LV}^\top)` with :math:`S_{LV}` detached,
              against :math:`\mathrm{softmax}(S_{LL})`; the variant of a follow-up, CACR, not of this paper.
        modality: ``"L"``, ``"V"``, or ``"both"``, their sum. The released training alternates: V for image-anchored
            samples, L for text-anchored ones.
        pseudo_norm: how a singular mirror is normalised. ``"softmax"``, the default as in the released code, is a
            second softmax over probabilities, so entries of a row differ by a factor of e at most. ``"renorm"`` divides
            by the row sum, and gives a row that is all 0 equal shares; ``"softmax_scores"`` picks from the scores of
            each head, then takes one softmax and averages the heads. The last two are our choice.
        reduction: ``"mean"`` over pairs, ``"sum"`` or ``"none"``.

    Returns:
        A scalar, or ``(B,)`` without reduction; the mean over no pair is 0. A side with a single word or region is 0
        (up to ε), and so is a pair without any.

    Raises:
        ValueError: for unknown options, or ``"softmax_scores"`` without scores.
    """
    _check_mirror(blocks, kind, pseudo_norm)
    _check("modality", modality, MODALITIES)
    _check("reduction", reduction, ("mean", "sum", "none"))
    blocks = _widened(blocks)
    sides = {"L": [blocks], "V": [blocks.swapped()], "both": [blocks, blocks.swapped()]}[modality]
    with torch.autocast(blocks.ll.device.type, enabled=False):
        loss = torch.stack([_loss(side, kind, pseudo_norm) for side in sides]).sum(0)
    if reduction == "none":
        return loss
    return loss.mean() if reduction == "mean" and len(loss) else loss.sum()


def mirrored_maps(
    blocks: AttentionBlocks, kind: str = "singular", pseudo_norm: str = "softmax"
) -> tuple[Tensor, Tensor]:
    """The mirrors P_LL, ``(B, L, L)``, and P_VV, ``(B, V, V)``, that :func:`iais_loss` compares with S_LL and S_VV."""
    _check_mirror(blocks, kind, pseudo_norm)
    blocks = _widened(blocks)
    with torch.autocast(blocks.ll.device.type, enabled=False):
        return _mirror(blocks, kind, pseudo_norm), _mirror(blocks.swapped(), kind, pseudo_norm)


def annealing(progress: float, schedule: str = "exp") -> float:
    r"""Weight λ of :func:`iais_loss` in the total loss.

    Args:
        progress: u = t / T, optimiser steps done over all steps, in [0, 1].
        schedule: ``"exp"``, as released, :math:`e^{5(u-1)}`, from 0.0067 to 1; ``"linear"``, u; ``"log"``,
            :math:`1 - e^{-5u}`; ``"const"``, 1.

    Raises:
        ValueError: for an unknown schedule or a progress outside [0, 1].
    """
    _check("schedule", schedule, tuple(SCHEDULES))
    if not 0 <= progress <= 1:
        raise ValueError(f"progress must be in [0, 1], got {progress}")
    return SCHEDULES[schedule](progress)


def isd(blocks: AttentionBlocks) -> Tensor:
    """ISD of each pair without annotation, ``(B,)``: both sides of singular alignment. Our choice of a proxy.

    Each word is compared through the region that it attends to most, and the reverse, in place of annotated items.

    Args:
        blocks: the self-attention maps of the pairs, as :func:`attention_blocks` gives them.
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

    The released code has no ISD: this is our reconstruction. For items p with words :math:`A_p` and regions
    :math:`B_p`,

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
    with torch.autocast(s_ll.device.type, enabled=False):
        e_ll, e_vv = (
            block_softmax(_aggregate(widen(relations), items, aggregation), present, present)
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
