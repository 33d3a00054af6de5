"""Convolutional networks that are trained from scratch, built by the layer tables of the papers that used them.

All take ``(N, channels, height, width)`` and give logits; the last layer of each is linear and called ``classifier``.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import EfficientNetConfig, EfficientNetModel

from vision_language.image_classification.classifiers import LargeMarginLinear

__all__ = ["CifarResNet", "EfficientNet", "LargeMarginCNN", "ThreeConvolutions"]


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


class _StochasticDepth(nn.Module):
    """Whole examples skip the block in training, each with probability ``p``."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        keep = 1 - self.p
        return x / keep * torch.empty(len(x), 1, 1, 1, device=x.device, dtype=x.dtype).bernoulli_(keep)


class EfficientNet(nn.Module):
    r"""EfficientNet-B0: 4,020,358 parameters for three channels and ten classes.

    Tan & Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", arXiv:1905.11946, as the
    recipe of the encouraging loss (arXiv:2110.06537) trains it.

    The layers are those of transformers, whose model is for loading weights, not for learning them: its moving averages
    are those of the last batch, all its weights, also the scales of batch norms, start near 0, and it drops elements,
    more of them in later blocks. Here batch norms have torch's averages and first weights, convolutions are drawn from
    Kaiming's normal distribution by fan-out and the classifier from the uniform one on :math:`\pm 1 / \sqrt{classes}`,
    biases are 0, and in training a fifth of the examples skip a residual block, the same share in every block.

    Args:
        channels: channels of an image.
        classes: number of classes.
    """

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        shape: Any = {"width_coefficient": 1.0, "depth_coefficient": 1.0, "hidden_dim": 1280}
        config = EfficientNetConfig(num_channels=channels, batch_norm_eps=1e-5, batch_norm_momentum=0.1, **shape)
        self.features = EfficientNetModel(config)
        block: Any
        for block in self.features.encoder.blocks:
            block.projection.dropout = _StochasticDepth(0.2)
        self.dropout = nn.Dropout(0.2)
        self.classifier = nn.Linear(config.hidden_dim, classes)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()
            elif isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.uniform_(self.classifier.weight, -(classes**-0.5), classes**-0.5)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        return self.classifier(self.dropout(self.features(images).pooler_output))
