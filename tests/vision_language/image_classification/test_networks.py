from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from vision_language.image_classification.classifiers import CosineLinear, LargeMarginLinear, cosine_of_multiple
from vision_language.image_classification.efficientnet import EfficientNet
from vision_language.image_classification.networks import CifarResNet, LargeMarginCNN, ThreeConvolutions


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


def test_efficientnet_is_the_one_of_transformers():
    from transformers import EfficientNetConfig, EfficientNetForImageClassification

    torch.manual_seed(0)
    ours = EfficientNet(3, 5).eval()
    settings = {"width_coefficient": 1.0, "depth_coefficient": 1.0, "hidden_dim": 1280, "image_size": 64}
    theirs = EfficientNetForImageClassification(
        EfficientNetConfig(num_labels=5, batch_norm_eps=1e-5, **settings)
    ).eval()
    weights = list(ours.state_dict().values())
    for value in weights:  # statistics other than 0 and 1
        if value.is_floating_point() and value.dim() == 1:
            value.uniform_(0.5, 1.5)
    theirs.load_state_dict(dict(zip(theirs.state_dict(), weights, strict=True)))
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(pixel_values=images).logits, rtol=1e-4, atol=1e-4)


def test_dropped_examples_pass_a_residual_block_unchanged():
    torch.manual_seed(0)
    network = EfficientNet(3, 2, drop_connect=0.5)
    block = next(layer for layer in network.features if getattr(layer, "residual", False))
    x = torch.rand(64, block.layers[0][0].in_channels, 4, 4)
    same = (block.train()(x) == x).flatten(1).all(1)
    assert 16 <= int(same.sum()) <= 48
    assert not (block.eval()(x) == x).flatten(1).all(1).any()


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
