"""Other ways of selecting the top k keys: around a window, over all heads together, or among the probabilities.

All of them belong to the Explicit Sparse Transformer (Zhao, Lin, Zhang, Ren, Su, Sun, arXiv 1912.11637) or to its
authors' later work. The rules of :mod:`fairseq_ext.modules.topk` hold here too. Every entry *not below* a threshold is
kept, so that NaN is kept and seen. ``SELECTIONS`` lists their names for
:func:`~fairseq_ext.modules.attention_weights`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fairseq_ext.modules.topk import Budget, kth_largest, topk_softmax

__all__ = [
    "OTHER_SELECTIONS",
    "SELECTIONS",
    "ensemble_topk_softmax",
    "out_of_window_mask",
    "out_of_window_softmax",
    "topk_probabilities",
]


def _check_budget(k: Budget) -> None:
    if isinstance(k, int) and k < 1:
        raise ValueError(f"k must be at least 1, got {k}")


def out_of_window_mask(scores: Tensor, k: Budget, causal: bool = False) -> Tensor:
    """The keys that :func:`out_of_window_softmax` keeps: boolean, shaped like ``scores``, True where a key is kept."""
    _check_budget(k)
    queries, keys = scores.shape[-2:]
    if queries > keys:
        raise ValueError(
            f"scores must have no more queries than keys (self-attention), got {queries} queries and {keys} keys"
        )
    beyond: Budget = k
    if isinstance(k, int):  # TorchScript has no arithmetic for values that may be numbers or tensors
        beyond, width = k - k // 2, torch.full((), k // 2, device=scores.device)
    else:
        beyond, width = k - k // 2, k // 2
    positions = torch.arange(keys, device=scores.device)
    offset = positions - positions[keys - queries :, None]
    if causal:
        scores = scores.masked_fill(offset > 0, -math.inf)
        window = (offset > -width) & (offset <= 0)
    else:
        window = (offset >= -(width // 2)) & (offset < width - width // 2)
    outside = scores.masked_fill(window, -math.inf)
    threshold = kth_largest(outside, beyond)
    return (window | ~(scores < threshold)) & (scores != -math.inf)


def out_of_window_softmax(scores: Tensor, k: Budget, causal: bool = False) -> Tensor:
    r"""Softmax over a local window and the best keys outside it ("top-k out of window", for long documents).

    Of a budget ``k``, ``w = k // 2`` keys form a window around query ``i`` and ``k - w`` are the highest-scoring keys
    outside it:

    .. math::
        W_i = \begin{cases} \{i - w + 1, \dots, i\} & \text{causal} \\
              \{i - \lfloor w/2 \rfloor, \dots, i + \lceil w/2 \rceil - 1\} & \text{otherwise} \end{cases}
        \qquad A_i = \text{softmax over } W_i \cup \text{top}_{k - w}(P_i \setminus W_i)

    The split of the budget is that of the method's authors (Zhao, Lin, Zhang, Su, Sun, "Extremely Sparse Transformer
    with Top-k Selective Attention"); they do not say how the window is placed, so the placement above is our choice.
    Ties outside the window are kept; masked keys are in neither part; a fully masked row is zero.

    Args:
        scores: self-attention scores, ``-inf`` at masked keys. With fewer queries than keys, the queries are the last
            positions, so one decoding step gives the last row of the full matrix.
        k: total budget, at least 1, or one budget per row, ``(..., T, 1)``. In the authors' document translation runs
            8 was better than 16 and 32.
        causal: use the causal window, and mask future keys.

    Shape:
        - scores: ``(..., T, S)`` with ``T <= S``; the output has the same shape.

    Raises:
        ValueError: ``k`` is below 1, or there are more queries than keys.
    """
    return topk_softmax(scores.masked_fill(~out_of_window_mask(scores, k, causal), -math.inf), 0)


def _joint_threshold(values: Tensor, k: Budget) -> Tensor:
    """The ``H * k``-th largest of ``values`` (B, H, T, S) over heads and keys together: (B, 1, T, 1)."""
    together = values.size(1) * k if isinstance(k, int) else k.sum(1)
    return kth_largest(values.transpose(1, 2).flatten(2), together)[:, None]


def _softmax_over(values: Tensor, keep: Tensor, valid: Tensor) -> Tensor:
    """Softmax of ``values`` over the kept entries; a row that keeps none of its valid keys is uniform over them."""
    unselected = ~keep.any(-1, keepdim=True)
    # The value is 0 and the gradient that of the identity, as for logits that were all shifted by one huge constant.
    flat = values.masked_fill(~valid, 0.0)
    values = torch.where(unselected, flat - flat.detach(), values)
    return topk_softmax(values.masked_fill(~torch.where(unselected, valid, keep), -math.inf), 0)


def ensemble_topk_softmax(scores: Tensor, k: Budget) -> Tensor:
    r"""Top-k softmax whose budget is shared by the heads: the ``H * k`` best (head, key) pairs of each query are kept.

    .. math::
        t_i = \text{the } Hk\text{-th largest of } \{P_{hij}\}_{h,j}, \qquad
        A_{hi} = \text{softmax over } \{j : P_{hij} \ge t_i\}

    The "ensemble" option of the Explicit Sparse Transformer's Tensor2Tensor release (arXiv 1912.11637). Heads may keep
    different numbers of keys. A head left without any is uniform over its unmasked keys, as in that release.

    Args:
        scores: masked entries must already be ``-inf``.
        k: average budget of a head, at least 1, or one per row, ``(B, H, T, 1)``.

    Shape:
        - scores: ``(B, H, T, S)``; the output has the same shape.
    """
    _check_budget(k)
    valid = scores != -math.inf
    return _softmax_over(scores, ~(scores < _joint_threshold(scores, k)) & valid, valid)


def topk_probabilities(scores: Tensor, k: Budget, *, softmax_again: bool = False, across_heads: bool = False) -> Tensor:
    r"""Dense softmax first, then keep the ``k`` largest probabilities.

    .. math::
        A = \text{softmax}(P), \qquad A'_{ij} = [A_{ij} \ge t_i]\, A_{ij}
        \quad\text{or}\quad A' = \text{softmax over } \{j : A_{ij} \ge t_i\} \text{ of } A_{ij}

    The ``before_softmax=False`` settings of the Explicit Sparse Transformer's Tensor2Tensor release (arXiv
    1912.11637), kept for comparison: its published runs select before the softmax, which is :func:`topk_softmax`.

    Args:
        scores: masked entries must already be ``-inf``; they get no weight (our choice: the release lets the second
            softmax give weight to masked keys of a row with fewer than ``k`` others).
        k: entries to keep in each row, at least 1, or one number per row, ``(..., T, 1)``; ties are kept.
        softmax_again: apply a second softmax to the kept *probabilities*, which flattens them: with ``k`` keys no
            weight exceeds ``e / (e + k - 1)``. Otherwise the weights are left as they are and a row sums to less than
            one.
        across_heads: share the budget between the heads as in :func:`ensemble_topk_softmax`.

    Shape:
        - scores: ``(..., T, S)``, with ``across_heads`` ``(B, H, T, S)``; the output has the same shape.
    """
    _check_budget(k)
    valid = scores != -math.inf
    probabilities = topk_softmax(scores, 0)
    threshold = _joint_threshold(probabilities, k) if across_heads else kth_largest(probabilities, k)
    keep = ~(probabilities < threshold) & valid
    if softmax_again:
        return _softmax_over(probabilities, keep, valid)
    return probabilities.masked_fill(~keep, 0.0)


def _without_causal(function: Callable[..., Tensor], **options: bool) -> Callable[[Tensor, Budget, bool], Tensor]:
    """Adapts ``function`` to the call ``(scores, k, causal)``; only ``window`` uses ``causal``."""
    return lambda scores, k, causal: function(scores, k, **options)


# Selections beside the plain top-k: functions of (masked scores (B, H, T, S), k, causal) that return the weights.
OTHER_SELECTIONS: dict[str, Callable[[Tensor, Budget, bool], Tensor]] = {
    "window": out_of_window_softmax,
    "heads": _without_causal(ensemble_topk_softmax),
    "probabilities": _without_causal(topk_probabilities),
    "probabilities-softmax": _without_causal(topk_probabilities, softmax_again=True),
    "heads-probabilities": _without_causal(topk_probabilities, across_heads=True),
    "heads-probabilities-softmax": _without_causal(topk_probabilities, across_heads=True, softmax_again=True),
}
SELECTIONS = ("scores", *OTHER_SELECTIONS)
