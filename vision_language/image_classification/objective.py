"""The objective of a training: the loss of the options, with the class sizes and the epoch that it depends on."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fairseq_ext.losses import encouraging_loss_terms, mirror_bonus_loss, softmax_focal_loss
from fairseq_ext.losses.bonus_schedule import bonus_schedule
from fairseq_ext.losses.imbalance import class_weights
from vision_language.image_classification.options import LossOptions

__all__ = ["Objective", "ldam_margins"]

LDAM_MARGIN = 0.5


def ldam_margins(class_counts: Tensor, largest: float = LDAM_MARGIN) -> Tensor:
    r"""Margins of the label-distribution-aware loss, :math:`m_c = m_{max} \, n_c^{-1/4} / \max_j n_j^{-1/4}`.

    Cao, Wei, Gaidon, Arechiga, Ma, arXiv:1906.07413.

    Args:
        class_counts: training images of each class, n, ``(C)``.
        largest: the largest margin, :math:`m_{max}`. Default 0.5.
    """
    margins = class_counts.double() ** -0.25
    return margins * (largest / margins.max())


class Objective:
    """The mean loss of a batch.

    Args:
        options: options of the loss.
        counts: number of training images of each class.
        epochs: epochs of the whole training, which a schedule of the bonus needs.
        scale: scale of cosine logits, by which the margins of ``ldam`` are multiplied; 1 for other logits. Default 1.
    """

    def __init__(self, options: LossOptions, counts: list[int], epochs: int, scale: float = 1.0) -> None:
        self.options, self.epochs = options, epochs
        sizes = torch.tensor(counts, dtype=torch.double)
        self.weights = class_weights(sizes, options.beta).float() if options.reweight != "none" else None
        self.shift = torch.zeros(len(counts))
        if options.adjust_logits == "ldam":
            self.shift = -scale * ldam_margins(sizes).float()
        elif options.adjust_logits == "prior":
            self.shift = (sizes / sizes.sum()).log().float()

    def __call__(self, logits: Tensor, labels: Tensor, epoch: int, whole: Tensor | None = None) -> Tensor:
        """The loss of a batch in training.

        Args:
            logits: ``(N, C)``; half precision is computed in float32.
            labels: ``(N)``.
            epoch: counted from 1.
            whole: labels of the whole batch, ``(M)``, where ``labels`` are the share of one process; the loss of the
                batch is then the sum over the shares of N / M times the share's loss. Default: ``labels`` are the
                whole batch.
        """
        options, logits = self.options, logits.float()
        weight = self._weights_of("loss", epoch, logits)
        adjusted = self._adjusted(logits, labels)
        if options.loss in ("mse", "mae", "mirror-mse", "mirror-mae"):
            loss = self._of_probabilities(adjusted, labels)
        elif "focal" in options.loss:
            halted = options.loss == "halted-focal"
            loss = softmax_focal_loss(adjusted, labels, "none", gamma=options.gamma, halted=halted)
        else:
            loss = encouraging_loss_terms(adjusted, labels, label_smoothing=options.label_smoothing)[0]
        rows = weight[labels] if weight is not None else torch.ones_like(loss)
        weights = rows.sum()
        if whole is not None and weight is not None:
            weights = weight[whole].sum() * len(labels) / len(whole)
        total = (rows * loss).sum() / weights
        strength = self._bonus_weight(epoch)
        return total + strength * self._bonus(logits, labels, epoch) if strength else total

    def _adjusted(self, logits: Tensor, labels: Tensor) -> Tensor:
        shift = self.shift.to(logits)
        if self.options.adjust_logits == "prior":  # Menon et al., arXiv:2007.07314
            return logits + shift
        return logits + F.one_hot(labels, len(shift)) * shift

    def _of_probabilities(self, logits: Tensor, labels: Tensor) -> Tensor:
        base = self.options.loss.removeprefix("mirror-")
        mirror: dict[str, Any] = {
            "activation": self.options.activation,
            "bonus_power": self.options.mirror_power,
            "bonus_weight": float(base != self.options.loss),
        }
        return mirror_bonus_loss(logits, labels, "none", base=base, **mirror).mean(1)

    def _bonus_weight(self, epoch: int) -> float:
        options = self.options
        if options.loss != "encouraging" or epoch < options.bonus_from:
            return 0.0
        return options.bonus_weight * bonus_schedule(epoch, self.epochs, options.schedule)

    def _bonus(self, logits: Tensor, labels: Tensor, epoch: int) -> Tensor:
        """The plain mean of the bonus: unlike the loss it is not divided by the sum of the weights, as published."""
        options = self.options
        form: dict[str, Any] = {"bonus": options.bonus, "bonus_start": options.bonus_start}
        if options.bonus == "log":
            form["log_end"] = options.log_end
        if options.bonus == "power":
            form["bonus_power"] = options.bonus_power
        bonus = encouraging_loss_terms(logits, labels, label_smoothing=options.label_smoothing, **form)[1]
        weight = self._weights_of("bonus", epoch, logits)
        return bonus.mean() if weight is None else (weight[labels] * bonus).mean()

    def _weights_of(self, term: str, epoch: int, like: Tensor) -> Tensor | None:
        options = self.options
        if self.weights is None or options.reweight not in (term, "both") or epoch < options.reweight_from:
            return None
        return self.weights.to(like)
