r"""Label graph and soft training: one learned matrix mixes the label scores and softens the targets.

    e' = e G,  ŷ = sigmoid(e')                                  the label graph; G is m x m, at first the identity
    s = y G,   y' = softmax(s / τ), or s without a temperature  soft targets from the same graph
    J = H(ŷ, y) + ratio1 H(ŷ, y') - ratio2 ||G - I||²           soft training

Guangxiang Zhao, Jingjing Xu, Qi Zeng, Xuancheng Ren, Xu Sun, "Review-Driven Multi-Label Music Style Classification by
Exploiting Style Correlations", NAACL 2019, arXiv:1808.07604.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairseq_ext.losses import binary_encouraging_loss, halted_focal_loss
from fairseq_ext.losses.common import check_temperature
from fairseq_ext.precision import compute_dtype, widen

__all__ = [
    "LOSSES",
    "POSITIONS",
    "LabelGraph",
    "LossTerms",
    "label_graph_loss",
    "label_graph_loss_terms",
    "soft_targets",
]

LOSSES = ("bce", "encouraging", "halted-focal")
POSITIONS = ("scores", "probabilities")
PROBABILITY_FLOOR = 1e-7


class LabelGraph(nn.Module):
    r"""Passes label scores through a learned label-by-label matrix (arXiv:1808.07604).

    .. math::
        e'_j = \sum_i e_i G_{ij}

    :math:`G_{ij}` is the weight with which label i adds to label j. At the start G is the identity, so the layer
    changes nothing. G is not constrained: it need be neither symmetric nor normalised.

    Args:
        num_labels: number of labels, m.
        position: ``"scores"`` mixes the raw scores, :math:`\hat y = \sigma(e G)`. ``"probabilities"`` mixes after the
            sigmoid, :math:`\hat y = \sigma(e) G`, clamped to [1e-7, 1 - 1e-7]; a clamped label has no gradient. The
            released options know both; the default is our choice.
        noise: standard deviation of normal noise on the initial identity. Default 0, as the released code; the normal
            distribution is our choice.

    Shape:
        scores ``(*, m)``, returns logits ``(*, m)`` whose sigmoid is :math:`\hat y` for either position. Mixed
        probabilities are computed in float32 for half precision, under autocast too, and their logits returned in it.
    """

    def __init__(self, num_labels: int, position: str = "scores", noise: float = 0.0) -> None:
        super().__init__()
        if position not in POSITIONS:
            raise ValueError(f"position must be one of {POSITIONS}, got {position!r}")
        if noise < 0:
            raise ValueError(f"noise must not be negative, got {noise}")
        self.position = position
        self.noise = noise
        self.weight = nn.Parameter(torch.empty(num_labels, num_labels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.eye_(self.weight)
        if self.noise:
            with torch.no_grad():
                self.weight.add_(torch.randn_like(self.weight), alpha=self.noise)

    def forward(self, scores: Tensor) -> Tensor:
        if self.position == "scores":
            return scores @ self.weight
        # In half precision 1 - 1e-7 is 1, whose logit is infinite.
        with torch.autocast(scores.device.type, enabled=False):
            mixed = widen(scores).sigmoid() @ widen(self.weight)
            return torch.logit(mixed, eps=max(PROBABILITY_FLOOR, torch.finfo(mixed.dtype).eps))

    def extra_repr(self) -> str:
        noise = f", noise={self.noise}" if self.noise else ""
        return f"{self.weight.size(0)}, position={self.position!r}{noise}"


def soft_targets(
    target: Tensor, graph: Tensor, temperature: float = 0.0, *, stop_gradient: bool = True, clip: bool = False
) -> Tensor:
    r"""Continuous targets from the label graph: :math:`y' = \mathrm{softmax}(y G / \tau)`, or :math:`y G` for τ = 0.

    Args:
        target: gold labels in {0, 1}, ``(N, m)``, of any type, an array too.
        graph: G, ``(m, m)``.
        temperature: τ. A softmax over the labels sums to 1, whatever the number of gold labels. Default 0, no softmax,
            as in the released code.
        stop_gradient: whether G learns from the predictions only, and not by changing its own targets. Default True, as
            in the released code.
        clip: keep :math:`y G` inside [0, 1]. Without it the targets may leave the range, and the loss of such a label
            is not bounded below. Our choice; off, as no released option does so.

    Returns:
        ``(N, m)``, in float32 where G is of half precision, under autocast too.

    Raises:
        ValueError: a temperature that is negative or not finite, or a graph of another size.
    """
    check_temperature(temperature, or_zero=True)
    target = torch.as_tensor(target, dtype=compute_dtype(graph), device=graph.device)
    if graph.shape != (target.size(-1),) * 2:
        raise ValueError(f"graph must be ({target.size(-1)}, {target.size(-1)}), got {tuple(graph.shape)}")
    with torch.autocast(graph.device.type, enabled=False):
        soft = target @ widen(graph.detach() if stop_gradient else graph)
    if temperature:
        return (soft / temperature).softmax(-1)
    return soft.clamp(0.0, 1.0) if clip else soft


def _binary_losses(logits: Tensor, loss: str, log_end: float) -> tuple[Tensor, Tensor]:
    """The loss of every label if it is gold, and if it is not; in float32 for half precision, as all losses."""
    logits = logits.to(compute_dtype(logits))
    if loss == "bce":
        return F.softplus(-logits), F.softplus(logits)
    one, zero = torch.ones_like(logits), torch.zeros_like(logits)
    if loss == "halted-focal":
        return halted_focal_loss(logits, one, "none"), halted_focal_loss(logits, zero, "none")
    if loss == "encouraging":
        yes = binary_encouraging_loss(logits, one, reduction="none", log_end=log_end)
        return yes, binary_encouraging_loss(logits, zero, reduction="none", log_end=log_end)
    raise ValueError(f"loss must be one of {LOSSES}, got {loss!r}")


class LossTerms(NamedTuple):
    """Three scalars: ``hard``, H(ŷ, y); ``soft``, H(ŷ, y'); ``distance``, the squared Frobenius norm of G - I."""

    hard: Tensor
    soft: Tensor
    distance: Tensor


def label_graph_loss_terms(
    logits: Tensor,
    target: Tensor,
    graph: Tensor,
    *,
    temperature: float = 0.0,
    stop_gradient: bool = True,
    soft_target_clip: bool = False,
    loss: str = "bce",
    log_end: float = 0.75,
) -> LossTerms:
    """The three terms of :func:`label_graph_loss`, unweighted."""
    target = torch.as_tensor(target, device=logits.device)
    if target.shape != logits.shape:
        raise ValueError(f"target must have the shape of logits, {tuple(logits.shape)}, got {tuple(target.shape)}")
    positive, negative = _binary_losses(logits, loss, log_end)

    def against(wanted: Tensor) -> Tensor:
        return (wanted * positive + (1 - wanted) * negative).sum(-1).mean()

    soft = soft_targets(target, graph, temperature, stop_gradient=stop_gradient, clip=soft_target_clip)
    identity = torch.eye(graph.size(0), dtype=compute_dtype(graph), device=graph.device)
    return LossTerms(against(target.to(positive.dtype)), against(soft), (widen(graph) - identity).square().sum())


def label_graph_loss(
    logits: Tensor,
    target: Tensor,
    graph: Tensor,
    *,
    ratio1: float = 1.0,
    ratio2: float = 0.0,
    temperature: float = 0.0,
    stop_gradient: bool = True,
    soft_target_clip: bool = False,
    loss: str = "bce",
    log_end: float = 0.75,
) -> Tensor:
    r"""Loss of soft training with a label graph (arXiv:1808.07604).

    .. math::
        J = H(\hat y, y) + \rho_1 H(\hat y, y') - \rho_2 \lVert G - I \rVert_F^2, \qquad
        H(\hat y, t) = -\sum_j t_j \log \hat y_j + (1 - t_j) \log (1 - \hat y_j)

    H is summed over the labels (our choice: a mean only rescales it) and averaged over the batch. Both terms take the
    scores after the graph, :math:`e'`. The paper leaves open whether soft training takes these or the scores :math:`e`
    before the graph: this is our choice.

    Args:
        logits: logits that :class:`LabelGraph` returns, ``(N, m)``.
        target: gold labels in {0, 1}, ``(N, m)``, of any type, an array too.
        graph: G, ``(m, m)``.
        ratio1: :math:`\rho_1`. Default 1, as in the released code; 0 is the label graph without soft training.
        ratio2: :math:`\rho_2`. The minus sign is the released one: it rewards distance from the identity, and nothing
            bounds that reward, so keep it tiny. Default 0, as in the released code.
        temperature, stop_gradient, soft_target_clip: as in :func:`soft_targets`.
        loss: the binary loss in H. ``"bce"`` is our reading of the paper. ``"encouraging"`` (arXiv:2110.06537) takes
            each label as two classes with logits (0, z); ``"halted-focal"`` is from the same paper. For a target t both
            are t times the loss of a gold label plus 1 - t times the loss of another label; for soft targets this is
            our choice. Default ``"bce"``.
        log_end: probability at which the logarithm of the encouraging loss ends. Default 0.75.

    Example:
        >>> graph = LabelGraph(22)
        >>> scores, target = torch.randn(4, 22), torch.randint(2, (4, 22))
        >>> label_graph_loss(graph(scores), target, graph.weight, temperature=2.0).backward()
    """
    terms = label_graph_loss_terms(
        logits,
        target,
        graph,
        temperature=temperature,
        stop_gradient=stop_gradient,
        soft_target_clip=soft_target_clip,
        loss=loss,
        log_end=log_end,
    )
    return terms.hard + ratio1 * terms.soft - ratio2 * terms.distance
