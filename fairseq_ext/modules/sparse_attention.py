"""Attention whose softmax selects keys: by top-k in one of its forms, or with a sparse normalizer.

The rules for extreme scores, ties and empty rows are those of :mod:`fairseq_ext.modules.topk`.
"""

from __future__ import annotations

import difflib
import math

import torch
import torch.nn.functional as F
from entmax import entmax15, entmax_bisect, sparsemax
from torch import Tensor

from fairseq_ext.kernels import load, usable
from fairseq_ext.modules.masks import check_mask
from fairseq_ext.modules.sparse_variants import OTHER_SELECTIONS, SELECTIONS
from fairseq_ext.modules.topk import below_maximum, effective_k, ratio_budget, ratio_softmax, topk_softmax

__all__ = [
    "NORMALIZERS",
    "attention_scores",
    "attention_weights",
    "blockwise_topk_attention",
    "has_blockwise",
    "repeat_heads",
    "topk_attention",
]

NORMALIZERS = ("softmax", "sparsemax", "entmax15", "entmax-bisect")


def attention_weights(
    scores: Tensor,
    *,
    normalizer: str = "softmax",
    k: int = 0,
    ratio: float = 0.0,
    minimum: int = 0,
    straight_through: bool = False,
    alpha: float = 1.5,
    select: str = "scores",
    causal: bool = False,
) -> Tensor:
    r"""Turn masked attention scores into weights over the last axis.

    With ``normalizer="softmax"`` this is :func:`topk_softmax`, or :func:`~fairseq_ext.modules.topk.ratio_softmax`. The
    other normalizers are sparse by themselves, with a data-dependent number of keys, and come from the ``entmax``
    library:

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
        k, ratio, minimum: the top-k budget, see :func:`effective_k`; a ratio counts the unmasked keys of each row. All
            zero is dense.
        straight_through: see :func:`topk_softmax`.
        alpha: the exponent of ``"entmax-bisect"``, above 1; 2 is sparsemax.
        select: how the budget is spent, one of ``SELECTIONS``: on the best ``"scores"`` of a head, half of it on a
            ``"window"`` around the query (:func:`out_of_window_softmax`, self-attention only), on the best scores of
            all ``"heads"`` together (:func:`~fairseq_ext.modules.sparse_variants.ensemble_topk_softmax`), or on the
            largest ``"probabilities"`` of a dense softmax
            (:func:`~fairseq_ext.modules.sparse_variants.topk_probabilities`). Before this last name, ``heads-`` shares
            the budget between the heads; after it, ``-softmax`` applies a second softmax.
        causal: place the window of ``select="window"`` before the query.

    Shape:
        - scores: ``(..., T, S)``, with ``select`` over heads ``(B, H, T, S)``; the output has the same shape and
          dtype. A fully masked row is zero.

    Raises:
        ValueError: the normalizer is unknown, or an option is given that the chosen normalizer cannot use. (The
            released code lets entmax silently win over top-k.)
    """
    for name, value, allowed in (("normalizer", normalizer, NORMALIZERS), ("select", select, SELECTIONS)):
        if value not in allowed:
            close = difflib.get_close_matches(str(value), allowed, n=1, cutoff=0.0)[0]
            raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}: did you mean {close!r}?")
    if alpha != 1.5 and normalizer != "entmax-bisect":
        raise ValueError(
            f"alpha is an option of normalizer='entmax-bisect', got alpha={alpha} with normalizer={normalizer!r}"
        )
    effective = effective_k(scores.size(-1), k, ratio, minimum)
    if select != "scores" and not (k or ratio):
        raise ValueError(f"select={select!r} needs k or ratio")
    if select != "scores" and straight_through:
        raise ValueError(f"straight_through is an option of select='scores', got select={select!r}")
    if causal and select != "window":
        raise ValueError(f"causal is an option of select='window', got select={select!r}")
    if normalizer == "softmax":
        if select != "scores" and effective:
            # k is not cut to the number of keys: the window is half of it, and would change with the padding.
            return OTHER_SELECTIONS[select](scores, k or ratio_budget(scores, ratio, minimum), causal)
        if ratio:
            return ratio_softmax(scores, ratio, minimum, straight_through)
        return topk_softmax(scores, effective, straight_through=straight_through)
    if k or ratio or straight_through:
        option = "k or ratio" if k or ratio else "straight_through"
        raise ValueError(
            f"{option} needs normalizer='softmax', got normalizer={normalizer!r}, which chooses its own keys"
        )
    if not 1 < alpha < math.inf:
        raise ValueError(f"alpha must be above 1 and finite, got {alpha}")
    return _sparse_weights(scores, normalizer, alpha)


def _sparse_weights(scores: Tensor, normalizer: str, alpha: float) -> Tensor:
    """The normalizers of entmax, which by themselves turn infinite, huge and NaN scores into NaN or an index error."""
    if scores.size(-1) == 0:
        return scores.clone()
    maximum = scores.detach().amax(-1, keepdim=True)
    # A score gets no weight once it is 1 / (alpha - 1) below the maximum, so the distance can end there. The weights do
    # not depend on a common shift, and sums of squares and bisections then meet small numbers only.
    reach = 2 / ({"sparsemax": 2.0, "entmax15": 1.5}.get(normalizer, alpha) - 1)
    unsolvable = ~(maximum > -math.inf)
    distance = below_maximum(scores, maximum).clamp(-reach, reach).masked_fill(unsolvable, 0.0)
    if normalizer == "sparsemax":
        weights = sparsemax(distance, dim=-1)
    elif normalizer == "entmax15":
        weights = entmax15(distance, dim=-1)
    else:
        weights = entmax_bisect(distance, alpha=alpha, dim=-1)
    weights = weights.to(scores.dtype).masked_fill(unsolvable, 0.0)
    return weights.masked_fill(maximum.isnan(), math.nan)


def topk_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    straight_through: bool = False,
    enable_gqa: bool = False,
    *,
    k: int,  # TorchScript takes keyword-only arguments that have no default
) -> Tensor:
    r"""Scaled dot-product attention over the ``k`` best keys of each query.

    .. math::
        \text{dropout}(\text{topk-softmax}_k(\text{scale} \cdot Q K^\top + M))\, V

    (Zhao et al., arXiv 1912.11637.) Arguments and order are those of ``F.scaled_dot_product_attention``, and with
    ``k=0``, or of ``S`` keys and more, so is the result, except that a query with no key to attend to gives zeros.

    Where keys are selected, scores are compared and weighed in the dtype of the queries, to which the kernel rounds
    them as well: from 128 on those of bfloat16 are whole numbers, and beyond 65504 those of float16 are infinite, all
    alike. Torch's attention keeps them in float32.

    Args:
        query, key, value: the projected states.
        attn_mask: boolean (True: attend), or a floating-point mask that is added to the scores, in the dtype of the
            queries; broadcasts to ``(B, H, T, S)``.
        dropout_p: dropout on the weights, without renormalisation. Applied whenever it is above 0: pass 0 in
            evaluation.
        is_causal: query ``i`` sees keys ``0..i`` (aligned at the top left, as torch does); not together with
            ``attn_mask``.
        k: keys to keep for each query; 0 is dense. The released runs use 8 (De-En) and 6 (En-Vi).
        scale: factor on the scores, by default ``1 / sqrt(D)``.
        straight_through: see :func:`topk_softmax`.
        enable_gqa: grouped queries: keys and values may have fewer heads, each shared by G consecutive heads of the
            query.

    Shape:
        - query: ``(B, H, T, D)``; key: ``(B, H, S, D)``; value: ``(B, H, S, Dv)``; output: ``(B, H, T, Dv)``. With
          ``enable_gqa``, key and value: ``(B, H / G, S, ...)``.

    Raises:
        ValueError: ``k`` is negative, ``scale`` is not finite, both ``attn_mask`` and ``is_causal`` are given,
            ``attn_mask`` holds integers, or with ``enable_gqa`` the number of the query's heads is no multiple of the
            others'.
    """
    if attn_mask is not None and is_causal:
        raise ValueError("attn_mask and is_causal=True exclude each other: put the causal mask into attn_mask")
    if attn_mask is not None:
        check_mask("attn_mask", attn_mask, added=True)
        if attn_mask.dtype != torch.bool:
            attn_mask = attn_mask.to(query.dtype)
    if scale is None:
        scale = 1.0 / math.sqrt(max(1, query.size(-1)))
    elif not -math.inf < scale < math.inf:
        raise ValueError(f"scale must be finite, got {scale}")
    if enable_gqa:
        key, value = repeat_heads(query, key), repeat_heads(query, value)
    effective = effective_k(key.size(-2), k)
    if not torch.jit.is_scripting():
        bias = None if attn_mask is None or attn_mask.dtype == torch.bool else attn_mask
        if not straight_through:  # the dense gradient needs all scores
            keep = attn_mask if bias is None else None
            context = blockwise_topk_attention(query, key, value, bias, keep, dropout_p, is_causal, scale, effective)
            if context is not None:
                return context
    scores = attention_scores(query, key, scale, selects=0 < effective < key.size(-2))
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    weights = topk_softmax(scores, effective, straight_through=straight_through)
    return F.dropout(weights, dropout_p).to(value.dtype) @ value


def attention_scores(query: Tensor, key: Tensor, scale: float, selects: bool) -> Tensor:
    """Scores before masks, ``(..., T, S)``: in the dtype of the query, but of half precision in float32 where all keys
    are kept, as torch's attention has them.

    Args:
        query: ``(..., T, D)``.
        key: ``(..., S, D)``.
        scale: factor on the scores.
        selects: whether keys are selected by them.
    """
    if selects or (query.dtype != torch.float16 and query.dtype != torch.bfloat16):
        return (query * scale) @ key.transpose(-2, -1)
    query, key = query.float() * scale, key.float()
    if torch.jit.is_scripting():
        return query @ key.transpose(-2, -1)
    with torch.autocast(query.device.type, enabled=False):
        return query @ key.transpose(-2, -1)


def repeat_heads(query: Tensor, states: Tensor) -> Tensor:
    """Keys or values ``(B, H / G, S, D)`` of grouped queries as ``(B, H, S, D)``, each head G times in a row.

    Raises:
        ValueError: the number of the query's heads is no multiple of that of ``states``.
    """
    if query.dim() < 3 or states.dim() < 3:
        raise ValueError("enable_gqa needs queries, keys and values with heads, (B, H, T, D)")
    heads, shared = query.size(-3), states.size(-3)
    if heads == shared:
        return states
    if shared == 0 or heads % shared != 0:
        raise ValueError(f"the {heads} heads of the query must be a multiple of those of key and value, got {shared}")
    return states.repeat_interleave(heads // shared, dim=-3)


def has_blockwise(states: Tensor, num_keys: int, width: int, k: int) -> bool:
    """Whether :func:`blockwise_topk_attention` may take heads of ``width`` projected from ``states``."""
    return usable(states) and load("topk_attention").fits(num_keys, width, k)


def blockwise_topk_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    keep: Tensor | None,
    dropout_p: float,
    is_causal: bool,
    scale: float,
    k: int,
) -> Tensor | None:
    """The result of :mod:`fairseq_ext.kernels.topk_attention` on CUDA tensors; None where the torch path is needed.

    The torch path is needed wherever kernels are not used at all; in ``float32`` under autocast, which casts products
    only; and for a single query, as in decoding, whose scores are few.
    """
    if query.dim() != 4 or query.size(2) == 1 or not usable(query, key, value):
        return None
    if query.dtype == torch.float32 and torch.is_autocast_enabled(query.device.type):
        return None
    kernel = load("topk_attention")
    if not kernel.takes(query, key, value, bias, keep, dropout_p, k):
        return None
    return kernel.topk_attention(query, key, value, bias, keep, dropout_p, is_causal, scale=scale, k=k)
