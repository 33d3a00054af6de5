"""A kernel that computes something else is found, on a card too, where the public functions hand over."""

from __future__ import annotations

import pytest

from fairseq_ext import kernels
from fairseq_ext.modules import dynamic_convolution, norm_function, sparse_attention
from tests.kernels import test_dynamic_convolution, test_norm, test_topk_attention
from tests.kernels.interpreted import kernel


@pytest.fixture(autouse=True)
def as_on_a_card(monkeypatch):
    for place in (dynamic_convolution, norm_function.kernels, sparse_attention):
        monkeypatch.setattr(place, "usable", lambda *tensors: not kernels._disabled)


COMPARED = {
    "norm": ("normalize", lambda module: test_norm.test_equals_the_torch_path(module, {"unbiased": True}, 8)),
    "dynamic_convolution": (
        "dynamic_convolution",
        lambda module: test_dynamic_convolution.test_equals_the_torch_path(module, 5, 3, -1),
    ),
    "topk_attention": (
        "topk_attention",
        lambda module: test_topk_attention.test_equals_the_torch_path(module, "one key"),
    ),
}


@pytest.mark.parametrize("name", COMPARED)
def test_a_broken_kernel_is_found(monkeypatch, name):
    function, compare = COMPARED[name]
    module = kernel(name)
    right = getattr(module, function)
    monkeypatch.setattr(module, function, lambda *args, **options: 1.5 * right(*args, **options))
    with pytest.raises(AssertionError, match="not close"):
        compare(module)
