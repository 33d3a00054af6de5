"""Initial weights of MUSE and AdaNorm: the bounds of every law, on both kinds of maps."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from fairseq_ext.modules.muse_init import INIT_LAWS, init_attention_projection_, init_ffn_


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def assert_uniform(weight: Tensor, bound: float):
    """Within the bound, reaching for it, and spread evenly (the deviation of a uniform law is bound / sqrt 3)."""
    assert weight.abs().max() <= bound
    assert weight.abs().max() > 0.99 * bound
    assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.03)


@pytest.mark.parametrize("law", INIT_LAWS)
def test_initial_attention(law):
    in_bound = math.sqrt(6 / (64 + 3 * 64)) if law == "xavier" else 1 / math.sqrt(64)
    out_bound = {"xavier": math.sqrt(6 / (128 + 64)), "adanorm": 1 / math.sqrt(128)}.get(law, math.sqrt(3 / 128))
    query, out = nn.Linear(64, 64), nn.Linear(128, 64)
    init_attention_projection_(query, law, "in")
    init_attention_projection_(out, law, "out")
    assert_uniform(query.weight, in_bound)
    assert_uniform(out.weight, out_bound)
    assert not query.bias.any()
    assert not out.bias.any()


@pytest.mark.parametrize(
    ("law", "bound"),
    [
        ("km", 1 / math.sqrt(64)),
        ("xavier", math.sqrt(6 / 256)),
        ("xi", math.sqrt(6 / 256 / 4)),
        ("fixup", math.sqrt(1 / 256)),
        ("adanorm", math.sqrt(6 / 256)),
    ],
)
def test_initial_ffn(law, bound):
    fc1 = nn.Linear(64, 192)
    init_ffn_(fc1, law, layer_index=3)
    assert_uniform(fc1.weight, bound)
    assert not fc1.bias.any()


def test_init_without_bias():
    linear = nn.Linear(64, 64, bias=False)
    init_ffn_(linear, "xi", 0)
    assert_uniform(linear.weight, math.sqrt(6 / 128))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: init_ffn_(x, "he", 0), "law must be one of km, xavier, xi, fixup, adanorm, got 'he'"),
        (lambda x: init_attention_projection_(x, "he", "in"), "law must be one of .* got 'he'"),
        (lambda x: init_attention_projection_(x, "km", "mid"), "role must be 'in' or 'out', got 'mid'"),
    ],
)
def test_error_lines(call, message):
    with pytest.raises(ValueError, match=message):
        call(nn.Linear(2, 2))
