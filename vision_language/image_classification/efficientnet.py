"""EfficientNet-B0 as its paper and the common PyTorch port build and initialise it, for training from scratch.

The model of ``transformers`` has the same shape, but it is initialised from another distribution, and has other moving
averages and element-wise dropout in place of stochastic depth: good for loading weights, not for learning them.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["EfficientNet"]

# For each stage: expansion, kernel, stride of the first block, channels, number of blocks.
STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)


class _Convolution(nn.Sequential):
    """Convolution, batch norm and, unless ``linear``, SiLU. Padded as in TensorFlow, an odd pixel right and below."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1, linear: bool = False
    ) -> None:
        total = max(kernel - stride, 0)
        before, after = total // 2, total - total // 2
        super().__init__(
            *([nn.ZeroPad2d((before, after, before, after))] if total else []),
            nn.Conv2d(inputs, outputs, kernel, stride, groups=groups, bias=False),
            nn.BatchNorm2d(outputs),
            *([] if linear else [nn.SiLU()]),
        )


class _SqueezeExcite(nn.Module):
    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(channels, hidden, 1), nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.expand(F.silu(self.reduce(x.mean((2, 3), keepdim=True)))).sigmoid()


class _Block(nn.Module):
    """Inverted residual bottleneck (MBConv)."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int, drop_connect: float
    ) -> None:
        super().__init__()
        width = inputs * expansion
        self.layers = nn.Sequential(
            *([_Convolution(inputs, width)] if expansion > 1 else []),
            _Convolution(width, width, kernel, stride, groups=width),
            _SqueezeExcite(width, max(1, inputs // 4)),
            _Convolution(width, outputs, linear=True),
        )
        self.residual, self.drop_connect = stride == 1 and inputs == outputs, drop_connect

    def forward(self, x: Tensor) -> Tensor:
        y = self.layers(x)
        if not self.residual:
            return y
        if self.training and self.drop_connect:
            keep = 1 - self.drop_connect
            y = y / keep * torch.empty(len(y), 1, 1, 1, device=y.device, dtype=y.dtype).bernoulli_(keep)
        return x + y


class EfficientNet(nn.Module):
    """EfficientNet-B0: 4,020,358 parameters for three channels and ten classes.

    Tan & Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", arXiv:1905.11946.

    Args:
        channels: channels of an image.
        classes: number of classes.
        dropout: dropout before the classifier. Default 0.2.
        drop_connect: share of the examples that skip a residual block in training, the same in every block. Default
            0.2, as in the recipe of the encouraging loss (arXiv:2110.06537).
    """

    def __init__(self, channels: int, classes: int, dropout: float = 0.2, drop_connect: float = 0.2) -> None:
        super().__init__()
        layers: list[nn.Module] = [_Convolution(channels, 32, 3, 2)]
        inputs = 32
        for expansion, kernel, stride, outputs, repeats in STAGES:
            for index in range(repeats):
                layers.append(_Block(inputs, outputs, kernel, stride if index == 0 else 1, expansion, drop_connect))
                inputs = outputs
        self.features = nn.Sequential(*layers, _Convolution(inputs, 1280))
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(1280, classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        r"""Draw the weights anew: convolutions from Kaiming's normal distribution by fan-out, biases zero.

        The classifier's weights come from the uniform distribution on :math:`\pm 1 / \sqrt{classes}`.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        bound = 1 / math.sqrt(self.classifier.out_features)
        nn.init.uniform_(self.classifier.weight, -bound, bound)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        return self.classifier(self.dropout(self.features(images).mean((2, 3))))
