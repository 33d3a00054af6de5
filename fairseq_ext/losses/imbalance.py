r"""Losses for classes of unequal size: re-weighted and logit-adjusted cross-entropy, focal, class-balanced softmax.

Each takes the number n_c of training examples per class, and optionally a weight per example:

    J = 1/N Σ_v w_v l_v

The quantity weights inside l_v and the weights w_v multiply. With ReNode's weights (Deli Chen, Yankai Lin, Guangxiang
Zhao, Xuancheng Ren, Peng Li, Jie Zhou, Xu Sun, "Topology-Imbalance Learning for Semi-Supervised Node Classification",
arXiv:2110.04099) J is that paper's objective. The mean is over the examples: unlike ``F.cross_entropy`` with class
weights it does not divide by the sum of the weights, so that a weight means the same in every batch.

A class without examples and a target that is no class are a ``ValueError`` on a CPU. On a GPU, where each such check
would have to wait for the card, and under ``torch.compile`` the loss is then NaN.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from fairseq_ext.losses.common import (
    as_indices,
    check_shape,
    log_complement,
    one_hot,
    reduce_weighted,
    require,
    sigmoid_power,
)
from fairseq_ext.precision import compute_dtype

__all__ = [
    "class_balanced_softmax_loss",
    "class_weights",
    "focal_loss",
    "logit_adjusted_cross_entropy",
    "reweighted_cross_entropy",
]


def class_weights(class_counts: Tensor, beta: float = 0.9999) -> Tensor:
    r"""Weights of classes by their effective number of examples.

    .. math::
        \omega_c \propto \frac{1 - \beta}{1 - \beta^{n_c}}, \qquad \sum_c \omega_c = C

    Yin Cui, Menglin Jia, Tsung-Yi Lin, Yang Song, Serge Belongie, "Class-Balanced Loss Based on Effective Number of
    Samples", arXiv:1901.05555. Give them to ``F.cross_entropy`` or :func:`~fairseq_ext.losses.encouraging_loss` as
    ``weight``, or weigh the bonus alone with :func:`~fairseq_ext.losses.encouraging_loss_terms`.

    Args:
        class_counts: n, ``(C)``, all positive.
        beta: 0 weights all classes alike; towards 1 the weights become the inverse frequencies. Default 0.9999.

    Returns:
        ``(C)``, in the dtype of floating-point counts (float32 at least), else float32.

    Raises:
        ValueError: a beta outside [0, 1), or a class without examples.

    Example:
        >>> class_weights(torch.tensor([1000, 100, 10]), beta=0.99)
        tensor([0.2365, 0.3731, 2.3904])
    """
    _check_counts(class_counts)
    return _weights(class_counts, beta)


def _weights(class_counts: Tensor, beta: float) -> Tensor:
    require("beta", beta, 0 <= beta < 1, "in [0, 1)")
    weight = -1 / torch.expm1(class_counts.double() * torch.tensor(beta, dtype=torch.double).log())
    dtype = torch.promote_types(class_counts.dtype, torch.float32)
    return (weight * (len(weight) / weight.sum())).to(dtype)


def reweighted_cross_entropy(
    input: Tensor,
    target: Tensor,
    class_counts: Tensor,
    sample_weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Cross-entropy weighted by the inverse class frequency.

    .. math::
        l = -\frac{\bar n}{n_y} \log p_y, \qquad \bar n = \frac{1}{C} \sum_c n_c

    Args:
        input: logits ``(N, C)``.
        target: class indices ``(N)``.
        class_counts: n, ``(C)``, all positive.
        sample_weight: w, ``(N)``. Default: ones.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Raises:
        ValueError: an argument of a wrong shape, a target that is no class, or a class without examples.
    """
    target, counts = _check(input, target, class_counts)
    loss = F.cross_entropy(input.to(counts.dtype), target, reduction="none")
    return reduce_weighted((counts.mean() / counts)[target] * loss, sample_weight, reduction)


def logit_adjusted_cross_entropy(
    input: Tensor,
    target: Tensor,
    class_counts: Tensor,
    sample_weight: Tensor | None = None,
    reduction: str = "mean",
    *,
    tau: float = 1.0,
) -> Tensor:
    r"""Cross-entropy of logits that are shifted by the logarithm of the class frequency, in training only.

    .. math::
        l = -\log \frac{n_y^\tau e^{z_y}}{\sum_c n_c^\tau e^{z_c}}

    so that a rare class needs a larger margin over a frequent one than the other way round. Aditya Krishna Menon,
    Sadeep Jayasumana, Ankit Singh Rawat, Himanshu Jain, Andreas Veit, Sanjiv Kumar, "Long-tail learning via logit
    adjustment", arXiv:2007.07314.

    Args:
        input, target, class_counts, sample_weight, reduction: as :func:`reweighted_cross_entropy`.
        tau: strength of the shift. Default 1, as in the paper; 0 is cross-entropy.

    Raises:
        ValueError: as :func:`reweighted_cross_entropy`, or a negative tau.
    """
    require("tau", tau, 0 <= tau < math.inf, "at least 0")
    target, counts = _check(input, target, class_counts)
    logits = input.to(counts.dtype) + tau * counts.log()
    return reduce_weighted(F.cross_entropy(logits, target, reduction="none"), sample_weight, reduction)


def focal_loss(
    input: Tensor,
    target: Tensor,
    class_counts: Tensor,
    sample_weight: Tensor | None = None,
    reduction: str = "mean",
    *,
    gamma: float = 2.0,
) -> Tensor:
    r"""Sigmoid focal loss, one binary problem per class, weighted by the inverse class frequency.

    .. math::
        l = \frac{\bar n}{n_y} \sum_c (1 - q_c)^\gamma (-\log q_c), \qquad
        q_c = \sigma(z_c) \text{ for } c = y, \quad \sigma(-z_c) \text{ otherwise}

    Tsung-Yi Lin, Priya Goyal, Ross Girshick, Kaiming He, Piotr Dollár, "Focal Loss for Dense Object Detection",
    arXiv:1708.02002. The class weight in front and the sum over the classes come from ReNode's released code.

    Args:
        input, target, class_counts, sample_weight, reduction: as :func:`reweighted_cross_entropy`.
        gamma: focusing exponent. Default 2, as in the paper; 0 is the sum of the binary cross-entropies.

    Raises:
        ValueError: as :func:`reweighted_cross_entropy`, or a negative gamma.
    """
    require("gamma", gamma, 0 <= gamma < math.inf, "at least 0")
    target, counts = _check(input, target, class_counts)
    logits = input.to(counts.dtype)
    wrong = logits * (1 - 2 * one_hot(target, logits))
    loss = (sigmoid_power(wrong, gamma) * F.softplus(wrong)).sum(1)
    return reduce_weighted((counts.mean() / counts)[target] * loss, sample_weight, reduction)


def class_balanced_softmax_loss(
    input: Tensor,
    target: Tensor,
    class_counts: Tensor,
    sample_weight: Tensor | None = None,
    reduction: str = "mean",
    *,
    beta: float = 0.9999,
) -> Tensor:
    r"""Binary cross-entropy of the softmax probabilities, weighted by the effective number of examples.

    .. math::
        l = \frac{\omega_y}{C} \left( -\log p_y - \sum_{c \ne y} \log(1 - p_c) \right)

    with the :func:`class_weights` :math:`\omega` of Cui et al., arXiv:1901.05555. The mean over the classes is that of
    ReNode's released code, which forms ``1 - p`` in float32: beyond p = 1 - 6e-8 that is 0, its logarithm is cut at
    -100, and the gradient is lost. Here :math:`\log(1 - p_c)` of the most probable class comes from a log-sum-exp of
    the others, finite and with a gradient for any logits.

    Args:
        input, target, class_counts, sample_weight, reduction: as :func:`reweighted_cross_entropy`.
        beta: of :func:`class_weights`.

    Raises:
        ValueError: as :func:`reweighted_cross_entropy`, a beta outside [0, 1), or fewer than two classes.
    """
    target, counts = _check(input, target, class_counts)
    if input.size(1) < 2:
        raise ValueError("input must have at least 2 classes: 1 - p of the only class is 0")
    weight = _weights(counts, beta)

    logits = input.to(counts.dtype)
    log_p = logits.log_softmax(1)
    loss = -torch.where(one_hot(target, logits).bool(), log_p, log_complement(log_p, log_p.exp())).mean(1)
    return reduce_weighted(weight[target] * loss, sample_weight, reduction)


def _check(input: Tensor, target: Tensor, class_counts: Tensor) -> tuple[Tensor, Tensor]:
    """``target`` as indices, and ``class_counts`` in the dtype of the computation: float32 for half-precision input."""
    if input.dim() != 2 or target.shape != input.shape[:1]:
        raise ValueError(
            f"input must be (N, C) and target (N), got input {tuple(input.shape)} and target {tuple(target.shape)}"
        )
    target = as_indices(target, input.shape[:1])
    check_shape("class_counts", class_counts, input.shape[1:], f"one number for each of {input.size(1)} classes")
    counts = class_counts.to(input.device, compute_dtype(input))
    if input.device.type != "cpu" or torch.compiler.is_compiling():  # asking would wait for the GPU, or end the graph
        fit = (counts > 0).all() & ((target >= 0) & (target < input.size(1))).all()
        return target, counts.where(fit, math.nan)
    _check_counts(class_counts)
    if len(target):
        lowest, highest = int(target.min()), int(target.max())
        if lowest < 0 or highest >= input.size(1):
            raise ValueError(f"target must be classes from 0 to {input.size(1) - 1}, got {lowest} to {highest}")
    return target, counts


def _check_counts(class_counts: Tensor) -> None:
    if not torch.compiler.is_compiling() and not bool((class_counts > 0).all()):
        raise ValueError(f"class_counts: class {int((class_counts <= 0).nonzero()[0])} has no example")
