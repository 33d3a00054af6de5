"""Convolutional networks that are trained from scratch, built by the layer tables of the papers that used them.

All take ``(N, channels, height, width)`` and give logits; the last layer of each is linear and called ``classifier``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vision_language.image_classification.classifiers import LargeMarginLinear

__all__ = ["CifarResNet", "LargeMarginCNN", "ThreeConvolutions"]


class ThreeConvolutions(nn.Sequential):
    """Three convolutions without padding and two linear layers, for images of 28x28.

    The released code of the encouraging loss (arXiv:2110.06537) trains this network adversarially. It has 123,222
    parameters for one channel and ten classes.

    Args:
        channels: channels of an image.
        classes: number of classes.
    """

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__(
            *(nn.Conv2d(channels, 16, 5), nn.ReLU(), nn.Conv2d(16, 32, 5), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(32, 64, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(576, 100), nn.ReLU()),
        )
        self.classifier = nn.Linear(100, classes)


class LargeMarginCNN(nn.Module):
    """Eleven convolutions of one width in four stages, for images of 28x28.

    This is the network of L-Softmax (Liu et al., arXiv:1612.02295) as the released code of the encouraging loss has
    it. It has 522,125 parameters at width 64 for one channel and ten classes.

    Args:
        channels: channels of an image.
        classes: number of classes.
        width: channels of every convolution. Default 64.
        margin: margin of :class:`~vision_language.image_classification.classifiers.LargeMarginLinear`. Default 1, a
            linear layer.
    """

    def __init__(self, channels: int, classes: int, width: int = 64, margin: int = 1) -> None:
        super().__init__()

        def convolution(inputs: int, padding: int = 1) -> list[nn.Module]:
            return [nn.Conv2d(inputs, width, 3, padding=padding), nn.PReLU(), nn.BatchNorm2d(width)]

        layers = [nn.BatchNorm2d(channels), *convolution(channels, padding=0)]
        for repeats in (3, 4, 3):
            layers += [layer for _ in range(repeats) for layer in convolution(width)]
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers, nn.Flatten(), nn.Linear(9 * width, 256), nn.BatchNorm1d(256))
        self.classifier = LargeMarginLinear(256, classes, margin)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Logits; given ``labels`` in training, a margin above 1 makes the logit of the label harder to raise."""
        features = self.features(images)
        return self.classifier(features) if labels is None else self.classifier(features, labels)


class _BasicBlock(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.stride, self.missing = stride, width - inputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.missing or self.stride > 1:
            side = self.missing // 2
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, side, self.missing - side))
        return F.relu(y + x)


class CifarResNet(nn.Module):
    """Residual network for small images: three stages of 16, 32 and 64 channels, shortcuts without parameters.

    He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", arXiv:1512.03385, section 4.2. With 32 layers
    it is the network that Cao et al., arXiv:1906.07413, train on long-tailed CIFAR.

    Args:
        channels: channels of an image.
        classes: number of classes.
        layers: number of layers, 6n + 2 for n blocks per stage. Default 32.
    """

    def __init__(self, channels: int, classes: int, layers: int = 32) -> None:
        super().__init__()
        if layers < 8 or layers % 6 != 2:
            raise ValueError(f"layers must be 6n + 2, such as 20, 32, 44, got {layers}")
        blocks: list[nn.Module] = []
        inputs = 16
        for width, stride in ((16, 1), (32, 2), (64, 2)):
            for index in range((layers - 2) // 6):
                blocks.append(_BasicBlock(inputs, width, stride if index == 0 else 1))
                inputs = width
        self.conv, self.bn = nn.Conv2d(channels, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Linear(64, classes)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        x = self.blocks(F.relu(self.bn(self.conv(images))))
        return self.classifier(torch.mean(x, (2, 3)))
