"""Last layers that shape the margin: large-margin softmax and cosine logits."""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["CosineLinear", "LargeMarginLinear"]


class LargeMarginLinear(nn.Module):
    r"""Linear layer without bias whose target logit must win by a multiple of its angle, in training.

    .. math::
        f_y = \|w_y\| \|x\| \big( (-1)^k \cos(m\theta) - 2k \big), \qquad k = \lfloor m \theta / \pi \rfloor, \qquad
        z_y \leftarrow \frac{f_y + \beta z_y}{1 + \beta}

    with :math:`\theta` the angle between x and :math:`w_y` (Liu, Wen, Yu, Yang, "Large-Margin Softmax Loss for
    Convolutional Neural Networks", arXiv:1612.02295). :math:`\beta = 100 \cdot 0.99^{step}` introduces the margin
    slowly, as in the code published with the encouraging loss; the state dict holds the number of steps so far.

    Args:
        in_features, out_features: as in ``nn.Linear``.
        margin: m, a whole number; with 1 the layer is linear. Default 1.

    Shape:
        - x: ``(N, in_features)``; labels: ``(N)``; output: ``(N, out_features)``
        - ``weight``: ``(out_features, in_features)``

    Raises:
        ValueError: a margin below 1.
    """

    def __init__(self, in_features: int, out_features: int, margin: int = 1) -> None:
        super().__init__()
        if margin < 1:
            raise ValueError(f"margin must be at least 1, got {margin}")
        self.margin = margin
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights from Kaiming's normal distribution with the gain of a ReLU, as the released code does."""
        nn.init.kaiming_normal_(self.weight)
        cast(Tensor, self.steps).zero_()

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Logits; a margin above 1 applies in training only, and then needs ``labels``."""
        logits = F.linear(x, self.weight)
        if self.margin == 1 or not self.training:
            return logits
        if labels is None:
            raise ValueError(f"a margin of {self.margin} needs labels in training")
        steps = cast(Tensor, self.steps)
        beta = 100 * 0.99 ** float(steps)
        steps += 1
        index = labels[:, None]
        target = logits.gather(1, index)
        length = x.norm(dim=1, keepdim=True) * self.weight[labels].norm(dim=1, keepdim=True)
        # At 1 and -1 the derivative of the angle is infinite.
        cosine = (target / length.clamp_min(1e-12)).clamp(-1 + 1e-7, 1 - 1e-7)
        k = (self.margin * cosine.detach().acos() / math.pi).floor()
        harder = length * ((1 - 2 * (k % 2)) * cosine_of_multiple(cosine, self.margin) - 2 * k)
        return logits.scatter(1, index, ((harder + beta * target) / (1 + beta)).to(logits.dtype))

    def extra_repr(self) -> str:
        return f"{self.weight.size(1)}, {self.weight.size(0)}, margin={self.margin}"


def cosine_of_multiple(cosine: Tensor, m: int) -> Tensor:
    r""":math:`\cos(m\theta) = \sum_n (-1)^n \binom{m}{2n} \cos^{m - 2n}\theta \, \sin^{2n}\theta`

    Args:
        cosine: cosine of :math:`\theta`.
        m: the multiple.
    """
    sine_squared = 1 - cosine.square()
    terms = [(-1) ** n * math.comb(m, 2 * n) * cosine ** (m - 2 * n) * sine_squared**n for n in range(m // 2 + 1)]
    return torch.stack(terms).sum(0)


class CosineLinear(nn.Linear):
    r"""Cosines between features and weights, times a scale: :math:`z_c = s \cos(x, w_c)`

    This is the last layer of LDAM (Cao et al., arXiv:1906.07413). LDAM's loss subtracts margins from the cosines and
    then scales them; here the layer scales, so that every loss, and the bonus of the encouraging loss, gets the scaled
    logits.

    Args:
        in_features, out_features: as in ``nn.Linear``.
        scale: s. Default 30.
    """

    def __init__(self, in_features: int, out_features: int, scale: float = 30.0) -> None:
        super().__init__(in_features, out_features, bias=False)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """Logits between -s and s."""
        return self.scale * F.linear(F.normalize(x, dim=1), F.normalize(self.weight, dim=1))
