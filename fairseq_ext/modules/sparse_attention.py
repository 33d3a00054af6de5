r"""Top-k selective attention: every query attends only to its ``k`` highest-scoring keys.

The method is the *Explicit Sparse Transformer* (Zhao, Lin, Zhang, Ren, Su, Sun, "Explicit Sparse Transformer:
Concentrated Attention Through Explicit Selection", arXiv 1912.11637). For one row of scores :math:`P_i` over :math:`S`
keys

.. math::
    t_i = \text{the } k\text{-th largest of } P_i, \qquad
    A_{ij} = \frac{[P_{ij} \ge t_i]\, e^{P_{ij}}}{\sum_l [P_{il} \ge t_i]\, e^{P_{il}}}

Three rules hold everywhere in this file:

* **Masks come first.** Scores arrive with ``-inf`` at padded and future keys, so the selection can never pick them.
  (Selecting before masking leaks masked keys: a row whose selected keys are all masked spreads its weight over them.)
* **Ties are kept.** Every key equal to the threshold stays, so a row may keep more than ``k`` keys, often in half
  precision.
* **An empty row is zero.** A row without any unmasked key gets zero weights and a zero gradient, where softmax gives
  NaN.
"""

from __future__ import annotations

import difflib
import math
from typing import Any

import torch
import torch.nn.functional as F
from entmax import entmax15, entmax_bisect, sparsemax
from torch import Tensor

NORMALIZERS = ("softmax", "sparsemax", "entmax15", "entmax-bisect")

_NEG_INF = float("-inf")


def effective_k(num_keys: int, k: int = 0, ratio: float = 0, minimum: int = 0) -> int:
    r"""Number of keys a row of ``num_keys`` keeps; 0 stands for dense attention.

    .. math::
        k_\text{eff} = \min(k, S) \quad\text{or}\quad \min(\max(\lceil S / \text{ratio} \rceil, \text{minimum}), S)

    Prefer the fixed ``k``. With a ratio, ``S`` counts padded keys too, so the result depends on how the batch was
    padded; and in decoder self-attention ``S`` is the whole target in training but only the prefix in generation, so
    the two disagree.

    Args:
        num_keys: length ``S`` of the key axis, padding included.
        k: fixed budget, clamped to ``S``; 0 turns it off. The released runs use 8 (IWSLT14 De-En) and 6
            (IWSLT15 En-Vi).
        ratio: keep one key in ``ratio``; 0 turns it off, otherwise at least 1.
        minimum: lower bound on the budget a ``ratio`` gives; a fixed ``k`` ignores it.

    Raises:
        ValueError: ``k`` or ``minimum`` is negative, ``ratio`` is below 1 and not 0, or both ``k`` and ``ratio`` are
            given.
    """
    if k < 0:
        raise ValueError(f"k must be 0 (dense) or positive, got {k}")
    if minimum < 0:
        raise ValueError(f"minimum must be 0 or positive, got {minimum}")
    if not (ratio == 0 or 1 <= ratio < math.inf):
        raise ValueError(f"ratio must be 0 (off) or at least 1, got {ratio}")
    if k and ratio:
        raise ValueError(f"give k or ratio, not both: got k={k} and ratio={ratio}")
    if ratio:
        k = max(math.ceil(num_keys / ratio), minimum)
    return min(k, num_keys)


class _TopKSoftmax(torch.autograd.Function):
    """Softmax over the entries not below the ``k``-th largest (all entries where ``k`` is None).

    Only the output is kept for the backward pass: dropped entries have probability zero, so the ordinary softmax
    Jacobian at the output already is the Jacobian restricted to the kept set.
    """

    @staticmethod
    def forward(ctx: Any, scores: Tensor, k: int | None, dim: int) -> Tensor:
        if k is None:
            maximum, kept = scores.amax(dim, keepdim=True), None
        else:
            # One call gives the maximum and the threshold. topk is the cheapest selection on CPU for small k: at 128
            # keys kthvalue takes 1.2 and sort 3 times as long, at 1024 keys 5 and 17 times.
            largest = scores.topk(k, dim).values
            maximum, kept = largest.narrow(dim, 0, 1), scores >= largest.narrow(dim, k - 1, 1)
        # The clamp turns the -inf - (-inf) = NaN of a fully masked row into exp(-inf) = 0.
        maximum = maximum.clamp(min=torch.finfo(scores.dtype).min)
        # Half precision is normalised in float32, as fairseq's softmax does; float64 stays float64.
        weights = (scores - maximum if scores.dtype.itemsize > 2 else scores.float() - maximum.float()).exp_()
        if kept is not None:
            weights.mul_(kept)
        weights.div_(weights.sum(dim, keepdim=True).clamp_(min=torch.finfo(weights.dtype).tiny))
        probabilities = weights.to(scores.dtype)
        ctx.save_for_backward(probabilities)
        ctx.dim = dim
        return probabilities

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (probabilities,) = ctx.saved_tensors
        # The kernel behind F.softmax; on CPU 2.5 times faster than p * (g - (g * p).sum(dim)), and differentiable too.
        return torch._softmax_backward_data(grad, probabilities, ctx.dim, probabilities.dtype), None, None


def topk_softmax(scores: Tensor, k: int, dim: int = -1, *, straight_through: bool = False) -> Tensor:
    r"""Softmax over the ``k`` largest scores of each row, zero elsewhere.

    .. math::
        p_j = \frac{[s_j \ge t]\, e^{s_j}}{\sum_l [s_l \ge t]\, e^{s_l}}, \qquad t = k\text{-th largest of } s

    (Zhao et al., arXiv 1912.11637.) The gradient is that of a softmax over the kept entries: dropped entries get none
    and the threshold is a constant. Scores are compared in their own dtype, normalised in float32 (float64 for float64
    scores), and the result is cast back to the dtype of ``scores``.

    Args:
        scores: masked entries must already be ``-inf``; they are never selected, even where fewer than ``k`` others
            exist.
        k: entries to keep; entries tied with the last one are kept too. ``k <= 0`` or ``k >= scores.size(dim)`` is a
            plain softmax.
        dim: the axis to normalise.
        straight_through: send back the gradient of the dense softmax, so that dropped entries can learn to return
            (offered by x-transformers as ``attn_sparse_topk_straight_through``; not in the paper). The forward value
            is the same.

    Shape:
        - scores: any; the output has the same shape.

    Returns:
        Weights that sum to one along ``dim``, or to zero where every score is ``-inf``.

    Example:
        >>> topk_softmax(torch.tensor([0.0, 1.0, 1.0, -1.0]), k=2)
        tensor([0.0000, 0.5000, 0.5000, 0.0000])
    """
    sparse = 0 < k < scores.size(dim)
    if sparse and straight_through:
        dense = _TopKSoftmax.apply(scores, None, dim)
        return _TopKSoftmax.apply(scores.detach(), k, dim) + (dense - dense.detach())
    return _TopKSoftmax.apply(scores, k if sparse else None, dim)


def attention_weights(
    scores: Tensor,
    *,
    normalizer: str = "softmax",
    k: int = 0,
    ratio: float = 0.0,
    minimum: int = 0,
    straight_through: bool = False,
    alpha: float = 1.5,
) -> Tensor:
    r"""Turn masked attention scores into weights over the last axis.

    With ``normalizer="softmax"`` this is :func:`topk_softmax` with the budget of :func:`effective_k`. The other
    normalizers are sparse by themselves, with a data-dependent number of keys, and come from the ``entmax`` library:

    .. math::
        \text{sparsemax: } p = [s - \tau]_+ \qquad
        \text{entmax15: } p = [s/2 - \tau]_+^2 \qquad
        \alpha\text{-entmax: } p = [(\alpha - 1) s - \tau]_+^{1/(\alpha - 1)}

    with :math:`\tau` such that :math:`\sum_j p_j = 1` (sparsemax: Martins & Astudillo, "From Softmax to Sparsemax",
    arXiv 1602.02068; entmax: Peters, Niculae & Martins, "Sparse Sequence-to-Sequence Models", arXiv 1905.05702).

    Args:
        scores: masked entries must already be ``-inf``.
        normalizer: one of ``NORMALIZERS``. ``"entmax-bisect"`` solves for any ``alpha`` by bisection; at its default
            of 1.5 it equals ``"entmax15"``, only slower.
        k, ratio, minimum: the top-k budget, see :func:`effective_k`; all zero is dense.
        straight_through: see :func:`topk_softmax`.
        alpha: the exponent of ``"entmax-bisect"``, above 1; 2 is sparsemax.

    Shape:
        - scores: ``(..., T, S)``; the output has the same shape and dtype. A fully masked row is zero.

    Raises:
        ValueError: the normalizer is unknown, or an option is given that the chosen normalizer cannot use. (The
            released code lets entmax silently win over top-k.)
    """
    if normalizer not in NORMALIZERS:
        close = difflib.get_close_matches(str(normalizer), NORMALIZERS, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"normalizer must be one of {', '.join(NORMALIZERS)}, got {normalizer!r}: did you mean {close!r}?"
        )
    if alpha != 1.5 and normalizer != "entmax-bisect":
        raise ValueError(
            f"alpha is an option of normalizer='entmax-bisect', got alpha={alpha} with normalizer={normalizer!r}"
        )
    k = effective_k(scores.size(-1), k, ratio, minimum)
    if normalizer == "softmax":
        return topk_softmax(scores, k, straight_through=straight_through)
    if k or straight_through:
        option = "k or ratio" if k else "straight_through"
        raise ValueError(
            f"{option} needs normalizer='softmax', got normalizer={normalizer!r}, which chooses its own keys"
        )
    if not alpha > 1:
        raise ValueError(f"alpha must be above 1, got {alpha}")

    # entmax gives NaN on a row of -inf: hand it zeros there, and blank the result, which blanks the gradient as well.
    empty = scores.amax(-1, keepdim=True) == _NEG_INF
    finite = scores.masked_fill(empty, 0.0)
    if finite.dtype.itemsize <= 2:
        finite = finite.float()
    if normalizer == "sparsemax":
        weights = sparsemax(finite, dim=-1)
    elif normalizer == "entmax15":
        weights = entmax15(finite, dim=-1)
    else:
        weights = entmax_bisect(finite, alpha=alpha, dim=-1)
    return weights.to(scores.dtype).masked_fill(empty, 0.0)


def topk_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    k: int,
    scale: float | None = None,
    straight_through: bool = False,
) -> Tensor:
    r"""Scaled dot-product attention over the ``k`` best keys of each query.

    .. math::
        \text{dropout}(\text{topk-softmax}_k(\text{scale} \cdot Q K^\top + M))\, V

    (Zhao et al., arXiv 1912.11637.) Arguments and order are those of ``F.scaled_dot_product_attention``, and with
    ``k=0`` so is the result, except that a query with no key to attend to gives zeros.

    Args:
        query, key, value: the projected states.
        attn_mask: boolean (True: attend) or a float mask that is added to the scores; broadcast to ``(B, H, T, S)``.
        dropout_p: dropout on the weights, without renormalisation. Applied whenever it is above 0: pass 0 in
            evaluation.
        is_causal: query ``i`` sees keys ``0..i`` (aligned at the top left, as torch does); not together with
            ``attn_mask``.
        k: keys to keep for each query; 0 is dense. The released runs use 8 (De-En) and 6 (En-Vi).
        scale: factor on the scores, by default ``1 / sqrt(D)``.
        straight_through: see :func:`topk_softmax`.

    Shape:
        - query: ``(B, H, T, D)``; key: ``(B, H, S, D)``; value: ``(B, H, S, Dv)``; output: ``(B, H, T, Dv)``.

    Raises:
        ValueError: ``k`` is negative, or both ``attn_mask`` and ``is_causal`` are given.
    """
    if attn_mask is not None and is_causal:
        raise ValueError("attn_mask and is_causal=True exclude each other: put the causal mask into attn_mask")
    scale = 1.0 / math.sqrt(query.size(-1)) if scale is None else scale
    scores = (query * scale) @ key.transpose(-2, -1)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, _NEG_INF) if attn_mask.dtype == torch.bool else scores + attn_mask
    weights = attention_weights(scores, k=k, straight_through=straight_through)
    return F.dropout(weights, dropout_p) @ value


def out_of_window_mask(scores: Tensor, k: int, causal: bool = False) -> Tensor:
    """The keys that :func:`out_of_window_softmax` keeps: boolean, shaped like ``scores``, True where a key is kept."""
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    queries, keys = scores.shape[-2:]
    if queries > keys:
        raise ValueError(
            f"scores must have no more queries than keys (self-attention), got {queries} queries and {keys} keys"
        )
    width = k // 2
    positions = torch.arange(keys, device=scores.device)
    offset = positions - positions[keys - queries :, None]
    if causal:
        scores = scores.masked_fill(offset > 0, _NEG_INF)
        window = (offset > -width) & (offset <= 0)
    else:
        window = (offset >= -(width // 2)) & (offset < width - width // 2)
    outside = scores.masked_fill(window, _NEG_INF)
    threshold = outside.topk(min(k - width, keys), -1, sorted=False).values.amin(-1, keepdim=True)
    return (window | (scores >= threshold)) & (scores > _NEG_INF)


def out_of_window_softmax(scores: Tensor, k: int, causal: bool = False) -> Tensor:
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
        k: total budget, at least 1. In the authors' document translation runs 8 was better than 16 and 32.
        causal: use the causal window, and mask future keys.

    Shape:
        - scores: ``(..., T, S)`` with ``T <= S``; the output has the same shape.

    Raises:
        ValueError: ``k`` is below 1, or there are more queries than keys.
    """
    return topk_softmax(scores.masked_fill(~out_of_window_mask(scores, k, causal), _NEG_INF), 0)


def _joint_threshold(values: Tensor, k: int) -> Tensor:
    """The ``H * k``-th largest of ``values`` (B, H, T, S) over heads and keys together: (B, 1, T, 1)."""
    heads, keys = values.size(1), values.size(-1)
    joint = values.transpose(1, 2).flatten(2)
    return joint.topk(heads * min(k, keys), -1, sorted=False).values.amin(-1)[:, None, :, None]


def _softmax_over(values: Tensor, keep: Tensor, valid: Tensor) -> Tensor:
    """Softmax of ``values`` over the kept entries; a row that keeps none of its valid keys is uniform over them."""
    unselected = ~keep.any(-1, keepdim=True)
    # The value is 0 and the gradient that of the identity, as for logits that were all shifted by one huge constant.
    flat = values.masked_fill(~valid, 0.0)
    values = torch.where(unselected, flat - flat.detach(), values)
    return topk_softmax(values.masked_fill(~torch.where(unselected, valid, keep), _NEG_INF), 0)


def ensemble_topk_softmax(scores: Tensor, k: int) -> Tensor:
    r"""Top-k softmax whose budget is shared by the heads: the ``H * k`` best (head, key) pairs of each query are kept.

    .. math::
        t_i = \text{the } Hk\text{-th largest of } \{P_{hij}\}_{h,j}, \qquad
        A_{hi} = \text{softmax over } \{j : P_{hij} \ge t_i\}

    The "ensemble" option of the Explicit Sparse Transformer's Tensor2Tensor release (arXiv 1912.11637). Heads may keep
    different numbers of keys. A head left without any is uniform over its unmasked keys, as it is there.

    Args:
        scores: masked entries must already be ``-inf``.
        k: average budget of a head, at least 1.

    Shape:
        - scores: ``(B, H, T, S)``; the output has the same shape.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    valid = scores > _NEG_INF
    return _softmax_over(scores, (scores >= _joint_threshold(scores, k)) & valid, valid)


def topk_probabilities(scores: Tensor, k: int, *, softmax_again: bool = False, across_heads: bool = False) -> Tensor:
    r"""Dense softmax first, then keep the ``k`` largest probabilities.

    .. math::
        A = \text{softmax}(P), \qquad A'_{ij} = [A_{ij} \ge t_i]\, A_{ij}
        \quad\text{or}\quad A' = \text{softmax over } \{j : A_{ij} \ge t_i\} \text{ of } A_{ij}

    The ``before_softmax=False`` settings of the Explicit Sparse Transformer's Tensor2Tensor release (arXiv
    1912.11637), kept for comparison: its published runs select before the softmax, which is :func:`topk_softmax`.

    Args:
        scores: masked entries must already be ``-inf``; they get no weight (our choice: the release lets the second
            softmax give weight to masked keys of a row with fewer than ``k`` others).
        k: entries to keep in each row, at least 1; ties are kept.
        softmax_again: apply a second softmax to the kept *probabilities*, which flattens them: with ``k`` keys no
            weight exceeds ``e / (e + k - 1)``. Otherwise the weights are left as they are and a row sums to less than
            one.
        across_heads: share the budget between the heads as in :func:`ensemble_topk_softmax`.

    Shape:
        - scores: ``(..., T, S)``, with ``across_heads`` ``(B, H, T, S)``; the output has the same shape.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    valid = scores > _NEG_INF
    probabilities = topk_softmax(scores, 0)
    if across_heads:
        threshold = _joint_threshold(probabilities, k)
    else:
        threshold = probabilities.topk(min(k, scores.size(-1)), -1, sorted=False).values.amin(-1, keepdim=True)
    keep = (probabilities >= threshold) & valid
    if softmax_again:
        return _softmax_over(probabilities, keep, valid)
    return probabilities.masked_fill(~keep, 0.0)
