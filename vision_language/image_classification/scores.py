r"""Scores made from the logits of an image: margins, log-odds, energies, calibration.

All are computed in float64 from stored logits. A softmax probability is exactly 1 once a margin passes 17 (float32) or
37 (float64), and a full logarithmic bonus reaches such margins within a few epochs. Scores that rank images are
therefore differences of logits, which never saturate.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from fairseq_ext.losses.common import check_temperature
from fairseq_ext.precision import compute_dtype
from vision_language.calibration import reliability

__all__ = ["OOD_SCORES", "expected_calibration_error", "log_odds", "margin", "ood_scores"]


def log_odds(logits: Tensor, labels: Tensor) -> Tensor:
    r""":math:`\log \frac{p_y}{1 - p_y} = z_y - \log \sum_{j \ne y} e^{z_j}` of every image.

    Args:
        logits: ``(N, C)`` with at least two classes.
        labels: y, ``(N)``.

    Returns:
        ``(N)``, in the dtype of ``logits``, for half precision in float32.
    """
    at_label, others = _apart(logits, labels)
    return at_label - others.logsumexp(1)


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    r""":math:`z_y - \max_{j \ne y} z_j` of every image: negative where the prediction is wrong.

    Args:
        logits: ``(N, C)`` with at least two classes.
        labels: y, ``(N)``.

    Returns:
        ``(N)``, in the dtype of ``logits``, for half precision in float32.
    """
    at_label, others = _apart(logits, labels)
    return at_label - others.amax(1)


def _apart(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    if logits.dim() != 2 or logits.size(1) < 2 or labels.shape != logits.shape[:1]:
        shapes = f"logits {tuple(logits.shape)} and labels {tuple(labels.shape)}"
        raise ValueError(f"logits must be (N, C) with at least 2 classes and labels (N), got {shapes}")
    index = labels[:, None]
    logits = logits.to(compute_dtype(logits))
    return logits.gather(1, index)[:, 0], logits.scatter(1, index, -math.inf)


def _msp(logits: Tensor, temperature: float) -> Tensor:
    return log_odds(logits / temperature, logits.argmax(1))


def _energy(logits: Tensor, temperature: float) -> Tensor:
    return temperature * (logits / temperature).logsumexp(1)


def _max_logit(logits: Tensor, temperature: float) -> Tensor:
    return logits.amax(1)


def _margin(logits: Tensor, temperature: float) -> Tensor:
    return margin(logits, logits.argmax(1))


OOD_SCORES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "msp": _msp,
    "energy": _energy,
    "max-logit": _max_logit,
    "margin": _margin,
}
"""Scores by name; higher means more like the training set."""


def ood_scores(logits: Tensor, score: str = "msp", temperature: float = 1.0) -> Tensor:
    r"""How much an image looks like the training set, from its logits; higher is more.

    ==============  ============================================================================================
    ``msp``         :math:`\max_c p_c` of :math:`p = \mathrm{softmax}(z / T)`, as its log-odds: the same order without
                    the ties of rounded probabilities (Hendrycks & Gimpel, arXiv:1610.02136)
    ``energy``      :math:`T \log \sum_c e^{z_c / T}`, the negative free energy (Liu et al., arXiv:2010.03759)
    ``max-logit``   :math:`\max_c z_c` (Hendrycks et al., arXiv:1911.11132)
    ``margin``      :math:`z_{(1)} - z_{(2)}`, the difference of the two largest logits
    ==============  ============================================================================================

    Args:
        logits: ``(N, C)`` with at least two classes; computed in float64.
        score: one of ``OOD_SCORES``.
        temperature: T of ``msp`` and ``energy``, above 0. Default 1.

    Returns:
        ``(N)``, float64.

    Raises:
        ValueError: an unknown score, or a temperature that the score does not have.
    """
    if score not in OOD_SCORES:
        raise ValueError(f"score must be one of {', '.join(OOD_SCORES)}, got {score!r}")
    check_temperature(temperature)
    if temperature != 1 and score not in ("msp", "energy"):
        raise ValueError(f"temperature is an option of msp and energy, got {temperature} with score={score!r}")
    return OOD_SCORES[score](logits.double(), temperature)


def expected_calibration_error(logits: Tensor, labels: Tensor, bins: int = 15) -> float:
    r"""Expected calibration error of the top probability (Guo et al., arXiv:1706.04599).

    .. math::
        \mathrm{ECE} = \sum_b \frac{n_b}{N} \left| \mathrm{accuracy}_b - \mathrm{confidence}_b \right|

    over bins of equal width, each open at its lower and closed at its upper end.

    Args:
        logits: ``(N, C)``.
        labels: ``(N)``.
        bins: number of bins. Default 15, as Guo et al.; the released code of the encouraging loss takes 10.
    """
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    if not len(labels):
        raise ValueError("the calibration error of no image is undefined")
    confidence, predicted = logits.double().softmax(1).max(1)
    return reliability(confidence, predicted == labels, bins).calibration_error
