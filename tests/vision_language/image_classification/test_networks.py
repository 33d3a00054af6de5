from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from vision_language.image_classification.classifiers import CosineLinear, LargeMarginLinear, cosine_of_multiple
from vision_language.image_classification.model import ImageNetwork, ImageNetworkConfig
from vision_language.image_classification.networks import CifarResNet, EfficientNet, LargeMarginCNN, ThreeConvolutions


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("network", "shape", "count"),
    [
        (lambda: ThreeConvolutions(1, 10), (1, 28, 28), 123_222),
        (lambda: LargeMarginCNN(1, 10), (1, 28, 28), 522_125),
        (lambda: LargeMarginCNN(1, 10, width=16), (1, 28, 28), 63_917),
        (lambda: CifarResNet(3, 10), (3, 32, 32), 464_154),
        (lambda: EfficientNet(3, 10), (3, 64, 64), 4_020_358),
    ],
)
def test_networks_have_the_published_size(network, shape, count):
    module = network()
    assert parameters(module) == count
    assert module.eval()(torch.rand(2, *shape)).shape == (2, 10)


def test_efficientnet_starts_from_its_own_distribution_with_its_own_averages():
    """That of transformers draws all weights, also the scales of batch norms, from one of standard deviation 0.02."""
    torch.manual_seed(0)
    network = ImageNetwork(ImageNetworkConfig("efficientnet-b0", num_channels=3, num_labels=4)).network
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert {(norm.momentum, norm.eps) for norm in norms} == {(0.1, 1e-5)}
    for norm in norms:
        assert (norm.weight == 1).all() and not norm.bias.any()
        assert not norm.running_mean.any() and (norm.running_var == 1).all()
    for convolution in (module for module in network.modules() if isinstance(module, nn.Conv2d)):
        fan_out = convolution.weight[:, 0].numel()
        if convolution.weight.numel() > 1000:
            assert convolution.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.1)
        assert convolution.bias is None or not convolution.bias.any()
    (layer,) = (module for module in network.modules() if isinstance(module, nn.Linear))
    assert 0.49 < layer.weight.abs().max() <= 0.5 and not layer.bias.any()


def test_dropped_examples_pass_a_residual_block_unchanged():
    torch.manual_seed(0)
    network = EfficientNet(3, 2)
    blocks = [block for block in network.features.encoder.blocks if block.projection.apply_dropout]
    assert [block.projection.dropout.p for block in blocks] == [0.2] * 9
    x = torch.rand(256, blocks[0].projection.project_bn.num_features, 2, 2)
    same = (blocks[0].train()(x) == x).flatten(1).all(1)
    assert same.double().mean().item() == pytest.approx(0.2, abs=0.08)
    assert not (blocks[0].eval()(x) == x).flatten(1).all(1).any()


def test_a_shortcut_takes_every_second_pixel_and_adds_channels_of_zeros():
    network = CifarResNet(1, 2, layers=8).eval()
    block = network.blocks[1]
    nn.init.zeros_(block.bn2.weight)
    x = torch.rand(1, 16, 4, 4)
    y = block(x)
    assert torch.equal(y[:, 8:24], x[:, :, ::2, ::2])
    assert not y[:, :8].any() and not y[:, 24:].any()


@pytest.mark.parametrize("layers", [2, 18, 33])
def test_refused_depths(layers):
    with pytest.raises(ValueError, match=rf"layers must be 6n \+ 2, such as 20, 32, 44, got {layers}"):
        CifarResNet(3, 10, layers)


@given(angle=st.floats(0, math.pi), m=st.integers(1, 6))
def test_cosine_of_a_multiple(angle, m):
    cosine = torch.tensor([math.cos(angle)], dtype=torch.double)
    assert cosine_of_multiple(cosine, m).item() == pytest.approx(math.cos(m * angle), abs=1e-9)


def by_hand(layer: LargeMarginLinear, x, labels, beta):
    logits = x @ layer.weight.T
    for row, label in enumerate(labels.tolist()):
        w, v, m = layer.weight[label], x[row], layer.margin
        angle = math.acos(float(w @ v / (w.norm() * v.norm())))
        k = math.floor(m * angle / math.pi)
        f = float(w.norm() * v.norm()) * ((-1) ** k * math.cos(m * angle) - 2 * k)
        logits[row, label] = (f + beta * logits[row, label]) / (1 + beta)
    return logits


@pytest.mark.parametrize("margin", [2, 3, 4])
def test_large_margin_logits(margin):
    torch.manual_seed(0)
    layer = LargeMarginLinear(5, 4, margin).double()
    x, labels = torch.randn(7, 5, dtype=torch.double), torch.tensor([0, 1, 2, 3, 0, 1, 2])
    with torch.no_grad():
        for beta in (100, 99):
            torch.testing.assert_close(layer(x, labels), by_hand(layer, x, labels, beta))
        assert torch.equal(layer.eval()(x, labels), x @ layer.weight.T)


def test_a_margin_only_lowers_the_target_and_its_steps_are_saved():
    torch.manual_seed(0)
    layer = LargeMarginLinear(5, 4, margin=2)
    x, labels = torch.randn(3, 5, requires_grad=True), torch.tensor([0, 1, 2])
    plain, harder = x @ layer.weight.T, layer(x, labels)
    target = nn.functional.one_hot(labels, 4).bool()
    assert (harder[target] <= plain[target]).all()
    torch.testing.assert_close(harder[~target], plain[~target])
    harder.sum().backward()
    assert x.grad.isfinite().all()
    assert layer.state_dict()["steps"] == 1
    with pytest.raises(ValueError, match="a margin of 2 needs labels in training"):
        layer(x)
    with pytest.raises(ValueError, match="margin must be at least 1, got 0"):
        LargeMarginLinear(5, 4, margin=0)


def test_cosine_logits_do_not_depend_on_lengths():
    torch.manual_seed(0)
    layer, x = CosineLinear(5, 4, scale=10), torch.randn(3, 5)
    logits = layer(x)
    layer.weight.data *= 7
    torch.testing.assert_close(layer(3 * x), logits)
    assert logits.abs().max() <= 10
